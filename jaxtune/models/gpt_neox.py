"""GPT-NeoX and Pythia: attention and mlp side by side, a quarter of each head turned, q, k, v interleaved head by head."""

from __future__ import annotations

from typing import Any, ClassVar

from jaxtune.models.decoder import DecoderShape, Kind
from jaxtune.models.decoder_family import ROPE_KEYS, DecoderFamily
from jaxtune.models.family import DropoutRates, words
from jaxtune.models.weights import Weight, linear, norm


class GptNeoX(DecoderFamily):
    """Also Dolly, StableLM's first models and others stored as one."""

    model_type: ClassVar = "gpt_neox"
    class_name: ClassVar = "GPTNeoX"
    prefix: ClassVar = "gpt_neox."
    handled: ClassVar = words(
        """vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act attention_dropout hidden_dropout
        max_position_embeddings initializer_range layer_norm_eps tie_word_embeddings use_parallel_residual attention_bias"""
    )
    derived: ClassVar = ROPE_KEYS | words("rotary_pct rotary_emb_base")
    ignored: ClassVar = words("pad_token_id classifier_dropout")  # of token classification alone
    fixed: ClassVar = {"is_decoder": False}
    unused: ClassVar = ("embed_out.*", "lm_head.*", "score.*", "*attention.bias", "*attention.masked_bias", "*rotary_emb.inv_freq")
    assumed: ClassVar = {
        "vocab_size": 50432, "hidden_size": 6144, "num_hidden_layers": 44, "num_attention_heads": 64, "intermediate_size": 24576,
        "hidden_act": "gelu", "attention_dropout": 0.0, "hidden_dropout": 0.0, "max_position_embeddings": 2048,
        "initializer_range": 0.02, "layer_norm_eps": 1e-5, "tie_word_embeddings": False, "use_parallel_residual": True,
        "attention_bias": True,
    }  # fmt: skip

    def read(self) -> DecoderShape:
        c = self.raw
        return DecoderShape(
            vocabulary=c["vocab_size"],
            width=c["hidden_size"],
            heads=c["num_attention_heads"],
            kv_heads=c["num_attention_heads"],
            head_width=self.head_width,
            mlp=c["intermediate_size"],
            kinds=(Kind(),) * c["num_hidden_layers"],
            activation=c["hidden_act"],
            epsilon=c["layer_norm_eps"],
            deviation=c["initializer_range"],
            ropes=(self.rope(),),
            norm="layer",
            parallel=c["use_parallel_residual"],
            attention_bias=c["attention_bias"],
            out_bias=c["attention_bias"],
            mlp_bias=True,
            gated=False,
        )

    def rope_settings(self) -> dict[str, Any]:
        settings = super().rope_settings()
        own = (self.raw.get("rope_scaling") or self.raw.get("rope_parameters") or {}).get("rope_theta")
        settings["rope_theta"] = own or self.raw.get("rotary_emb_base") or self.theta
        settings.setdefault("partial_rotary_factor", 0.25 if self.raw.get("rotary_pct") is None else self.raw["rotary_pct"])
        return settings

    @property
    def dropout(self) -> DropoutRates:
        return DropoutRates(hidden=self.raw["hidden_dropout"], attention=self.raw["attention_dropout"])

    def rows(self) -> tuple[Weight, ...]:
        attn, mlp = "layers.{i}.attention", "layers.{i}.mlp"
        qkv, each = tuple(f"layers.{{i}}.attn.{part}" for part in "qkv"), (("each", self.shape.head_width), ("stack", 3))
        return (
            Weight("embeddings.token.embedding", "embed_in.weight", "vocab embed"),
            Weight(
                tuple(f"{path}.kernel" for path in qkv), f"{attn}.query_key_value.weight",
                "(heads stack each) embed -> stack embed (heads each)", sizes=each,
            ),
            Weight(
                tuple(f"{path}.bias" for path in qkv), f"{attn}.query_key_value.bias", "(heads stack each) -> stack (heads each)", sizes=each
            ),
            *linear("layers.{i}.attn.o", f"{attn}.dense", "embed heads -> heads embed"),
            *norm("layers.{i}.attn_norm", "layers.{i}.input_layernorm"),
            *norm("layers.{i}.mlp_norm", "layers.{i}.post_attention_layernorm"),
            *linear("layers.{i}.mlp.up", f"{mlp}.dense_h_to_4h", "mlp embed -> embed mlp"),
            *linear("layers.{i}.mlp.down", f"{mlp}.dense_4h_to_h", "embed mlp -> mlp embed"),
            *norm("norm", "final_layer_norm"),
            Weight("head.embedding", "embed_out.weight", "vocab embed"),
            Weight("head.out.kernel", "score.weight", "label embed -> embed label"),
        )  # fmt: skip
