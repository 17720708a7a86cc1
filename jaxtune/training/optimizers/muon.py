"""Muon: the momentum of a matrix is made orthogonal before it is applied; everything else is trained by adam."""

from __future__ import annotations

from typing import Any

import jax
import optax
from optax import contrib
from pydantic import Field

from jaxtune.core.errors import ConfigError
from jaxtune.core.paths import matches
from jaxtune.layers.stack import names
from jaxtune.training.optimizers.base import Beta, Controls, Number, Optimizer, Positive, WeightDecay


class Muon(Optimizer):
    """Muon (Jordan et al. 2024). Which arrays are matrices in this sense is decided by path, like decay.

    A kernel of a convolution [kh, kw, in, out] is the matrix [kh x kw x in, out].
    """

    weight_decay: WeightDecay = 0.01
    orthogonal: tuple[str, ...] = Field(
        default=("*.kernel", "!head.*", "!*embed*"),
        description="Patterns of the arrays whose update is made orthogonal; the others are trained by adam.",
    )
    momentum: Beta = Field(default=0.95, description="Share of the old direction.")
    nesterov: bool = Field(default=True, description="Look ahead along the momentum.")
    iterations: int = Field(default=5, ge=1, description="Newton-Schulz iterations.")
    match_adam: Positive | None = Field(
        default=0.2,
        description="Root mean square of an orthogonal update before the rate; 0.2 is adam's, so both share one rate (Liu et al. 2025). "
        "null: scaled by sqrt(max(1, out / in)), which wants about 100 times adam's rate.",
    )
    adam_rate: Positive = Field(default=1.0, description="The arrays trained by adam learn at this multiple of the rate.")
    beta1: Beta = Field(default=0.9, description="Adam: share of the old first moment.")
    beta2: Beta = Field(default=0.999, description="Adam: share of the old second moment.")
    epsilon: Positive = Field(default=1e-8, description="Added to the norm of a matrix, and to the root of adam's second moment.")

    def rule(self, controls: Controls, weight_decay: Number, key: str) -> optax.GradientTransformation:
        if not self.is_orthogonal(key):
            return optax.adam(controls["rate"] * controls["adam_rate"], controls["beta1"], controls["beta2"], controls["epsilon"])

        def as_matrix(array: Any) -> contrib.MuonDimensionNumbers:
            if array.ndim < 2:
                raise ConfigError(f'optimizer.orthogonal: "{key}" is a vector of {array.size}; muon needs matrices. Add "!{key}"')
            return contrib.MuonDimensionNumbers(tuple(range(array.ndim - 1)), array.ndim - 1)

        return contrib.muon(
            controls["rate"],
            ns_steps=self.iterations,
            beta=controls["momentum"],
            eps=controls["epsilon"],
            nesterov=self.nesterov,
            muon_weight_dimension_numbers=lambda tree: jax.tree.map(as_matrix, tree),
            consistent_rms=None if self.match_adam is None else controls["match_adam"],
        )

    def is_orthogonal(self, key: str) -> bool:
        """Raises:
        ConfigError: only some layers of a stacked array are picked.
        """
        found = {matches(name, self.orthogonal) for name in names(key)}
        if len(found) > 1:
            raise ConfigError(f'optimizer.orthogonal picks some layers of "{key}" and not others; write patterns that treat them alike')
        return found.pop()
