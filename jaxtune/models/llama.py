"""Llama 1 to 3.x (and all that is stored as one: SmolLM2, TinyLlama), Mistral, SmolLM3, OLMo 2."""

from __future__ import annotations

from typing import ClassVar

from jaxtune.core.errors import ModelError
from jaxtune.models.decoder import DecoderShape, Kind
from jaxtune.models.decoder_family import FULL, ROPE_KEYS, SLIDING, DecoderFamily
from jaxtune.models.family import words
from jaxtune.models.weights import Weight, norm


class Llama(DecoderFamily):
    """RMS norms before, gated SiLU, rope, grouped heads."""

    model_type: ClassVar = "llama"
    class_name: ClassVar = "Llama"
    handled: ClassVar = words(
        """vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads hidden_act max_position_embeddings
        initializer_range rms_norm_eps tie_word_embeddings attention_bias attention_dropout mlp_bias"""
    )
    derived: ClassVar = ROPE_KEYS | words("head_dim num_key_value_heads")
    ignored: ClassVar = words("pad_token_id pretraining_tp is_llama_config")
    fixed: ClassVar = {"rope_interleaved": False}
    assumed: ClassVar = {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "hidden_act": "silu", "max_position_embeddings": 2048, "initializer_range": 0.02, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False, "attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False,
    }  # fmt: skip

    def read(self) -> DecoderShape:
        c = self.raw
        return DecoderShape(
            **self.common(),
            kinds=(Kind(),) * c["num_hidden_layers"],
            ropes=(self.rope(),),
            attention_bias=c["attention_bias"],
            out_bias=c["attention_bias"],
            mlp_bias=c["mlp_bias"],
        )


class Mistral(DecoderFamily):
    """Llama with a sliding window in every layer (none in most later checkpoints)."""

    model_type: ClassVar = "mistral"
    class_name: ClassVar = "Mistral"
    handled: ClassVar = words(
        """vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads hidden_act
        max_position_embeddings initializer_range rms_norm_eps tie_word_embeddings attention_dropout sliding_window"""
    )
    derived: ClassVar = ROPE_KEYS | words("head_dim")
    ignored: ClassVar = words("pad_token_id")
    assumed: ClassVar = {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "hidden_act": "silu", "max_position_embeddings": 131072, "initializer_range": 0.02,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "attention_dropout": 0.0, "sliding_window": 4096,
    }  # fmt: skip

    def read(self) -> DecoderShape:
        c = self.raw
        return DecoderShape(**self.common(), kinds=(Kind(c["sliding_window"]),) * c["num_hidden_layers"], ropes=(self.rope(),))


class SmolLm3(DecoderFamily):
    """Llama whose every fourth layer knows no positions."""

    model_type: ClassVar = "smollm3"
    class_name: ClassVar = "SmolLM3"
    theta: ClassVar = 2000000.0
    handled: ClassVar = Llama.handled | words("use_sliding_window sliding_window no_rope_layer_interval")
    derived: ClassVar = ROPE_KEYS | words("num_key_value_heads no_rope_layers layer_types")
    ignored: ClassVar = words("pad_token_id pretraining_tp max_window_layers")
    assumed: ClassVar = {
        **Llama.assumed, "vocab_size": 128256, "hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16,
        "max_position_embeddings": 32768, "tie_word_embeddings": True, "use_sliding_window": False, "sliding_window": None,
        "no_rope_layer_interval": 4,
    }  # fmt: skip

    def read(self) -> DecoderShape:
        c = self.raw
        layers, window = c["num_hidden_layers"], c["sliding_window"] if c["use_sliding_window"] else None
        turned = c.get("no_rope_layers")  # 1 where a layer does turn, whatever the name says
        if turned is None:
            turned = [int((number + 1) % c["no_rope_layer_interval"] != 0) for number in range(layers)]
        if len(turned) != layers:
            raise ModelError(f"config.json: {len(turned)} no_rope_layers for {layers} layers")
        types = self.layer_types([FULL if has or window is None else SLIDING for has in turned])
        kinds = tuple(Kind(window if name == SLIDING else None, 0 if has else None) for name, has in zip(types, turned, strict=True))
        return DecoderShape(
            **{**self.common(), "kv_heads": c.get("num_key_value_heads", 4) or c["num_attention_heads"]},
            kinds=kinds,
            ropes=(self.rope(),),
            attention_bias=c["attention_bias"],
            out_bias=c["attention_bias"],
            mlp_bias=c["mlp_bias"],
        )


class Olmo2(DecoderFamily):
    """Norms after attention and mlp instead of before, and of all queries and keys together."""

    model_type: ClassVar = "olmo2"
    class_name: ClassVar = "Olmo2"
    handled: ClassVar = Llama.handled - {"mlp_bias"}
    derived: ClassVar = ROPE_KEYS | words("num_key_value_heads")
    ignored: ClassVar = words("pad_token_id")
    assumed: ClassVar = {
        **{key: value for key, value in Llama.assumed.items() if key != "mlp_bias"},
        "vocab_size": 50304, "rms_norm_eps": 1e-5,
    }  # fmt: skip

    def read(self) -> DecoderShape:
        c = self.raw
        return DecoderShape(
            **self.common(),
            kinds=(Kind(),) * c["num_hidden_layers"],
            ropes=(self.rope(),),
            norm_before=False,
            norm_after=True,
            query_key_norm="all",
            attention_bias=c["attention_bias"],
            out_bias=c["attention_bias"],
        )

    def norm_rows(self) -> tuple[Weight, ...]:
        return (
            *norm("layers.{i}.post_attn_norm", "layers.{i}.post_attention_layernorm"),
            *norm("layers.{i}.post_mlp_norm", "layers.{i}.post_feedforward_layernorm"),
        )
