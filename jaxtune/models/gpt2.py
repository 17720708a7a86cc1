"""GPT-2: learned positions, layer norms, kernels stored [inputs, outputs] with q, k, v side by side."""

from __future__ import annotations

from typing import ClassVar

from jaxtune.core.errors import ModelError
from jaxtune.models.decoder import DecoderShape, Kind
from jaxtune.models.decoder_family import DecoderFamily
from jaxtune.models.family import DropoutRates, words
from jaxtune.models.weights import Weight, norm


class Gpt2(DecoderFamily):
    """Also DistilGPT2."""

    model_type: ClassVar = "gpt2"
    class_name: ClassVar = "GPT2"
    prefix: ClassVar = "transformer."
    handled: ClassVar = words(
        """vocab_size n_positions n_embd n_layer n_head activation_function resid_pdrop embd_pdrop attn_pdrop layer_norm_epsilon
        initializer_range tie_word_embeddings scale_attn_weights"""
    )
    derived: ClassVar = words("n_inner")
    ignored: ClassVar = words(
        """pad_token_id n_ctx reorder_and_upcast_attn summary_type summary_use_proj summary_activation summary_proj_to_labels
        summary_first_dropout"""
    )
    fixed: ClassVar = {"scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False, "is_decoder": False}
    unused: ClassVar = ("lm_head.*", "score.*", "*attn.bias", "*attn.masked_bias")
    assumed: ClassVar = {
        "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "activation_function": "gelu_new",
        "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1, "layer_norm_epsilon": 1e-5, "initializer_range": 0.02,
        "tie_word_embeddings": True, "scale_attn_weights": True,
    }  # fmt: skip

    def read(self) -> DecoderShape:
        c = self.raw
        if c["n_embd"] % c["n_head"]:
            raise ModelError(f"config.json: n_embd {c['n_embd']} is not a multiple of n_head {c['n_head']}")
        return DecoderShape(
            vocabulary=c["vocab_size"],
            width=c["n_embd"],
            heads=c["n_head"],
            kv_heads=c["n_head"],
            head_width=c["n_embd"] // c["n_head"],
            mlp=c.get("n_inner") or 4 * c["n_embd"],
            kinds=(Kind(rope=None),) * c["n_layer"],
            activation=c["activation_function"],
            epsilon=c["layer_norm_epsilon"],
            deviation=c["initializer_range"],
            positions=c["n_positions"],
            norm="layer",
            attention_bias=True,
            out_bias=True,
            mlp_bias=True,
            gated=False,
            attention_scale=None if c["scale_attn_weights"] else 1.0,
        )

    @property
    def language_architecture(self) -> str:
        return "GPT2LMHeadModel"

    @property
    def dropout(self) -> DropoutRates:
        """Raises:
        ModelError: embeddings and blocks were trained with different rates; one serves both here.
        """
        c = self.raw
        if c["embd_pdrop"] != c["resid_pdrop"]:
            raise ModelError(
                f"config.json: embd_pdrop {c['embd_pdrop']} differs from resid_pdrop {c['resid_pdrop']}; set model.dropout in the experiment"
            )
        return DropoutRates(hidden=c["resid_pdrop"], attention=c["attn_pdrop"])

    @property
    def max_tokens(self) -> int:
        return self.shape.positions

    def rows(self) -> tuple[Weight, ...]:
        qkv = tuple(f"layers.{{i}}.attn.{part}" for part in "qkv")
        return (
            Weight("embeddings.token.embedding", "wte.weight", "vocab embed"),
            Weight("embeddings.position.embedding", "wpe.weight", "position embed"),
            Weight(tuple(f"{path}.kernel" for path in qkv), "h.{i}.attn.c_attn.weight", "embed (stack heads) -> stack embed heads"),
            Weight(tuple(f"{path}.bias" for path in qkv), "h.{i}.attn.c_attn.bias", "(stack heads) -> stack heads"),
            *stored_as_ours("layers.{i}.attn.o", "h.{i}.attn.c_proj", "heads embed"),
            *norm("layers.{i}.attn_norm", "h.{i}.ln_1"),
            *stored_as_ours("layers.{i}.mlp.up", "h.{i}.mlp.c_fc", "embed mlp"),
            *stored_as_ours("layers.{i}.mlp.down", "h.{i}.mlp.c_proj", "mlp embed"),
            *norm("layers.{i}.mlp_norm", "h.{i}.ln_2"),
            *norm("norm", "ln_f"),
            Weight("head.embedding", "lm_head.weight", "vocab embed"),
            Weight("head.out.kernel", "score.weight", "label embed -> embed label"),
        )


def stored_as_ours(path: str, hf: str, axes: str) -> tuple[Weight, Weight]:
    """The rows of a dense layer whose kernel is stored [inputs, outputs]."""
    return Weight(f"{path}.kernel", f"{hf}.weight", axes), Weight(f"{path}.bias", f"{hf}.bias", axes.split()[-1])
