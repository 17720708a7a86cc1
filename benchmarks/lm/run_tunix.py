"""Tunix's PeftTrainer with qwix's LoRA on its Llama: padded rows, its own loss over all positions, optax's AdamW, at the jax that it pins.

Adapters take the dtype of the base in qwix, so in bfloat16 they are trained in bfloat16.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax.numpy as jnp
import numpy as np
import optax
import qwix
from flax import nnx
from lm.job import Batches, Job, Marks
from safetensors.numpy import load_file
from tunix.models.llama3.model import ModelConfig
from tunix.models.llama3.params import create_model_from_safe_tensors
from tunix.sft import peft_trainer, utils

PARTS = {"q_proj": "self_attn", "k_proj": "self_attn", "v_proj": "self_attn", "o_proj": "self_attn"}


def config_of(shape: dict[str, Any]) -> ModelConfig:
    return ModelConfig(
        num_layers=shape["num_hidden_layers"],
        vocab_size=shape["vocab_size"],
        embed_dim=shape["hidden_size"],
        hidden_dim=shape["intermediate_size"],
        num_heads=shape["num_attention_heads"],
        head_dim=shape["hidden_size"] // shape["num_attention_heads"],
        num_kv_heads=shape["num_key_value_heads"],
        rope_theta=int(shape["rope_theta"]),
        norm_eps=shape["rms_norm_eps"],
        weight_tying=shape["tie_word_embeddings"],
    )


def with_adapter(model: Any, folder: Path) -> Any:
    """LoRA on every linear layer of the blocks, starting from the numbers of the folder."""
    settings = json.loads((folder / "adapter_config.json").read_text())
    provider = qwix.LoraProvider(
        module_path=".*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)", rank=settings["r"], alpha=settings["lora_alpha"]
    )
    model = qwix.apply_lora_to_model(model, provider, **model.get_model_input(), rngs=nnx.Rngs(0))
    tensors, placed = load_file(folder / "adapter_model.safetensors"), 0
    for path, value in nnx.to_flat_state(nnx.state(model, nnx.LoRAParam)):
        name, end = str(path[-2]), str(path[-1])
        if end.endswith("_lora_a"):
            tensor = tensors[f"base_model.model.model.layers.{path[1]}.{PARTS.get(name, 'mlp')}.{name}.lora_A.weight"]
            value[...] = jnp.asarray(tensor.T.reshape(value.shape), value.dtype)
            placed += 1
    assert 2 * placed == len(tensors), f"{placed} adapters in the model, {len(tensors) // 2} in {folder}"
    return model


def inputs(batch: peft_trainer.TrainingInput) -> dict[str, Any]:
    """The loss reads `input_mask` as the weights of targets, the attention mask and the positions come from the real tokens."""
    real = batch.input_tokens >= 0
    return {
        "input_tokens": jnp.maximum(batch.input_tokens, 0),
        "input_mask": batch.input_mask,
        "positions": utils.build_positions_from_mask(real),
        "attention_mask": utils.make_causal_attn_mask(real),
    }


class Watched(peft_trainer.PeftTrainer):
    """Waits for the loss of every step, so that its time is known."""

    def _post_process_train_step(self, aux: Any) -> None:
        self.losses.append(float(self._buffered_train_metrics.losses[-1]))
        self.marks.step(not self.marks.ends)


def main() -> None:
    job = Job.read()
    batches, marks = Batches.read(job.data), Marks()
    marks.start()
    shape = json.loads((Path(job.model) / "config.json").read_text())
    model = create_model_from_safe_tensors(job.model, config_of(shape), dtype=jnp.dtype(job.precision))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(job.rate, weight_decay=job.weight_decay))
    config = peft_trainer.TrainingConfig(eval_every_n_steps=1_000_000, max_steps=job.steps)
    trainer = Watched(with_adapter(model, Path(job.adapter)), optimizer, config).with_gen_model_input_fn(inputs)
    trainer.marks, trainer.losses = marks, []
    rows = zip(batches.tokens, batches.mask, batches.weight, strict=True)
    trainer.train(
        [peft_trainer.TrainingInput(input_tokens=np.where(mask > 0, tokens, -1), input_mask=weight) for tokens, mask, weight in rows]
    )
    job.finish(marks, trainer.losses, "google-tunix", "jax", "jaxlib", "flax", "qwix", "optax", "numpy")


if __name__ == "__main__":
    main()
