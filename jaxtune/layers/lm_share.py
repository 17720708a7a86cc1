"""How the language-model head is divided over a mesh: rows of the batch by some axes, the vocabulary by others.

Each device goes through its own rows with its own part of the vocabulary; parts are put together after the loop, in few and large
collectives, because devices have different numbers of positions with a loss and must not wait for each other inside it.

Letters: B batch, T tokens, D embed, V vocab, J candidates of a position; P positions of one device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxtune.parallel.placement import Placement


class Share(NamedTuple):
    """How the work is divided: rows of the batch by some axes of the mesh, the vocabulary by others."""

    mesh: Mesh | None
    rows: Any
    vocabulary: Any
    parts: int

    @classmethod
    def of(cls, placement: Placement | None, hidden: Array, weights: Array) -> Share:
        if placement is None or placement.devices == 1:
            return cls(None, None, None, 1)
        rows = placement.sharding(("batch", None, None), hidden.shape).spec[0]
        vocabulary = placement.sharding(("vocab", None), weights.shape).spec[0]
        return cls(placement.mesh, rows, vocabulary, 1 if vocabulary is None else placement.sizes["tensor"])

    def spread(self, run: Callable[..., Any], inputs: Any, outputs: Any) -> Callable[..., Any]:
        """`run` on each device's part. Within it no chunk waits for another device: they may have different numbers of chunks."""
        if self.mesh is None:
            return run
        return jax.shard_map(run, mesh=self.mesh, in_specs=inputs, out_specs=outputs, check_vma=False)

    def own(self, tokens: Int[Array, "..."], size: int) -> tuple[Int[Array, "..."], Array]:
        """Rows of this device's part of the vocabulary, and which tokens are in it."""
        if self.vocabulary is None:
            return tokens, jnp.ones(tokens.shape, bool)
        own = tokens - lax.axis_index(self.vocabulary) * size
        mine = (own >= 0) & (own < size)
        return jnp.where(mine, own, 0), mine

    def everywhere(self, own: Int[Array, "..."], size: int) -> Int[Array, "..."]:
        """Tokens from rows of this device's part of the vocabulary."""
        return own if self.vocabulary is None else own + lax.axis_index(self.vocabulary) * size

    def joined(self, found: dict[str, Array]) -> dict[str, Array]:
        """Sums over the parts of the vocabulary; exponentials are brought to the highest logit of all parts first."""
        if self.vocabulary is None:
            return found
        highest = lax.pmax(found["highest"], self.vocabulary)
        ratio = jnp.exp(found["highest"] - highest)
        relative = {name: found[name] * (ratio if name == "total" else ratio[:, None]) for name in ("total", "expected") if name in found}
        return {name: lax.psum(value, self.vocabulary) for name, value in (found | relative).items()} | {"highest": highest}

    def highest_of_all(self, values: Float[Array, "P J"], tokens: Int[Array, "P J"]) -> tuple[Float[Array, "P J"], Int[Array, "P J"]]:
        """The J highest of all parts of the vocabulary, from the J highest of each."""
        if self.vocabulary is None:
            return values, tokens
        count = tokens.shape[-1]
        gather = functools.partial(lax.all_gather, axis_name=self.vocabulary, axis=1, tiled=True)
        values, at = lax.top_k(gather(values), count)
        return values, jnp.take_along_axis(gather(tokens), at, 1)

    def over_vocabulary(self, x: Array) -> Array:
        return x if self.vocabulary is None else lax.psum(x, self.vocabulary)

    def over_rows[Tree](self, tree: Tree) -> Tree:
        return tree if self.rows is None else lax.psum(tree, self.rows)
