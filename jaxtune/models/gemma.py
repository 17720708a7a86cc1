"""Gemma 1, 2 and 3 (text): scaled embeddings, norms whose scale is stored as its distance from one, windows and soft caps by turns."""

from __future__ import annotations

from typing import Any, ClassVar

from jaxtune.core.errors import ModelError
from jaxtune.models.decoder import DecoderShape, Kind
from jaxtune.models.decoder_family import FULL, ROPE_KEYS, SLIDING, DecoderFamily, kinds_of
from jaxtune.models.family import words
from jaxtune.models.weights import Weight, norm


class Gemma(DecoderFamily):
    """One kind of layer, norms before, gated tanh GELU."""

    model_type: ClassVar = "gemma"
    class_name: ClassVar = "Gemma"
    handled: ClassVar = words(
        """vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim hidden_act
        max_position_embeddings initializer_range rms_norm_eps tie_word_embeddings attention_bias attention_dropout"""
    )
    derived: ClassVar = ROPE_KEYS | words("hidden_activation use_bidirectional_attention")
    ignored: ClassVar = words("pad_token_id cache_implementation")
    assumed: ClassVar = {
        "vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 16, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "max_position_embeddings": 8192,
        "initializer_range": 0.02, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "attention_bias": False, "attention_dropout": 0.0,
    }  # fmt: skip

    def read(self) -> DecoderShape:
        return DecoderShape(**self.common(), kinds=(Kind(),) * self.raw["num_hidden_layers"], ropes=(self.rope(),))

    def common(self) -> dict[str, Any]:
        c = self.raw
        if c.get("use_bidirectional_attention"):
            raise ModelError(f"config.json: use_bidirectional_attention=true is not supported by {self.model_type}")
        return {
            **super().common(),
            "norm_offset": 1.0,
            "embedding_scale": c["hidden_size"] ** 0.5,
            "attention_bias": c["attention_bias"],
            "out_bias": c["attention_bias"],
        }

    @property
    def activation(self) -> str:
        """`gelu` in the first checkpoints means the tanh formula they were trained with.

        Raises:
            ModelError: `hidden_activation` names another one.
        """
        named = self.raw.get("hidden_activation")
        act = "gelu_pytorch_tanh" if self.raw["hidden_act"] == "gelu" else self.raw["hidden_act"]
        if named not in (None, act):
            raise ModelError(f"config.json: hidden_activation {named!r} contradicts hidden_act {self.raw['hidden_act']!r}")
        return act


class Gemma2(Gemma):
    """Every second layer sees a window; norms before and after; scores and logits capped."""

    model_type: ClassVar = "gemma2"
    class_name: ClassVar = "Gemma2"
    handled: ClassVar = (Gemma.handled - {"hidden_act"}) | words(
        "hidden_activation query_pre_attn_scalar sliding_window final_logit_softcapping attn_logit_softcapping"
    )
    derived: ClassVar = ROPE_KEYS | words("layer_types use_bidirectional_attention")
    ignored: ClassVar = words("pad_token_id cache_implementation hidden_act")
    assumed: ClassVar = {
        **{key: value for key, value in Gemma.assumed.items() if key != "hidden_act"},
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "query_pre_attn_scalar": 256, "sliding_window": 4096,
        "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0,
    }  # fmt: skip

    def read(self) -> DecoderShape:
        c = self.raw
        types = self.layer_types([FULL if number % 2 else SLIDING for number in range(c["num_hidden_layers"])])
        return DecoderShape(**self.common(), kinds=kinds_of(types, c["sliding_window"]), ropes=(self.rope(),))

    def common(self) -> dict[str, Any]:
        c = self.raw
        return {
            **super().common(),
            "norm_after": True,
            "attention_scale": c["query_pre_attn_scalar"] ** -0.5,
            "attention_soft_cap": c["attn_logit_softcapping"],
        }

    @property
    def activation(self) -> str:
        return self.raw["hidden_activation"]

    @property
    def soft_cap(self) -> float | None:
        return self.raw["final_logit_softcapping"]

    def norm_rows(self) -> tuple[Weight, ...]:
        return (
            *norm("layers.{i}.attn_norm", "layers.{i}.input_layernorm"),
            *norm("layers.{i}.post_attn_norm", "layers.{i}.post_attention_layernorm"),
            *norm("layers.{i}.mlp_norm", "layers.{i}.pre_feedforward_layernorm"),
            *norm("layers.{i}.post_mlp_norm", "layers.{i}.post_feedforward_layernorm"),
        )


class Gemma3Text(Gemma2):
    """Five layers with a window and a rope of their own, then one that sees everything; normed queries and keys."""

    model_type: ClassVar = "gemma3_text"
    class_name: ClassVar = "Gemma3"
    derived: ClassVar = Gemma2.derived | words("sliding_window_pattern rope_local_base_freq")
    ignored: ClassVar = Gemma2.ignored | words("_sliding_window_pattern")
    assumed: ClassVar = {
        **Gemma2.assumed, "vocab_size": 262208, "max_position_embeddings": 131072, "final_logit_softcapping": None,
        "attn_logit_softcapping": None,
    }  # fmt: skip
    theta: ClassVar = 1000000.0
    local_theta: ClassVar = 10000.0

    @property
    def language_architecture(self) -> str:
        return "Gemma3ForCausalLM"

    @property
    def architecture(self) -> str:
        return "Gemma3TextForSequenceClassification"

    def read(self) -> DecoderShape:
        c = self.raw
        pattern = c.get("sliding_window_pattern") or 6
        types = self.layer_types([SLIDING if (number + 1) % pattern else FULL for number in range(c["num_hidden_layers"])])
        return DecoderShape(
            **self.common(),
            kinds=kinds_of(types, c["sliding_window"], {FULL: 0, SLIDING: 1}),
            ropes=(self.rope(), self.rope(self.local_settings())),
            query_key_norm="head",
        )

    def rope_settings(self) -> dict[str, Any]:
        """Those of the layers that see everything: nested by layer type, or the older keys."""
        c = self.raw
        nested = dict((c.get("rope_parameters") or {}).get(FULL) or {})
        nested |= {key: value for key, value in (c.get("rope_scaling") or {}).items() if value is not None}
        nested.setdefault("rope_theta", c.get("rope_theta") or self.theta)
        return nested

    def local_settings(self) -> dict[str, Any]:
        nested = dict((self.raw.get("rope_parameters") or {}).get(SLIDING) or {})
        nested.setdefault("rope_theta", self.raw.get("rope_local_base_freq") or self.local_theta)
        return nested
