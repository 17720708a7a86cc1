"""A tiny chat model on disk (llama, two layers, 400 tokens) and data for it: runs take seconds."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

CHAT = Path(__file__).resolve().parent / "references" / "chat"
WORDS = ["sun", "moon", "star", "tree", "leaf", "river", "stone", "cloud", "wind", "rain", "snow", "fire"]
CONFIG: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 400, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "float32", "bos_token_id": 3, "eos_token_id": 2,
}  # fmt: skip


def write_model(folder: Path, seed: int = 0, **config: Any) -> Path:
    """A complete Hugging Face folder with random weights and the recorded tokenizer to chat with."""
    folder.mkdir(parents=True)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(CHAT / file, folder)
    values = {**CONFIG, **config}
    (folder / "config.json").write_text(json.dumps(values))
    width, inner, rows = values["hidden_size"], values["intermediate_size"], values["vocab_size"]
    pair = width // values["num_attention_heads"] * values["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (rows, width),
        "lm_head.weight": (rows, width),
        "model.norm.weight": (width,),
    }
    for layer in range(values["num_hidden_layers"]):
        own = {
            "self_attn.q_proj": (width, width), "self_attn.k_proj": (pair, width), "self_attn.v_proj": (pair, width),
            "self_attn.o_proj": (width, width), "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner),
            "input_layernorm": (width,), "post_attention_layernorm": (width,),
        }  # fmt: skip
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in own.items()}
    draw = np.random.default_rng(seed)
    tensors = {
        name: np.ones(shape, np.float32) if len(shape) == 1 else (0.2 * draw.standard_normal(shape)).astype(np.float32)
        for name, shape in shapes.items()
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def write_data(path: Path, rows: int = 48) -> Path:
    """Records that every task of a language model can read: the answer says the prompt's words backwards, the rejected one does not."""
    dice = random.Random(0)
    with path.open("w") as file:
        for number in range(rows):
            words = [dice.choice(WORDS) for _ in range(dice.randint(1, 5))]
            prompt, chosen, rejected = f"{number} {' '.join(words)}", " ".join(reversed(words)), " ".join([*words, "no"])
            messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": chosen}]
            file.write(json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected, "messages": messages}) + "\n")
    return path


def experiment(task: dict[str, Any], steps: int = 6, *, data: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """The values of a YAML whose model is `model/` and whose records are `data.jsonl`."""
    return {
        "name": "tiny",
        "model": {"base": "model", "dtype": "float32"},
        "task": task,
        "data": {
            "source": {"kind": "json_lines", "path": "data.jsonl"},
            "split": {"kind": "random", "validation": 0.25, "test": 0.25},
            "max_tokens": 64, "batch_size": 8, **(data or {}),
        },
        "phases": [{"train": ["*"], "steps": steps, "optimizer": {"kind": "adamw", "schedule": {"kind": "constant", "rate": 0.003}}}],
        "evaluation": {"every_steps": 3},
        "checkpoint": {"every_steps": 2},
        **more,
    }  # fmt: skip
