"""Qwen 2, 2.5 and 3, and the mixture of experts of Qwen 3."""

from __future__ import annotations

from typing import ClassVar

from jaxtune.models.decoder import DecoderShape, Kind, Mixture
from jaxtune.models.decoder_family import FULL, ROPE_KEYS, SLIDING, DecoderFamily, kinds_of
from jaxtune.models.family import words
from jaxtune.models.weights import Weight, linear


class Qwen2(DecoderFamily):
    """Llama with biases of q, k and v; a sliding window, where it is used, in the layers from max_window_layers on."""

    model_type: ClassVar = "qwen2"
    class_name: ClassVar = "Qwen2"
    handled: ClassVar = words(
        """vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads hidden_act
        max_position_embeddings initializer_range rms_norm_eps tie_word_embeddings attention_dropout use_sliding_window
        max_window_layers"""
    )
    derived: ClassVar = ROPE_KEYS | words("layer_types sliding_window")
    ignored: ClassVar = words("pad_token_id")
    fixed: ClassVar = {"use_mrope": False}
    assumed: ClassVar = {
        "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "hidden_act": "silu", "max_position_embeddings": 32768, "initializer_range": 0.02,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "attention_dropout": 0.0, "use_sliding_window": False,
        "max_window_layers": 28,
    }  # fmt: skip

    def read(self) -> DecoderShape:
        return DecoderShape(**self.common(), kinds=self.kinds, ropes=(self.rope(),), attention_bias=True)

    @property
    def window(self) -> int | None:
        return self.raw.get("sliding_window", 4096) if self.raw["use_sliding_window"] else None

    @property
    def kinds(self) -> tuple[Kind, ...]:
        c, window = self.raw, self.window
        from_here = c["max_window_layers"] if window is not None else c["num_hidden_layers"]
        types = [SLIDING if number >= from_here else FULL for number in range(c["num_hidden_layers"])]
        return kinds_of(self.layer_types(types), window)


class Qwen3(Qwen2):
    """Queries and keys normed head by head instead of biases."""

    model_type: ClassVar = "qwen3"
    class_name: ClassVar = "Qwen3"
    handled: ClassVar = Qwen2.handled | words("head_dim attention_bias")
    fixed: ClassVar = {}
    assumed: ClassVar = {**Qwen2.assumed, "head_dim": 128, "attention_bias": False}

    def read(self) -> DecoderShape:
        bias = self.raw["attention_bias"]
        return DecoderShape(
            **self.common(), kinds=self.kinds, ropes=(self.rope(),), query_key_norm="head", attention_bias=bias, out_bias=bias
        )


class Qwen3Moe(Qwen3):
    """Qwen 3 with experts in every layer."""

    model_type: ClassVar = "qwen3_moe"
    class_name: ClassVar = "Qwen3Moe"
    handled: ClassVar = (Qwen3.handled | words("moe_intermediate_size num_experts_per_tok norm_topk_prob")) - words(
        "max_window_layers head_dim"
    )
    derived: ClassVar = ROPE_KEYS | words("head_dim sliding_window num_experts num_local_experts")
    ignored: ClassVar = words("pad_token_id output_router_logits router_aux_loss_coef max_window_layers")
    fixed: ClassVar = {"decoder_sparse_step": 1, "mlp_only_layers": []}
    assumed: ClassVar = {
        **{key: value for key, value in Qwen3.assumed.items() if key not in ("max_window_layers", "head_dim")},
        "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24, "num_key_value_heads": 4, "moe_intermediate_size": 768,
        "num_experts_per_tok": 8, "norm_topk_prob": False,
    }  # fmt: skip

    def read(self) -> DecoderShape:
        c, bias = self.raw, self.raw["attention_bias"]
        return DecoderShape(
            **self.common(),
            kinds=self.kinds,
            ropes=(self.rope(),),
            query_key_norm="head",
            attention_bias=bias,
            out_bias=bias,
            mixture=Mixture(self.experts, c["num_experts_per_tok"], c["moe_intermediate_size"], c["norm_topk_prob"]),
        )

    @property
    def experts(self) -> int:
        return self.raw.get("num_local_experts") or self.raw.get("num_experts") or 128

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return (Kind(self.window),) * self.raw["num_hidden_layers"]

    def mlp_rows(self) -> tuple[Weight, ...]:
        each, many = "layers.{i}.mlp.experts.{n}", self.experts
        return (
            *linear("layers.{i}.mlp.router", "layers.{i}.mlp.gate", "experts embed -> embed experts"),
            Weight("layers.{i}.mlp.experts.gate", f"{each}.gate_proj.weight", "mlp embed -> embed mlp", many=many),
            Weight("layers.{i}.mlp.experts.up", f"{each}.up_proj.weight", "mlp embed -> embed mlp", many=many),
            Weight("layers.{i}.mlp.experts.down", f"{each}.down_proj.weight", "embed mlp -> mlp embed", many=many),
        )
