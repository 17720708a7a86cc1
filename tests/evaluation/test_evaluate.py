"""Evaluation is exact: ragged ends, any batch size, any mesh and any order give the numbers of NumPy over all examples at once."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
import reader
import tiny
from scipy.special import log_softmax

from jaxtune.parallel.mesh import Mesh
from jaxtune.tasks.text_classification import TextClassification

COUNT = 37
MESHES = [Mesh(), Mesh(fsdp=8), Mesh(tensor=4), Mesh(data=2, fsdp=2, tensor=2)]


def by_hand(batches: list[tiny.Batch]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids, log probabilities, labels) of every example, in NumPy."""
    params = {key: np.asarray(value) for key, value in reader.evaluator(tiny.TASK)[1].items()}
    rows = []
    for batch in batches:
        real = (batch["segment_ids"] > 0)[..., None]
        pooled = (params["embed.embedding"][batch["tokens"]] * real).sum(1) / np.maximum(real.sum(1), 1)
        logits = pooled @ params["head.out.kernel"] + params["head.out.bias"]
        rows += [(i, x, y) for i, x, y in zip(batch["example_id"], log_softmax(logits, 1), batch["label"], strict=True) if i >= 0]
    ids, values, labels = zip(*rows, strict=True)
    return np.array(ids), np.array(values), np.array(labels)


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    ids, log_p, labels = by_hand(reader.ragged(COUNT, 8))
    assert sorted(ids) == list(range(COUNT))
    losses = -log_p[np.arange(COUNT), labels]
    return {"loss": losses.mean(), "accuracy": (log_p.argmax(1) == labels).mean(), "losses": losses, "probabilities": np.exp(log_p)}


@pytest.mark.parametrize("rows", [8, 16, 40])
def test_ragged_ends_and_batch_sizes(rows: int, expected: dict[str, Any]) -> None:
    found = reader.evaluate(tiny.TASK, reader.ragged(COUNT, rows))
    np.testing.assert_allclose(found.metrics["loss"], expected["loss"], rtol=1e-5)
    assert found.metrics["accuracy"] == expected["accuracy"]
    assert set(tiny.TASK.metric_names) - set(found.metrics) <= {"label_accuracy"}
    assert found.predictions is not None
    np.testing.assert_array_equal(found.predictions.ids, np.arange(COUNT))
    np.testing.assert_allclose(found.predictions.loss, expected["losses"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.predictions.probabilities, expected["probabilities"], atol=1e-6)
    assert found.predictions.logits.shape == (COUNT, tiny.CLASSES)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_many_devices(mesh: Mesh, expected: dict[str, Any]) -> None:
    found = reader.evaluate(tiny.TASK, reader.ragged(COUNT, 16), placement=mesh.build(jax.devices()[:8]))
    np.testing.assert_allclose(found.metrics["loss"], expected["loss"], rtol=1e-5)
    assert found.metrics["accuracy"] == expected["accuracy"]
    assert found.predictions is not None
    np.testing.assert_array_equal(found.predictions.ids, np.arange(COUNT))
    np.testing.assert_allclose(found.predictions.probabilities, expected["probabilities"], atol=1e-6)


def test_order_of_the_batches_does_not_matter(expected: dict[str, Any]) -> None:
    batches = reader.ragged(COUNT, 8)
    found = reader.evaluate(tiny.TASK, batches[::-1])
    np.testing.assert_allclose(found.metrics["loss"], expected["loss"], rtol=1e-5)
    assert found.predictions is not None
    np.testing.assert_array_equal(found.predictions.ids, np.arange(COUNT))


def test_rows_that_fill_up_may_hold_anything(expected: dict[str, Any]) -> None:
    batches = reader.ragged(COUNT, 16)
    batches[-1]["tokens"][COUNT % 16 :] = 77
    batches[-1]["segment_ids"][COUNT % 16 :] = 1
    batches[-1]["label"][COUNT % 16 :] = 2
    found = reader.evaluate(tiny.TASK, batches)
    np.testing.assert_allclose(found.metrics["loss"], expected["loss"], rtol=1e-5)
    assert found.metrics["accuracy"] == expected["accuracy"]


def test_one_compilation_per_shape_and_two_evaluations_are_two() -> None:
    run, params = reader.evaluator(tiny.TASK)
    first = run(params, {}, [tiny.put(batch, run.placement) for batch in reader.ragged(COUNT, 8)])
    assert first.predictions is None
    programs = set(run.compiled)
    assert len(programs) == 2, "one for the shape, one that makes empty sums"
    again = run(params, {}, [tiny.put(batch, run.placement) for batch in reader.ragged(COUNT, 8)])
    assert set(run.compiled) == programs and again.metrics == first.metrics
    run(params, {}, [tiny.put(batch, run.placement) for batch in reader.ragged(COUNT, 16)])
    assert len(run.compiled) == 3


def test_parameters_are_read_only() -> None:
    run, params = reader.evaluator(tiny.TASK)
    before = tiny.host(params)
    run(params, {}, [tiny.put(batch, run.placement) for batch in reader.ragged(COUNT, 8)])
    tiny.equal(params, before)


def test_regression(expected: dict[str, Any]) -> None:
    task = TextClassification(problem="regression")
    batches = []
    for batch in reader.ragged(COUNT, 8):
        target = batch.pop("label").astype(np.float32)[:, None]
        batches.append(batch | {"target": target})
    found = reader.evaluate(task, batches, outputs=1)
    assert found.predictions is not None
    targets = np.concatenate([b["target"] for b in batches])[:COUNT, 0]
    errors = np.square(found.predictions.logits[:, 0] - targets)
    np.testing.assert_allclose(found.metrics["loss"], errors.mean(), rtol=1e-5)
    np.testing.assert_allclose(found.metrics["mean_squared_error"], errors.mean(), rtol=1e-5)
    np.testing.assert_allclose(found.predictions.loss, errors, rtol=1e-4, atol=1e-6)


def test_several_labels() -> None:
    task = TextClassification(problem="multi_label")
    random, batches = np.random.default_rng(0), []
    for batch in reader.ragged(COUNT, 8):
        batch.pop("label")
        batches.append(batch | {"target": random.integers(0, 2, (8, tiny.CLASSES)).astype(np.float32)})
    found = reader.evaluate(task, batches)
    assert found.predictions is not None
    targets = np.concatenate([b["target"] for b in batches])[:COUNT]
    right = (found.predictions.probabilities > 0.5) == targets
    np.testing.assert_allclose(found.metrics["label_accuracy"], right.mean(), rtol=1e-6)
    np.testing.assert_allclose(found.metrics["accuracy"], right.all(1).mean(), rtol=1e-6)
