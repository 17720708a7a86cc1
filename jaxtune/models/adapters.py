"""Adapters: a few trained parameters beside frozen dense layers. Which layers get one, of what rank, and how it starts.

An adapter is part of the module: `attach` puts its parameters on the dense layers themselves (`layers.3.attn.q.lora_a`), so freezing,
sharding, checkpoints and rates treat them like any other parameter. Layers of a stack that do not get the same adapter cannot be rows of
the same arrays; the stack is then cut between them, as it is between layers that train and layers that do not.
"""

from __future__ import annotations

import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from pydantic import Field

from jaxtune.core.component import Component, nearest
from jaxtune.core.errors import ConfigError
from jaxtune.core.paths import compile_pattern, matches
from jaxtune.layers import quantized, stack
from jaxtune.layers.linear import Form, Linear, column_lengths, float_kernel
from jaxtune.layers.quantized import BLOCK, Format, QuantizedKernel, dequantize, fits

if TYPE_CHECKING:
    from jaxtune.models.load import Base

PARTS = frozenset({"lora_a", "lora_b", "magnitude", "scale_in", "scale_out"})  # names of what an adapter adds to a dense layer
Sizes = Mapping[str, tuple[int, int]]  # per-layer path of a dense layer -> (inputs, outputs)
Patterns = tuple[str, ...]


class Attachment(Protocol):
    """An adapter ready to be attached."""

    def forms(self, linears: Sizes) -> Mapping[str, Form]:
        """What each dense layer gets, by per-layer path; layers that get nothing are left out."""
        ...

    def numbers(self, linears: Sizes, params: Mapping[str, tuple[int, ...]]) -> Mapping[str, np.ndarray]:
        """Values to start from, by per-layer parameter name, where they are not fresh; `params` are all shapes."""
        ...


class Adapter(Component):
    """Chosen by `model.adapter`. `phases.train: ["*.lora_*"]` (`["*.scale_*"]` for IA3) then trains it alone."""

    export: Literal["merged", "peft", "both"] = Field(
        "both",
        description="what a run hands back: merged, a whole model; peft, the adapter in PEFT's format; both, the adapter in export/adapter",
    )

    @property
    def dropout_rate(self) -> float:
        """Of the adapter's inputs."""
        return 0.0

    @abstractmethod
    def open(self, base: Base, has_head: bool) -> Attachment:
        """Reads what the adapter needs from files.

        Raises:
            ConfigError: they are not there, or hold what is not supported.
        """

    def structure(self) -> Adapter:
        """Without the settings that are traced: adapters of equal structure share their programs."""
        return self


class LowRank(Adapter):
    """An adapter with a product of two thin matrices."""

    dropout: float = Field(0.0, ge=0, lt=1, description="of the inputs of A, while training")

    @property
    def dropout_rate(self) -> float:
        return self.dropout

    def structure(self) -> Adapter:
        return self.model_copy(update={"dropout": float(self.dropout > 0)})


class Override(Component):
    """Rank or alpha of some of the layers."""

    rank: int | None = Field(default=None, ge=1, description="default: as the others")
    alpha: float | None = Field(default=None, gt=0, description="default: as the others")


class Lora(LowRank):
    """LoRA: y = x W + alpha / rank x A B, with A [I, R] random and B [R, O] zero at the start."""

    targets: Patterns = Field(("layers.*",), min_length=1, description='dense layers by pattern, e.g. ["layers.*.attn.{q,v}"]')
    rank: int = Field(16, ge=1, description="width of the product A B")
    alpha: float = Field(32.0, gt=0, description="the product is scaled by alpha / rank")
    overrides: dict[str, Override] = Field(
        default_factory=dict, description="pattern -> {rank, alpha} of some targets; the last pattern that matches decides"
    )
    rslora: bool = Field(False, description="scale by alpha / sqrt(rank), so that high ranks learn as quickly as low ones")
    init: Literal["kaiming", "gaussian"] = Field(
        "kaiming", description="A at the start: kaiming, uniform within 1 / sqrt(inputs); gaussian, normal with deviation 1 / rank"
    )
    magnitude: ClassVar[bool] = False

    def open(self, base: Base, has_head: bool) -> Attachment:
        return self

    def numbers(self, linears: Sizes, params: Mapping[str, tuple[int, ...]]) -> Mapping[str, np.ndarray]:
        return {}

    def forms(self, linears: Sizes) -> dict[str, Form]:
        picked = pick(linears, self.targets, "model.adapter.targets")
        pick(picked, tuple(self.overrides), "model.adapter.overrides")
        return {name: self.form(name) for name in picked}

    def form(self, name: str) -> Form:
        rank, alpha = self.rank, self.alpha
        for pattern, override in self.overrides.items():
            if matches(name, (pattern,)):
                rank, alpha = override.rank or rank, override.alpha or alpha
        return Form(rank=rank, alpha=alpha, rslora=self.rslora, magnitude=self.magnitude, init=self.init)


class Dora(Lora):
    """DoRA: LoRA that turns each column of W and trains its length (`magnitude`, the column's own at the start) by itself."""

    magnitude: ClassVar[bool] = True


class Ia3(Adapter):
    """IA3: outputs of some dense layers, and inputs of others, times a trained vector that starts as ones."""

    outputs: Patterns = Field(("layers.*.{k,v}",), description="dense layers whose outputs are scaled")
    inputs: Patterns = Field(("layers.*.down",), description="dense layers whose inputs are scaled")

    def open(self, base: Base, has_head: bool) -> Attachment:
        return self

    def numbers(self, linears: Sizes, params: Mapping[str, tuple[int, ...]]) -> Mapping[str, np.ndarray]:
        return {}

    def forms(self, linears: Sizes) -> dict[str, Form]:
        outputs, inputs = (pick(linears, getattr(self, name), f"model.adapter.{name}") for name in ("outputs", "inputs"))
        return {name: Form(scale_in=name in inputs, scale_out=name in outputs) for name in linears if name in inputs or name in outputs}


def pick(linears: Iterable[str], patterns: Patterns, what: str) -> tuple[str, ...]:
    """The dense layers that the patterns pick.

    Raises:
        ConfigError: a pattern matches none (all such patterns).
    """
    linears = tuple(linears)
    idle = [p for p in patterns if not any(compile_pattern(p.removeprefix("!")).match(name) for name in linears)]
    if idle:
        ends = sorted({"*." + name.rpartition(".")[2] for name in linears})
        raise ConfigError([f'{what}: "{p}" matches no dense layer{meant(p, ends)} (layers end with: {", ".join(ends)})' for p in idle])
    return tuple(name for name in linears if matches(name, patterns))


def meant(pattern: str, ends: list[str]) -> str:
    """What was probably meant by a pattern; peft and transformers say `q_proj` for our `*.q`."""
    last = "*." + pattern.rpartition(".")[2].removesuffix("_proj")
    return f'; did you mean "{last}"?' if last in ends else nearest(pattern, ends)


# -- the module ---------------------------------------------------------------------------------------------------------


def dense_layers(module: nnx.Module) -> dict[str, Linear]:
    """The module's dense layers by stored path; those that route tokens to experts stay as they are."""
    found = {".".join(map(str, path)): part for path, part in nnx.iter_modules(module) if isinstance(part, Linear)}
    return {path: part for path, part in found.items() if not path.endswith(".router")}


def sizes(module: nnx.Module) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of every dense layer by per-layer path."""
    found = {}
    for path, linear in dense_layers(module).items():
        *_, inputs, outputs = kernel_shape(linear)
        found.update(dict.fromkeys(stack.names(path), (inputs, outputs)))
    return found


def kernel_shape(linear: Linear) -> tuple[int, ...]:
    kernel = linear.kernel
    return quantized.kernel_shape(kernel.codes.get_value()) if isinstance(kernel, QuantizedKernel) else kernel.shape


def forms_of(module: nnx.Module) -> dict[str, Form]:
    """What is attached to the module: stored path of a dense layer -> its form."""
    return {path: linear.form for path, linear in dense_layers(module).items() if linear.form is not None}


def with_adapters(
    build: Callable[[tuple[int, ...]], nnx.Module],
    cuts: tuple[int, ...],
    attachment: Attachment | None,
    form: Format | None,
    key: jax.Array,
) -> nnx.Module:
    """The module that `build` makes from cuts, with adapters and quantized kernels, cut further where adapters of layers differ."""
    module = build(cuts)
    forms = {} if attachment is None else attachment.forms(sizes(module))
    more = cuts_between(dense_layers(module), forms)
    if not more <= set(cuts):
        module = build(tuple(sorted(more.union(cuts))))
    if form is not None:
        quantize_layers(module, form)
    attach(module, forms, key)
    return module


def cuts_between(paths: Iterable[str], forms: Mapping[str, Form]) -> set[int]:
    """The layer numbers at which a stack must be cut, because the layers before get other adapters."""
    paths = tuple(paths)
    return {cut for form in set(forms.values()) for cut in stack.cuts_for(paths, lambda name, form=form: forms.get(name) == form)}


def attach(module: nnx.Module, forms: Mapping[str, Form], key: jax.Array) -> None:
    """Puts parameters and forms on the module's dense layers. A layer's numbers depend on its name and the key alone, never on cuts."""
    for path, linear in dense_layers(module).items():
        names = stack.names(path)
        found = {forms.get(name) for name in names}
        assert len(found) == 1, f"{path}: layers with different adapters in one segment"
        form = found.pop()
        if form is None:
            continue
        kernel = linear.kernel
        *_, inputs, outputs = kernel_shape(linear)
        rows = (len(names),) if stack.is_stacked(path) else ()
        linear.form = replace(form, site=stack.whole(path))
        if form.rank:
            keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(jnp.array([zlib.crc32(n.encode()) for n in names], jnp.uint32))
            start = jax.vmap(lambda key, form=form, shape=(inputs, form.rank): first_factor(key, shape, form))(keys)
            linear.lora_a = nnx.Param(start if rows else start[0])
            linear.lora_b = nnx.Param(jnp.zeros((*rows, form.rank, outputs), jnp.float32))
        if form.magnitude:
            linear.magnitude = nnx.Param(column_lengths(float_kernel(kernel)))
        if form.scale_in:
            linear.scale_in = nnx.Param(jnp.ones((*rows, inputs), jnp.float32))
        if form.scale_out:
            linear.scale_out = nnx.Param(jnp.ones((*rows, outputs), jnp.float32))


def first_factor(key: jax.Array, shape: tuple[int, int], form: Form) -> jax.Array:
    """A [I, R] as PEFT starts it."""
    if form.init == "gaussian":
        return jax.random.normal(key, shape, jnp.float32) / form.rank
    return jax.random.uniform(key, shape, jnp.float32, -1.0, 1.0) / np.sqrt(shape[0], dtype=np.float32)


def quantize_layers(module: nnx.Module, form: Format) -> None:
    """Puts quantized kernels of zeros in the place of those of the stacked layers; loading fills them.

    Raises:
        ConfigError: a kernel cannot be stored so, or there is none to store.
    """
    found = {path: linear for path, linear in dense_layers(module).items() if path.startswith("layers.")}
    odd = sorted(
        {
            f"{stack.whole(path).replace('#', '*')} has {kernel_shape(linear)[-2]}"
            for path, linear in found.items()
            if not fits(kernel_shape(linear)[-2], form)
        }
    )
    if odd:
        raise ConfigError(f"model.quantize: {form} needs inputs in blocks of {BLOCK}, but {', '.join(odd)}; use int8")
    if not found:
        raise ConfigError(f"model.quantize: {form} has no effect: this family has no dense layers in a stack; leave it out")
    experts = [".".join(map(str, path)) for path, value in nnx.to_flat_state(nnx.state(module, nnx.Param)) if value.get_value().ndim == 4]
    if any(stack.is_stacked(key) for key in experts):
        raise ConfigError(
            f"model.quantize: the kernels of experts ({stack.whole(experts[0]).replace('#', '*')}) cannot be quantized; leave it out"
        )
    for linear in found.values():
        linear.kernel = QuantizedKernel(kernel_shape(linear), form)


def magnitudes(values: Mapping[str, Any], given: Iterable[str]) -> dict[str, jax.Array]:
    """DoRA's first lengths from loaded kernels, for the stored paths that are not given: what `attach` took from fresh ones."""
    out = {}
    for key, value in values.items():
        path, _, last = key.rpartition(".")
        if last != "magnitude" or not set(stack.names(key)).isdisjoint(given):
            continue
        if f"{path}.kernel" in values:
            made = jax.jit(lambda kernel: column_lengths(kernel.astype(jnp.float32)), out_shardings=value.sharding)(
                values[f"{path}.kernel"]
            )
        else:
            made = jax.jit(_quantized_lengths, out_shardings=value.sharding)(
                values[f"{path}.kernel.codes"], values[f"{path}.kernel.scales"]
            )
        out[key] = made
    return out


def _quantized_lengths(codes: jax.Array, scales: jax.Array) -> jax.Array:
    return column_lengths(dequantize(codes, scales))
