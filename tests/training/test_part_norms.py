"""Norms by part of the model, against a plain sum over every layer by hand."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest

from jaxtune.training.part_norms import named, part_norms, part_of, parts

SHAPES = {
    "embeddings.token.table": (5, 3),
    "layers.0-1.attn.q.kernel": (2, 3, 3),
    "layers.0-1.attn.q.bias": (2, 3),
    "layers.2-2.attn.q.kernel": (1, 3, 3),
    "stages.0.blocks.0-1.conv.kernel": (2, 4),
    "stages.1.down.kernel": (4,),
    "head.out.kernel": (3, 2),
    "head.out.bias": (2,),
}


@pytest.mark.parametrize(
    ("name", "part"),
    [("layers.3.attn.q.kernel", "layers.3"), ("head.out.bias", "head"), ("stages.0.blocks.1.conv.kernel", "stages.0"), ("table", "table")],
)
def test_a_part_is_what_stands_before_the_first_number(name: str, part: str) -> None:
    assert part_of(name) == part


def test_norms_by_part() -> None:
    random = np.random.default_rng(0)
    values = {name: random.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    found = named(values, np.asarray(jax.jit(part_norms)(values)))
    squares = {name: np.square(value, dtype=np.float64) for name, value in values.items()}
    q, b = squares["layers.0-1.attn.q.kernel"], squares["layers.0-1.attn.q.bias"]
    expected = {
        "embeddings": squares["embeddings.token.table"].sum(),
        "layers.0": q[0].sum() + b[0].sum(),
        "layers.1": q[1].sum() + b[1].sum(),
        "layers.2": squares["layers.2-2.attn.q.kernel"].sum(),
        "stages.0": squares["stages.0.blocks.0-1.conv.kernel"].sum(),
        "stages.1": squares["stages.1.down.kernel"].sum(),
        "head": squares["head.out.kernel"].sum() + squares["head.out.bias"].sum(),
    }
    assert set(found) == set(expected) == set(parts(values))
    for name, square in expected.items():
        np.testing.assert_allclose(found[name], np.sqrt(square), rtol=1e-6)
    np.testing.assert_allclose(optax.tree.norm(part_norms(values)), optax.tree.norm(values), rtol=1e-6)
