"""What the families of language models share: how rope, windows and tied heads are read, and the weight table most of them have.

A family states its config keys and its `DecoderShape`; module, heads and limits follow from these. Keys whose absence has a meaning of
its own (`head_dim`, `num_key_value_heads`, `layer_types`, the rope settings) are `derived`, never filled in from transformers' class.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

from flax import nnx

from jaxtune.core.errors import ModelError
from jaxtune.layers.activations import ACTIVATIONS
from jaxtune.layers.rotary import Rope, read_rope
from jaxtune.layers.stack import StackOptions
from jaxtune.models.decoder import Decoder, DecoderShape, Kind
from jaxtune.models.family import DropoutRates, Family, words
from jaxtune.models.heads import LanguageHead, LinearHead
from jaxtune.models.weights import Weight, linear, norm

ROPE_KEYS = words("rope_theta rope_scaling rope_parameters")
SLIDING, FULL = "sliding_attention", "full_attention"


class DecoderFamily(Family):
    """A family that generates text. Subclasses give `class_name`, `shape` and what `Family` asks for."""

    domain: ClassVar = "text"
    prefix: ClassVar = "model."
    generates: ClassVar = True
    class_name: ClassVar[str]  # of transformers' classes, "Llama"
    renewable: ClassVar = ("head.out.*",)
    unused: ClassVar = ("lm_head.*", "score.*", "*rotary_emb.inv_freq")
    theta: ClassVar[float] = 10000.0  # what transformers assumes for rope_theta

    @cached_property
    def shape(self) -> DecoderShape:
        """Sizes and switches.

        Raises:
            ModelError: config.json contradicts itself or asks for what is not implemented (all such problems).
        """
        shape = self.read()
        problems = []
        if shape.heads % shape.kv_heads:
            problems.append(f"config.json: {shape.heads} attention heads are not a multiple of {shape.kv_heads} key-value heads")
        if shape.activation not in ACTIVATIONS:
            problems.append(f'config.json: activation "{shape.activation}" is not supported (known: {", ".join(ACTIVATIONS)})')
        if problems:
            raise ModelError(problems)
        return shape

    def read(self) -> DecoderShape:
        """config.json as a shape, before the checks that all families share."""
        raise NotImplementedError

    # -- parts of reading -------------------------------------------------------------------------------------------------

    def common(self) -> dict[str, Any]:
        """The fields that most config.json name alike."""
        c = self.raw
        return {
            "vocabulary": c["vocab_size"],
            "width": c["hidden_size"],
            "heads": c["num_attention_heads"],
            "kv_heads": c.get("num_key_value_heads") or c["num_attention_heads"],
            "head_width": self.head_width,
            "mlp": c["intermediate_size"],
            "activation": self.activation,
            "epsilon": c["rms_norm_eps"],
            "deviation": c["initializer_range"],
        }

    @property
    def activation(self) -> str:
        return self.raw["hidden_act"]

    @property
    def head_width(self) -> int:
        """Given, or the width divided among the heads.

        Raises:
            ModelError: it does not divide.
        """
        c = self.raw
        if given := c.get("head_dim"):
            return given
        if c["hidden_size"] % c["num_attention_heads"]:
            raise ModelError(
                f"config.json: hidden_size {c['hidden_size']} is not a multiple of num_attention_heads {c['num_attention_heads']}"
            )
        return c["hidden_size"] // c["num_attention_heads"]

    def rope_settings(self) -> dict[str, Any]:
        """`rope_parameters`, or the older `rope_scaling`, with theta in it; as transformers prefers them."""
        c = self.raw
        settings = dict(c.get("rope_scaling") or c.get("rope_parameters") or {})
        theta = settings.get("rope_theta") or c.get("rope_theta") or self.theta
        return {**{key: value for key, value in settings.items() if value is not None}, "rope_theta": theta}

    def rope(self, settings: Mapping[str, Any] | None = None) -> Rope:
        """One rope for the whole model."""
        settings = self.rope_settings() if settings is None else settings
        return read_rope(settings, head_width=self.head_width, context=self.raw["max_position_embeddings"])

    def layer_types(self, otherwise: list[str]) -> list[str]:
        """`layer_types` where given, checked; else those that follow from other keys.

        Raises:
            ModelError: a type that is neither sliding nor full attention, or another number of layers.
        """
        types = self.raw.get("layer_types") or otherwise
        strange = sorted(set(types) - {SLIDING, FULL})
        if strange:
            raise ModelError(f"config.json: layer_types {', '.join(strange)} are not implemented (known: {SLIDING}, {FULL})")
        if len(types) != self.raw["num_hidden_layers"]:
            raise ModelError(f"config.json: {len(types)} layer_types for {self.raw['num_hidden_layers']} layers")
        return types

    # -- what Family asks for ---------------------------------------------------------------------------------------------

    @property
    def tied(self) -> bool:
        return bool(self.raw["tie_word_embeddings"])

    @property
    def soft_cap(self) -> float | None:
        """Of the logits."""
        return None

    @property
    def architecture(self) -> str:
        return f"{self.class_name}ForSequenceClassification"

    @property
    def language_architecture(self) -> str:
        return f"{self.class_name}ForCausalLM"

    @property
    def width(self) -> int:
        return self.shape.width

    @property
    def layers(self) -> int:
        return self.shape.layers

    @property
    def vocabulary(self) -> int:
        return self.shape.vocabulary

    @property
    def dropout(self) -> DropoutRates:
        return DropoutRates(attention=self.raw["attention_dropout"] or 0.0)

    @property
    def max_tokens(self) -> int:
        """The texts that the checkpoint is made for, with its scaling."""
        context, settings = self.raw["max_position_embeddings"], self.rope_settings()
        kind = settings.get("rope_type") or settings.get("type")
        if kind in ("linear", "dynamic"):
            return int(context * settings["factor"])
        if kind == "yarn" and settings.get("factor"):
            return max(context, int(settings["factor"] * (settings.get("original_max_position_embeddings") or context)))
        return context

    def backbone(self, *, options: StackOptions, dtype: Any, rngs: nnx.Rngs) -> nnx.Module:
        return Decoder(self.shape, options=options, dtype=dtype, rngs=rngs)

    def head(self, outputs: int, *, rngs: nnx.Rngs) -> nnx.Module:
        return LinearHead(self.width, outputs, bias=False, deviation=self.shape.deviation, rngs=rngs)

    def language_head(self, *, rngs: nnx.Rngs) -> nnx.Module:
        c = self.shape
        return LanguageHead(c.vocabulary, c.width, tied=self.tied, soft_cap=self.soft_cap, deviation=c.deviation, rngs=rngs)

    def rows(self) -> tuple[Weight, ...]:
        return (
            Weight("embeddings.token.embedding", "embed_tokens.weight", "vocab embed"),
            *self.layer_rows(),
            *norm("norm", "norm"),
            Weight("head.embedding", "lm_head.weight", "vocab embed"),
            Weight("head.out.kernel", "score.weight", "label embed -> embed label"),
        )

    def layer_rows(self) -> tuple[Weight, ...]:
        return *self.attention_rows(), *self.mlp_rows(), *self.norm_rows()

    def attention_rows(self) -> tuple[Weight, ...]:
        attn = "layers.{i}.self_attn"
        return (
            *linear("layers.{i}.attn.q", f"{attn}.q_proj", "heads embed -> embed heads"),
            *linear("layers.{i}.attn.k", f"{attn}.k_proj", "kv_heads embed -> embed kv_heads"),
            *linear("layers.{i}.attn.v", f"{attn}.v_proj", "kv_heads embed -> embed kv_heads"),
            *linear("layers.{i}.attn.o", f"{attn}.o_proj", "embed heads -> heads embed"),
            Weight("layers.{i}.attn.q_norm.scale", f"{attn}.q_norm.weight", "head"),
            Weight("layers.{i}.attn.k_norm.scale", f"{attn}.k_norm.weight", "head"),
        )

    def mlp_rows(self) -> tuple[Weight, ...]:
        mlp = "layers.{i}.mlp"
        return (
            *linear("layers.{i}.mlp.gate", f"{mlp}.gate_proj", "mlp embed -> embed mlp"),
            *linear("layers.{i}.mlp.up", f"{mlp}.up_proj", "mlp embed -> embed mlp"),
            *linear("layers.{i}.mlp.down", f"{mlp}.down_proj", "embed mlp -> mlp embed"),
        )

    def norm_rows(self) -> tuple[Weight, ...]:
        """Norms before attention and mlp, by Llama's names."""
        return (
            *norm("layers.{i}.attn_norm", "layers.{i}.input_layernorm"),
            *norm("layers.{i}.mlp_norm", "layers.{i}.post_attention_layernorm"),
        )


def kinds_of(types: list[str], window: int | None, ropes: Mapping[str, int] | None = None) -> tuple[Kind, ...]:
    """A kind per layer type; `ropes` says which rope a type has where they differ."""
    return tuple(Kind(window if name == SLIDING else None, 0 if ropes is None else ropes[name]) for name in types)
