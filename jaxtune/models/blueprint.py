"""A model without its numbers: the graph, and every variable's stored path, shape and kind.

Outside the trace parameters are a flat dict keyed by stored path; inside it a blueprint puts them back into the module.
The same works for a family's module and for anybody's own `nnx.Module`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

Flat = dict[str, Any]


@dataclass(frozen=True)
class Blueprint:
    """`variables` maps a stored path to an abstract `nnx.Variable`."""

    graph: nnx.GraphDef
    variables: Mapping[str, nnx.Variable]
    paths: Mapping[str, tuple[Any, ...]]

    @classmethod
    def of(cls, make: Callable[[], nnx.Module]) -> Blueprint:
        """The blueprint of what `make` builds; nothing is computed."""
        graph, state = nnx.split(nnx.eval_shape(make))
        flat = nnx.to_flat_state(state)
        paths = {".".join(map(str, path)): path for path, _ in flat}
        return cls(graph, {key: variable for key, (_, variable) in zip(paths, flat, strict=True)}, paths)

    @classmethod
    def split(cls, module: nnx.Module) -> tuple[Blueprint, Flat]:
        """The blueprint of a built module, and its numbers."""
        blueprint = cls.of(lambda: module)
        state = nnx.to_flat_state(nnx.state(module))
        return blueprint, {".".join(map(str, path)): variable.get_value() for path, variable in state}

    @property
    def params(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What can be trained: stored path -> shape and dtype."""
        return {key: shape(v) for key, v in self.variables.items() if isinstance(v, nnx.Param)}

    @property
    def others(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What changes without a gradient: batch statistics and the like."""
        return {key: shape(v) for key, v in self.variables.items() if not isinstance(v, nnx.Param)}

    def build(self, *flats: Mapping[str, jax.Array]) -> nnx.Module:
        """The module with these numbers, which together must cover every variable. Inside a trace it may be changed freely."""
        values = {key: value for flat in flats for key, value in flat.items()}
        missing = [key for key in self.variables if key not in values]
        assert not missing, f"no value for {missing[:5]}"
        state = nnx.from_flat_state([(self.paths[key], v.replace(values[key])) for key, v in self.variables.items()])
        return nnx.merge(self.graph, state, copy=True)

    def changed(self, module: nnx.Module) -> Flat:
        """The variables without gradient after a call."""
        flat = {".".join(map(str, path)): v.get_value() for path, v in nnx.to_flat_state(nnx.state(module, nnx.Not(nnx.Param)))}
        return {key: flat[key] for key in self.others}

    def initialise(self, make: Callable[[], nnx.Module], keys: frozenset[str], shardings: Mapping[str, Any]) -> Flat:
        """Fresh values of some variables, made on the devices; the rest of the module is never computed."""
        if not keys:
            return {}

        def fresh() -> Flat:
            flat = {".".join(map(str, path)): v.get_value() for path, v in nnx.to_flat_state(nnx.state(make()))}
            return {key: flat[key] for key in sorted(keys)}

        return jax.jit(fresh, out_shardings={key: shardings[key] for key in sorted(keys)})()


def shape(variable: nnx.Variable) -> jax.ShapeDtypeStruct:
    value = variable.get_value()
    return jax.ShapeDtypeStruct(value.shape, value.dtype)
