"""Record what `peft` computes with random adapters on the recorded checkpoints, and how bitsandbytes and qwix quantize a matrix.

As for `record_references.py`, jaxtune's tests need neither PyTorch nor any of these packages. Run this only to add a case:

    torch-venv/bin/pip install torch transformers peft bitsandbytes
    torch-venv/bin/python scripts/record_adapter_references.py
    any-jax-venv/bin/pip install qwix && any-jax-venv/bin/python scripts/record_adapter_references.py --qwix

A case of `tests/references/adapters/` is the folder that `save_pretrained` of peft writes for one adapter, every tensor random (so that an
adapter left out or scaled wrongly shows), and `expected.safetensors` with the logits of the base case's own inputs. `quantized/nf4.safetensors`
and `quantized/int8.safetensors` hold a float32 matrix [outputs, inputs], its codes, scales and what they stand for.
"""

import argparse
import importlib.metadata
import json
import zlib
from pathlib import Path

import numpy
from safetensors.numpy import load_file, save_file

REFERENCES = Path(__file__).resolve().parents[1] / "tests" / "references"
BERT = ["query", "value", "intermediate.dense"]
LLAMA = ["q_proj", "v_proj", "up_proj", "down_proj"]
# name -> (recorded base case, LoraConfig or IA3Config, its settings)
CASES = {
    "bert_lora": ("bert", "LoraConfig", {"target_modules": BERT, "r": 4, "lora_alpha": 6}),
    "bert_lora_head": ("bert", "LoraConfig", {"target_modules": BERT, "r": 4, "lora_alpha": 6, "task_type": "SEQ_CLS"}),
    "bert_rslora": ("bert", "LoraConfig", {"target_modules": BERT, "r": 4, "lora_alpha": 6, "use_rslora": True}),
    "bert_dora": ("bert", "LoraConfig", {"target_modules": BERT, "r": 4, "lora_alpha": 6, "use_dora": True}),
    "bert_ranks": (
        "bert",
        "LoraConfig",
        {
            "target_modules": ["query", "layer.1.output.dense"], "r": 3, "lora_alpha": 6,
            "rank_pattern": {"layer.1.attention.self.query": 5}, "alpha_pattern": {"layer.1.output.dense": 1},
        },
    ),
    "bert_ia3": ("bert", "IA3Config", {"target_modules": ["key", "value", "layer.0.output.dense"], "feedforward_modules": ["layer.0.output.dense"]}),
    "llama_lora": ("llama", "LoraConfig", {"target_modules": LLAMA, "r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"}),
    "llama_dora": ("llama", "LoraConfig", {"target_modules": LLAMA, "r": 4, "lora_alpha": 8, "use_dora": True, "task_type": "CAUSAL_LM"}),
    "llama_ia3": (
        "llama", "IA3Config", {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"], "task_type": "CAUSAL_LM"},
    ),
    "gpt2_lora": ("gpt2", "LoraConfig", {"target_modules": ["c_attn", "c_fc"], "r": 4, "lora_alpha": 8, "fan_in_fan_out": True, "task_type": "CAUSAL_LM"}),
    "gpt2_dora": ("gpt2", "LoraConfig", {"target_modules": ["c_attn"], "r": 4, "lora_alpha": 8, "fan_in_fan_out": True, "use_dora": True, "task_type": "CAUSAL_LM"}),
    "phi3_lora": ("phi3", "LoraConfig", {"target_modules": ["qkv_proj", "down_proj"], "r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"}),
    "gpt_neox_lora": ("gpt_neox", "LoraConfig", {"target_modules": ["query_key_value"], "r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"}),
}  # fmt: skip


def record(name: str, bases: Path, output: Path) -> None:
    import peft
    import torch
    import transformers

    base, kind, settings = CASES[name]
    folder = bases / base
    if not folder.is_dir():
        print(f"{name}: {folder} is not recorded yet")
        return
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, architecture).from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    model = peft.get_peft_model(model, getattr(peft, kind)(**settings)).eval()
    torch.manual_seed(zlib.crc32(name.encode()))
    with torch.no_grad():
        for parameter_name, value in model.named_parameters():
            if "lora_magnitude" in parameter_name or "ia3" in parameter_name:
                value.mul_(1 + 0.3 * torch.randn_like(value))
            elif "lora_" in parameter_name:
                value.copy_(0.05 * torch.randn_like(value))
            elif "modules_to_save" in parameter_name:
                value.add_(0.1 * torch.randn_like(value))
        stored = load_file(folder / "reference.safetensors")
        inputs = {
            key: torch.from_numpy(stored[key]) for key in ("input_ids", "attention_mask", "token_type_ids", "position_ids") if key in stored
        }
        logits = model(**inputs).logits
        plain = torch.from_numpy(stored["logits"])
        assert (logits - plain).abs().max() > 0.01, f"{name}: the adapter changes nothing"
    model.save_pretrained(output / name)
    (output / name / "README.md").unlink(missing_ok=True)
    config = json.loads((output / name / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = base
    (output / name / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_file({"logits": logits.numpy()}, output / name / "expected.safetensors")
    print(name, tuple(logits.shape))


def matrix() -> numpy.ndarray:
    """[outputs, inputs] with a block of zeros, values on the bounds between levels, and great and small rows."""
    weights = numpy.random.default_rng(0).standard_normal((24, 192)).astype(numpy.float32)
    weights[3, 64:128] = 0.0
    weights[4] *= 1e-6
    weights[5] *= 1e4
    weights[6, :64] = numpy.linspace(-1, 1, 64, dtype=numpy.float32)
    return weights


def record_nf4(output: Path) -> None:
    import bitsandbytes.functional as bnb
    import torch

    weights = torch.from_numpy(matrix())
    codes, state = bnb.quantize_4bit(weights, blocksize=64, quant_type="nf4")
    found = {"weights": matrix(), "codes": codes.numpy(), "absmax": state.absmax.numpy(), "levels": state.code.numpy()}
    save_file(
        {**found, "dequantized": bnb.dequantize_4bit(codes, state).numpy()},
        output / "nf4.safetensors",
        metadata=versions("bitsandbytes", "torch"),
    )


def record_int8(output: Path) -> None:
    from jax import numpy as jnp
    from qwix._src.core import qarray

    array = qarray.quantize_api(jnp.asarray(matrix()), jnp.int8, channelwise_axes=(0,))
    found = {"weights": matrix(), "codes": array.qvalue, "scales": array.scale, "dequantized": qarray.dequantize(array)}
    save_file({name: numpy.asarray(value) for name, value in found.items()}, output / "int8.safetensors", metadata=versions("qwix", "jax"))


def versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--qwix", action="store_true", help="record int8 alone, in an environment with jax and qwix")
    parser.add_argument("--bases", type=Path, default=REFERENCES, help="where the recorded base cases lie")
    parser.add_argument("--only", nargs="*", default=list(CASES))
    arguments = parser.parse_args()
    quantized, adapters = REFERENCES / "quantized", REFERENCES / "adapters"
    quantized.mkdir(exist_ok=True)
    if arguments.qwix:
        record_int8(quantized)
        return
    adapters.mkdir(exist_ok=True)
    record_nf4(quantized)
    for name in arguments.only:
        record(name, arguments.bases, adapters)
    (adapters / "versions.json").write_text(json.dumps(versions("peft", "transformers", "torch"), indent=2) + "\n")


if __name__ == "__main__":
    main()
