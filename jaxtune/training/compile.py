"""The compiled step: one program per batch shape, its memory against the device's, its FLOPs.

Compiling ahead of the first call makes memory a number that can be judged before step 1, and recompilation an event that can be counted.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval

from jaxtune.core.errors import ConfigError
from jaxtune.parallel.placement import Placement
from jaxtune.training.state import TrainState, shardings_of

CLOSED, OPEN = (getattr(core, name) for name in ("ClosedJaxpr", "Jaxpr"))  # jax ships no type stubs for them


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    arguments: int
    outputs: int
    temporaries: int
    aliased: int

    @property
    def peak(self) -> int:
        return self.arguments + self.outputs - self.aliased + self.temporaries


@dataclass
class CompiledStep:
    """Calls the program for a batch's shapes, compiling it at the first batch of that shape."""

    function: Callable[..., Any]
    placement: Placement
    state_shardings: TrainState
    programs: dict[Any, jax.stages.Compiled] = field(default_factory=dict)
    flops: dict[Any, int] = field(default_factory=dict)
    compile_seconds: float = 0.0

    @classmethod
    def of(cls, function: Callable[..., Any], state: TrainState, placement: Placement) -> CompiledStep:
        return cls(function, placement, shardings_of(state))

    @property
    def compilations(self) -> int:
        return len(self.programs)

    def prepare(self, state: Any, batch: Mapping[str, Any], controls: Any) -> jax.stages.Compiled:
        """The program for these shapes; arguments may be arrays or ShapeDtypeStructs with shardings."""
        key = shapes(batch)
        if key not in self.programs:
            start = time.perf_counter()
            jitted = jax.jit(self.function, donate_argnums=0, out_shardings=(self.state_shardings, self.placement.replicated))
            with self.placement.active():
                traced = jitted.trace(state, dict(batch), controls)
                self.programs[key] = traced.lower().compile()
            self.flops[key] = flops_of(traced.jaxpr)
            self.compile_seconds += time.perf_counter() - start
        return self.programs[key]

    def __call__(self, state: TrainState, batch: Mapping[str, jax.Array], controls: Any) -> tuple[TrainState, dict[str, Any]]:
        return self.prepare(state, batch, controls)(state, dict(batch), controls)

    def is_known(self, batch: Mapping[str, Any]) -> bool:
        return shapes(batch) in self.programs


def shapes(batch: Mapping[str, Any]) -> tuple[tuple[str, tuple[int, ...], str], ...]:
    return tuple(sorted((name, tuple(x.shape), str(x.dtype)) for name, x in batch.items()))


def memory(compiled: jax.stages.Compiled) -> Memory:
    """What the compiler has planned for one device."""
    found = compiled.memory_analysis()
    assert found is not None, "this backend reports no memory analysis"
    return Memory(found.argument_size_in_bytes, found.output_size_in_bytes, found.temp_size_in_bytes, found.alias_size_in_bytes)


def device_memory(device: Any) -> int | None:
    """Bytes the device (on CPU: the host, shared by its devices) has for us; None where it does not say."""
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit")


def check_fits(needed: Memory, limit: int | None, batch_rows: int, width: int | None) -> None:
    """Raises:
    ConfigError: the step needs more than the device has; with the parts and three remedies.
    """
    if limit is None or needed.peak <= limit:
        return
    rows = [
        ("state and batch", needed.arguments),
        ("results", needed.outputs - needed.aliased),
        ("activations and other temporaries", needed.temporaries),
        ("peak", needed.peak),
        ("the device has", limit),
    ]
    table = "\n".join(f"  {name:<36}{value / 2**30:9.2f} GiB" for name, value in rows)
    length = "" if width is None else f", or data.max_tokens below {width}"
    raise ConfigError(
        f"the training step does not fit on one device; nothing was trained.\n{table}\n"
        f"Remedies, the first usually costs least:\n"
        f"  1. phases.N.accumulation: 2 (the {batch_rows} rows of a batch in two parts; the same result)\n"
        f"  2. model.remat: block (recompute activations in the backward pass)\n"
        f"  3. data.batch_size below {batch_rows}{length}"
    )


def flops(function: Callable[..., Any], *arguments: Any) -> int:
    """FLOPs of all matrix products and convolutions of one call over all devices, loops counted by their length.

    Counted on the traced program after dead code is removed; XLA's own cost analysis counts the body of a loop once.
    """
    return flops_of(jax.make_jaxpr(function)(*arguments))


def flops_of(closed: Any) -> int:
    """`flops` of a program that is traced already."""
    live, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return count_flops(live)


def count_flops(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            total += 2 * equation.outvars[0].aval.size * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            out_channels = kernel[parameters["dimension_numbers"].rhs_spec[0]]
            inserted = math.prod(parameters["lhs_dilation"])  # zeros between the inputs, in the data's gradient of a strided convolution
            total += 2 * equation.outvars[0].aval.size * math.prod(kernel) // (out_channels * inserted)
        times = parameters["length"] if name == "scan" else 1
        for value in parameters.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if isinstance(inner, CLOSED):
                    total += times * count_flops(inner.jaxpr)
                elif isinstance(inner, OPEN):
                    total += times * count_flops(inner)
    return total
