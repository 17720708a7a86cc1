"""ResNet, with basic or bottleneck blocks; its running statistics are variables of the model, beside the parameters.

Stages differ in shape, so blocks stand in plain lists, not in a stack.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxtune.core.errors import ModelError
from jaxtune.layers.activations import ACTIVATIONS
from jaxtune.layers.convolution import Convolution
from jaxtune.layers.dropout import Dropout
from jaxtune.layers.norm import BatchNorm
from jaxtune.layers.pooling import max_pool, mean_pool
from jaxtune.layers.stack import StackOptions
from jaxtune.models.family import DropoutRates, Family, Features, words
from jaxtune.models.heads import LinearHead
from jaxtune.models.weights import Weight, linear, norm
from jaxtune.parallel.placement import constrain

# Constants of the architecture: transformers' config has no key for them.
EPSILON = 1e-5
MOMENTUM = 0.1
REDUCTION = 4  # a bottleneck's inner width is a quarter of its output


@dataclass(frozen=True)
class Network:
    """Sizes and switches of one network."""

    channels: int
    stem: int
    widths: tuple[int, ...]  # of the stages
    depths: tuple[int, ...]  # blocks per stage
    bottleneck: bool
    activation: str  # of the stem and after each sum; inside a block it is always relu
    stride_first_stage: bool
    stride_first_convolution: bool  # of a bottleneck, where torchvision's has it in the second


class ConvolutionNorm(nnx.Module):
    """Convolution, batch norm and, unless None, an activation."""

    def __init__(self, inputs: int, outputs: int, *, size: int, stride: int = 1, activation: str | None, rngs: nnx.Rngs):
        self.convolution = Convolution(inputs, outputs, size=size, stride=stride, rngs=rngs)
        self.norm = BatchNorm(outputs, epsilon=EPSILON, momentum=MOMENTUM, rngs=rngs)
        self.activation = activation

    def __call__(self, x: Float[Array, "B Y X C"], training: bool, weight: Float[Array, " B"] | None) -> Float[Array, "B Y X C"]:
        x = self.norm(self.convolution(x), training, weight)
        return constrain(x if self.activation is None else ACTIVATIONS[self.activation](x), "batch", None, None, None)


class Block(nnx.Module):
    """activation(parts(x) + shortcut(x))."""

    def __init__(self, c: Network, inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs):
        if c.bottleneck:
            inner = outputs // REDUCTION
            strides = (stride, 1, 1) if c.stride_first_convolution else (1, stride, 1)
            shapes = [(inputs, inner, 1), (inner, inner, 3), (inner, outputs, 1)]
        else:
            strides = (stride, 1)
            shapes = [(inputs, outputs, 3), (outputs, outputs, 3)]
        last = len(shapes) - 1
        self.parts = nnx.List(
            ConvolutionNorm(i, o, size=size, stride=s, activation=None if at == last else "relu", rngs=rngs)
            for at, ((i, o, size), s) in enumerate(zip(shapes, strides, strict=True))
        )
        changes = inputs != outputs or stride != 1
        self.shortcut = ConvolutionNorm(inputs, outputs, size=1, stride=stride, activation=None, rngs=rngs) if changes else None
        self.activation = c.activation

    def __call__(self, x: Float[Array, "B Y X C"], training: bool, weight: Float[Array, " B"] | None) -> Float[Array, "B Y X C"]:
        y = x
        for part in self.parts:
            y = part(y, training, weight)
        return ACTIVATIONS[self.activation](y + (x if self.shortcut is None else self.shortcut(x, training, weight)))


class ResNetModel(nnx.Module):
    """image [B, Y, X, C], already normalised -> Features; pooled is the mean over the last feature map."""

    def __init__(self, c: Network, *, dtype: Any, rngs: nnx.Rngs):
        self.stem = ConvolutionNorm(c.channels, c.stem, size=7, stride=2, activation=c.activation, rngs=rngs)
        stages, inputs = [], c.stem
        for number, (outputs, depth) in enumerate(zip(c.widths, c.depths, strict=True)):
            stride = 2 if number or c.stride_first_stage else 1
            blocks = [Block(c, inputs, outputs, stride, rngs=rngs)]
            blocks += [Block(c, outputs, outputs, 1, rngs=rngs) for _ in range(depth - 1)]
            stages.append(nnx.List(blocks))
            inputs = outputs
        self.stages = nnx.List(stages)
        self.head: nnx.Module | None = nnx.data(None)
        self.dtype = jnp.dtype(dtype)

    def __call__(self, batch: Mapping[str, jax.Array], noise: Dropout | None = None, training: bool = False) -> Features:
        del noise  # no dropout anywhere in a ResNet
        weight = batch.get("loss_weight")
        real = None if weight is None else (weight > 0).astype(jnp.float32)
        x = constrain(batch["image"].astype(self.dtype), "batch", None, None, None)
        x = max_pool(self.stem(x, training, real), size=3, stride=2)
        for stage in self.stages:
            for block in stage:
                x = block(x, training, real)
        return Features(mean_pool(x), x.reshape(x.shape[0], -1, x.shape[-1]))


class ResNet(Family):
    """ResNet 18 to 152 and their odd relatives."""

    model_type: ClassVar = "resnet"
    domain: ClassVar = "image"
    prefix: ClassVar = "resnet."
    stacked: ClassVar = False  # the stages differ in shape
    handled: ClassVar = words(
        """num_channels embedding_size hidden_sizes depths layer_type hidden_act downsample_in_first_stage downsample_in_bottleneck"""
    )
    ignored: ClassVar = frozenset({"out_features", "out_indices", "stage_names"})  # which feature maps a detector would take
    fixed: ClassVar = {"is_encoder_decoder": False, "chunk_size_feed_forward": 0}
    unused: ClassVar = ("classifier.*", "*.num_batches_tracked")

    @property
    def architecture(self) -> str:
        return "ResNetForImageClassification"

    @property
    def network(self) -> Network:
        c = self.raw
        problems = []
        if len(c["hidden_sizes"]) != len(c["depths"]):
            problems.append(f"config.json: hidden_sizes {c['hidden_sizes']} and depths {c['depths']} must have one number per stage each")
        if c["layer_type"] not in ("basic", "bottleneck"):
            problems.append(f'config.json: layer_type "{c["layer_type"]}" is not supported (known: basic, bottleneck)')
        if c["hidden_act"] not in ACTIVATIONS:
            problems.append(f'config.json: activation "{c["hidden_act"]}" is not supported (known: {", ".join(ACTIVATIONS)})')
        if problems:
            raise ModelError(problems)
        return Network(
            channels=c["num_channels"],
            stem=c["embedding_size"],
            widths=tuple(c["hidden_sizes"]),
            depths=tuple(c["depths"]),
            bottleneck=c["layer_type"] == "bottleneck",
            activation=c["hidden_act"],
            stride_first_stage=c["downsample_in_first_stage"],
            stride_first_convolution=c["downsample_in_bottleneck"],
        )

    @property
    def width(self) -> int:
        return self.network.widths[-1]

    @property
    def dropout(self) -> DropoutRates:
        return DropoutRates()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return 0, 0, self.network.channels

    @property
    def layers(self) -> int:
        """Blocks count as layers."""
        return sum(self.network.depths)

    def layer_of(self, name: str) -> int:
        parts = name.split(".")
        if parts[0] != "stages":
            return super().layer_of(name)
        return sum(self.network.depths[: int(parts[1])]) + int(parts[2]) + 1

    def backbone(self, *, options: StackOptions, dtype: Any, rngs: nnx.Rngs) -> nnx.Module:
        del options  # nothing is stacked
        return ResNetModel(self.network, dtype=dtype, rngs=rngs)

    def head(self, outputs: int, *, rngs: nnx.Rngs) -> nnx.Module:
        return LinearHead(self.width, outputs, deviation=(3 * self.width) ** -0.5, rngs=rngs)

    def rows(self) -> tuple[Weight, ...]:
        layer = "encoder.stages.{s}.layers.{l}"
        return (
            *convolution_norm("stem", "embedder.embedder"),
            *convolution_norm("stages.{s}.{l}.parts.{k}", layer + ".layer.{k}"),
            *convolution_norm("stages.{s}.{l}.shortcut", layer + ".shortcut"),
            *linear("head.out", "classifier.1", "label embed -> embed label"),
        )

    def buffers(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """transformers' counter of training batches, which nothing reads while the momentum is fixed."""
        return {name: np.zeros((), np.int64) for name in counters(tensors)}


def counters(names: Iterable[str]) -> list[str]:
    """The counter beside every running mean."""
    end = ".running_mean"
    return [name.removesuffix(end) + ".num_batches_tracked" for name in names if name.endswith(end)]


def convolution_norm(path: str, hf: str) -> tuple[Weight, ...]:
    return (
        Weight(f"{path}.convolution.kernel", f"{hf}.convolution.weight", "out_channels inputs y x -> y x inputs out_channels"),
        *norm(f"{path}.norm", f"{hf}.normalization", "out_channels"),
        Weight(f"{path}.norm.mean", f"{hf}.normalization.running_mean", "out_channels"),
        Weight(f"{path}.norm.var", f"{hf}.normalization.running_var", "out_channels"),
    )
