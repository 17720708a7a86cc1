"""Phi-3, 3.5 and 4: Llama with q, k, v in one tensor and gate, up in another, and LongRoPE."""

from __future__ import annotations

from typing import Any, ClassVar

from jaxtune.core.errors import ModelError
from jaxtune.models.decoder import DecoderShape, Kind
from jaxtune.models.decoder_family import ROPE_KEYS, DecoderFamily
from jaxtune.models.family import DropoutRates, words
from jaxtune.models.weights import Weight, linear


class Phi3(DecoderFamily):
    """One rope, which may turn a part of each head."""

    model_type: ClassVar = "phi3"
    class_name: ClassVar = "Phi3"
    handled: ClassVar = words(
        """vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads hidden_act max_position_embeddings
        original_max_position_embeddings initializer_range rms_norm_eps tie_word_embeddings attention_dropout resid_pdrop sliding_window"""
    )
    derived: ClassVar = ROPE_KEYS | words("num_key_value_heads partial_rotary_factor")
    ignored: ClassVar = words("pad_token_id embd_pdrop full_attn_mod interpolate_factor")  # transformers computes nothing with these
    fixed: ClassVar = {"attention_bias": False, "mlp_bias": False, "lm_head_bias": False}
    assumed: ClassVar = {
        "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 32,
        "hidden_act": "silu", "max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "initializer_range": 0.02,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "attention_dropout": 0.0, "resid_pdrop": 0.0, "sliding_window": None,
    }  # fmt: skip

    def read(self) -> DecoderShape:
        c = self.raw
        return DecoderShape(**self.common(), kinds=(Kind(c["sliding_window"]),) * c["num_hidden_layers"], ropes=(self.rope(),))

    def rope_settings(self) -> dict[str, Any]:
        """`su` and `yarn` are older names of LongRoPE here; the length trained for stands beside the settings.

        Raises:
            ModelError: another scaling, which transformers refuses for this family too.
        """
        settings = super().rope_settings()
        kind = settings.get("rope_type") or settings.pop("type", None) or "default"
        settings["rope_type"] = "longrope" if kind in ("su", "yarn") else kind
        if settings["rope_type"] not in ("default", "longrope"):
            raise ModelError(f'config.json: rope_type "{kind}" is not one of phi3; expected default or longrope')
        settings.setdefault("partial_rotary_factor", self.raw.get("partial_rotary_factor") or 1.0)
        if settings["rope_type"] == "longrope":
            settings["original_max_position_embeddings"] = self.raw["original_max_position_embeddings"]
        else:
            settings.pop("original_max_position_embeddings", None)
        return settings

    @property
    def dropout(self) -> DropoutRates:
        return DropoutRates(hidden=self.raw["resid_pdrop"], attention=self.raw["attention_dropout"])

    def attention_rows(self) -> tuple[Weight, ...]:
        c = self.shape
        q, kv = c.heads * c.head_width, c.kv_heads * c.head_width
        paths = tuple(f"layers.{{i}}.attn.{part}.kernel" for part in "qkv")
        return (
            Weight(paths, "layers.{i}.self_attn.qkv_proj.weight", "heads embed -> embed heads", parts=(q, kv, kv)),
            *linear("layers.{i}.attn.o", "layers.{i}.self_attn.o_proj", "embed heads -> heads embed"),
        )

    def mlp_rows(self) -> tuple[Weight, ...]:
        paths = ("layers.{i}.mlp.gate.kernel", "layers.{i}.mlp.up.kernel")
        return (
            Weight(paths, "layers.{i}.mlp.gate_up_proj.weight", "(stack mlp) embed -> stack embed mlp"),
            *linear("layers.{i}.mlp.down", "layers.{i}.mlp.down_proj", "embed mlp -> mlp embed"),
        )
