"""ViT and DeiT: one pre-norm encoder over image patches, with a class token and, for DeiT, a distillation token before them.

Another image size than the checkpoint's only changes the position rows, by a fixed linear map at run time, so the stored table stays
the checkpoint's and exports unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxtune.core.errors import ModelError
from jaxtune.layers.activations import ACTIVATIONS
from jaxtune.layers.dropout import Dropout, dropout
from jaxtune.layers.linear import Linear
from jaxtune.layers.norm import LayerNorm
from jaxtune.layers.patches import PatchEmbedding, resize_positions
from jaxtune.layers.self_attention import SelfAttention
from jaxtune.layers.stack import Stack, StackOptions
from jaxtune.models.family import DropoutRates, Family, Features, words
from jaxtune.models.heads import LinearHead
from jaxtune.models.weights import Weight, linear, norm
from jaxtune.parallel.placement import constrain


@dataclass(frozen=True)
class VisionEncoder:
    """Sizes and switches of one encoder; sizes of images and patches are (height, width)."""

    image: tuple[int, int]
    patch: tuple[int, int]
    channels: int
    width: int
    layers: int
    heads: int
    mlp: int
    activation: str
    epsilon: float
    deviation: float
    attention_bias: bool
    distillation: bool  # a second special token, after the class token

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across at the checkpoint's image size."""
        return self.image[0] // self.patch[0], self.image[1] // self.patch[1]


class Block(nnx.Module):
    """x = x + attention(norm(x)); x = x + mlp(norm(x))."""

    def __init__(self, c: VisionEncoder, *, options: StackOptions, rngs: nnx.Rngs):
        self.attn_norm = LayerNorm(c.width, epsilon=c.epsilon, rngs=rngs)
        self.attn = SelfAttention(
            c.width, c.heads, bias=c.attention_bias, deviation=c.deviation, implementation=options.attention, rngs=rngs
        )
        self.mlp_norm = LayerNorm(c.width, epsilon=c.epsilon, rngs=rngs)
        self.up = Linear(c.width, c.mlp, deviation=c.deviation, rngs=rngs)
        self.down = Linear(c.mlp, c.width, deviation=c.deviation, rngs=rngs)
        self.activation = c.activation

    def __call__(self, x: Float[Array, "B T D"], *, noise: Dropout | None) -> Float[Array, "B T D"]:
        y = self.attn(self.attn_norm(x), None, noise)
        x = constrain(x + dropout(y, noise, "attn.out"), "batch", "token", None)
        h = constrain(ACTIVATIONS[self.activation](self.up(self.mlp_norm(x))), "batch", "token", "mlp")
        return constrain(x + dropout(self.down(h), noise, "mlp.out"), "batch", "token", None)


class Embeddings(nnx.Module):
    """[class, (distillation,) patches] + positions."""

    def __init__(self, c: VisionEncoder, *, rngs: nnx.Rngs):
        def table(*shape: int) -> nnx.Param:
            return nnx.Param(c.deviation * jax.random.truncated_normal(rngs.params(), -2.0, 2.0, shape, jnp.float32))

        self.patches = PatchEmbedding(c.patch, c.channels, c.width, deviation=c.deviation, rngs=rngs)
        self.cls = table(c.width)
        self.distillation = table(c.width) if c.distillation else None
        self.position = table(1 + c.distillation + c.grid[0] * c.grid[1], c.width)
        self.grid = c.grid

    def __call__(self, image: Float[Array, "B Y X C"], noise: Dropout | None, dtype: Any) -> Float[Array, "B T D"]:
        patches = self.patches(image.astype(dtype))
        special = jnp.stack([token[...] for token in (self.cls, self.distillation) if token is not None])
        position = self.position[...]
        first, rest = position[: len(special)], position[len(special) :]
        rest = resize_positions(rest, self.grid, self.patches.grid(image.shape))
        special = jnp.broadcast_to((special + first).astype(dtype)[None], (image.shape[0], *special.shape))
        return dropout(jnp.concatenate([special, patches + rest.astype(dtype)[None]], 1), noise, "embeddings")


class VisionModel(nnx.Module):
    """image [B, Y, X, C], already normalised -> Features; pooled is the class token."""

    def __init__(self, c: VisionEncoder, *, options: StackOptions, dtype: Any, rngs: nnx.Rngs):
        self.embeddings = Embeddings(c, rngs=rngs)
        self.layers = Stack(lambda rngs: Block(c, options=options, rngs=rngs), c.layers, options=options, rngs=rngs)
        self.norm = LayerNorm(c.width, epsilon=c.epsilon, rngs=rngs)
        self.head: nnx.Module | None = nnx.data(None)
        self.dtype = jnp.dtype(dtype)

    def __call__(self, batch: Mapping[str, jax.Array], noise: Dropout | None = None, training: bool = False) -> Features:
        x = constrain(self.embeddings(batch["image"], noise, self.dtype), "batch", "token", None)
        x = self.layers(x, noise=noise)
        # The class token is normed by itself: a classifier asks for nothing else, and the compiler drops the norm of all the others.
        return Features(self.norm(x[:, 0]), self.norm(x))


class TeacherHead(nnx.Module):
    """The mean of two classifiers, one on the class token and one on the distillation token, in float32."""

    def __init__(self, width: int, outputs: int, *, deviation: float, rngs: nnx.Rngs):
        self.out = Linear(width, outputs, deviation=deviation, rngs=rngs)
        self.distillation = Linear(width, outputs, deviation=deviation, rngs=rngs)

    def __call__(self, features: Features, noise: Dropout | None = None) -> Float[Array, "B C"]:
        assert features.tokens is not None
        first = dropout(features.pooled, noise, "head.in", "head").astype(jnp.float32)
        second = dropout(features.tokens[:, 1], noise, "head.distillation", "head").astype(jnp.float32)
        return (self.out(first) + self.distillation(second)) / 2


class Vit(Family):
    """ViT: a class token, learned positions, one product as head."""

    model_type: ClassVar = "vit"
    domain: ClassVar = "image"
    prefix: ClassVar = "vit."
    handled: ClassVar = words(
        """hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act hidden_dropout_prob attention_probs_dropout_prob
        layer_norm_eps image_size patch_size num_channels qkv_bias initializer_range"""
    )
    # Masked-image modelling and the bare model's pooler, which no classifier has.
    ignored: ClassVar = frozenset({"encoder_stride", "pooler_output_size", "pooler_act"})
    fixed: ClassVar = {"is_encoder_decoder": False, "chunk_size_feed_forward": 0, "pruned_heads": {}}
    unused: ClassVar = (
        "classifier.*",
        "cls_classifier.*",
        "distillation_classifier.*",
        "*pooler.dense.*",
        "*embeddings.mask_token",
        "decoder.*",
    )
    distillation: ClassVar = False

    @property
    def architecture(self) -> str:
        return "ViTForImageClassification"

    @property
    def encoder(self) -> VisionEncoder:
        c = self.raw
        image, patch = pair(c["image_size"]), pair(c["patch_size"])
        problems = []
        if c["hidden_size"] % c["num_attention_heads"]:
            problems.append(
                f"config.json: hidden_size {c['hidden_size']} is not a multiple of num_attention_heads {c['num_attention_heads']}"
            )
        if c["hidden_act"] not in ACTIVATIONS:
            problems.append(f'config.json: activation "{c["hidden_act"]}" is not supported (known: {", ".join(ACTIVATIONS)})')
        if image[0] < patch[0] or image[1] < patch[1]:
            problems.append(f"config.json: image_size {c['image_size']} is smaller than patch_size {c['patch_size']}")
        if problems:
            raise ModelError(problems)
        return VisionEncoder(
            image=image,
            patch=patch,
            channels=c["num_channels"],
            width=c["hidden_size"],
            layers=c["num_hidden_layers"],
            heads=c["num_attention_heads"],
            mlp=c["intermediate_size"],
            activation=c["hidden_act"],
            epsilon=c["layer_norm_eps"],
            deviation=c["initializer_range"],
            attention_bias=c["qkv_bias"],
            distillation=self.distillation,
        )

    @property
    def width(self) -> int:
        return self.encoder.width

    @property
    def layers(self) -> int:
        return self.encoder.layers

    @property
    def dropout(self) -> DropoutRates:
        return DropoutRates(self.raw["hidden_dropout_prob"], self.raw["attention_probs_dropout_prob"])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return *self.encoder.image, self.encoder.channels

    def backbone(self, *, options: StackOptions, dtype: Any, rngs: nnx.Rngs) -> nnx.Module:
        return VisionModel(self.encoder, options=options, dtype=dtype, rngs=rngs)

    def head(self, outputs: int, *, rngs: nnx.Rngs) -> nnx.Module:
        return LinearHead(self.width, outputs, deviation=self.encoder.deviation, rngs=rngs)

    def rows(self) -> tuple[Weight, ...]:
        layer, attn = "encoder.layer.{i}", "encoder.layer.{i}.attention"
        patches = "embeddings.patch_embeddings.projection"
        return (
            Weight("embeddings.patches.kernel", f"{patches}.weight", "embed inputs y x -> y x inputs embed"),
            Weight("embeddings.patches.bias", f"{patches}.bias", "embed"),
            Weight("embeddings.cls", "embeddings.cls_token", "1 1 embed -> embed"),
            Weight("embeddings.distillation", "embeddings.distillation_token", "1 1 embed -> embed"),
            Weight("embeddings.position", "embeddings.position_embeddings", "1 position embed -> position embed"),
            *norm("layers.{i}.attn_norm", f"{layer}.layernorm_before"),
            *linear("layers.{i}.attn.q", f"{attn}.attention.query", "heads embed -> embed heads"),
            *linear("layers.{i}.attn.k", f"{attn}.attention.key", "heads embed -> embed heads"),
            *linear("layers.{i}.attn.v", f"{attn}.attention.value", "heads embed -> embed heads"),
            *linear("layers.{i}.attn.o", f"{attn}.output.dense", "embed heads -> heads embed"),
            *norm("layers.{i}.mlp_norm", f"{layer}.layernorm_after"),
            *linear("layers.{i}.up", f"{layer}.intermediate.dense", "mlp embed -> embed mlp"),
            *linear("layers.{i}.down", f"{layer}.output.dense", "embed mlp -> mlp embed"),
            *norm("norm", "layernorm"),
            *self.head_rows(),
        )

    def head_rows(self) -> tuple[Weight, ...]:
        return linear("head.out", "classifier", "label embed -> embed label")


class Deit(Vit):
    """DeiT: ViT with a distillation token, and one classifier or two ("with teacher")."""

    model_type: ClassVar = "deit"
    prefix: ClassVar = "deit."
    distillation: ClassVar = True

    @property
    def with_teacher(self) -> bool:
        return "DeiTForImageClassificationWithTeacher" in (self.raw.get("architectures") or ())

    @property
    def architecture(self) -> str:
        return "DeiTForImageClassificationWithTeacher" if self.with_teacher else "DeiTForImageClassification"

    def head(self, outputs: int, *, rngs: nnx.Rngs) -> nnx.Module:
        if not self.with_teacher:
            return super().head(outputs, rngs=rngs)
        return TeacherHead(self.width, outputs, deviation=self.encoder.deviation, rngs=rngs)

    def head_rows(self) -> tuple[Weight, ...]:
        if not self.with_teacher:
            return super().head_rows()
        return (
            *linear("head.out", "cls_classifier", "label embed -> embed label"),
            *linear("head.distillation", "distillation_classifier", "label embed -> embed label"),
        )


def pair(size: int | list[int]) -> tuple[int, int]:
    """(height, width) of a config's size, which may be one number."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])
