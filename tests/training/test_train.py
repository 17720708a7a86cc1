"""`train()` with a module, a loss and batches of one's own: freezing, shards, stopping and resume come along, and nothing is surprising."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import nnx

from jaxtune.core.errors import ConfigError, DataError, DivergedError, NoCheckpointError
from jaxtune.core.weighted import Weighted
from jaxtune.models.family import DropoutRates
from jaxtune.parallel.mesh import Mesh
from jaxtune.training.loop import Decided, Evaluated, Saved, Stepped
from jaxtune.training.stopping.base import Continue, Decision, Memory, Report, Rollback, ScaleRate, StopRule
from jaxtune.training.stopping.early_stopping import EarlyStopping
from jaxtune.training.train import Training, train


class Classifier(nnx.Module):
    """Flax's own layers, with batch statistics and with dropout that holds its own random numbers."""

    def __init__(self, rngs: nnx.Rngs):
        self.body = nnx.Linear(4, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(16, tiny.CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.dropout(nnx.relu(self.norm(self.body(x)))))


def cross_entropy(module: Any, batch: Mapping[str, jax.Array], noise: Any) -> Weighted:
    losses = optax.softmax_cross_entropy_with_integer_labels(module(batch["x"]), batch["label"])
    return Weighted.of(losses, jnp.ones_like(losses))


def plain(seed: int) -> tiny.Batch:
    return {name: value for name, value in tiny.points(16, seed).items() if name in ("x", "label")}


def order(first: int) -> Iterator[tiny.Batch]:
    return (plain(seed) for seed in itertools.count(first))


def start(**settings: Any) -> Training:
    settings = {"loss": cross_entropy, "batches": order, "optimizer": optax.adam(1e-2), "steps": 6} | settings
    return train(settings.pop("module", None) or tiny.small(), **settings)


def values(module: nnx.Module) -> dict[str, np.ndarray]:
    return {".".join(map(str, path)): tiny.numbers(variable.get_value()) for path, variable in nnx.to_flat_state(nnx.state(module))}


def test_it_trains_like_a_loop_by_hand() -> None:
    module, optimizer = tiny.small(), optax.adam(1e-2)
    graph, params = nnx.split(module)
    state = optimizer.init(params)

    @jax.jit
    def step(params: Any, state: Any, batch: Any) -> Any:
        gradients = jax.grad(lambda params: cross_entropy(nnx.merge(graph, params), batch, None).mean)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for seed in range(6):
        params, state = step(params, state, plain(seed))
    expected = values(nnx.merge(graph, params))
    for key, value in values(start().finish()).items():
        np.testing.assert_allclose(value, expected[key], rtol=1e-4, atol=1e-6, err_msg=key)


def test_the_given_module_is_read_and_not_changed() -> None:
    module, before = Classifier(nnx.Rngs(0, dropout=1)), values(Classifier(nnx.Rngs(0, dropout=1)))  # a look at it would protect its arrays
    trained = values(start(module=module).finish())
    tiny.equal(values(module), before)
    assert all(not np.array_equal(trained[key], before[key]) for key in ("body.kernel", "head.bias", "norm.scale"))


def test_variables_without_gradient_move_and_random_numbers_differ() -> None:
    losses = []
    training = start(module=Classifier(nnx.Rngs(0, dropout=1)), optimizer=optax.sgd(0.0), batches=[plain(0)] * 6)
    for event in training:
        losses.append(event.loss)
    found = values(training.module)
    assert found["norm.mean"].any() and not np.allclose(found["norm.var"], 1.0)
    assert len(set(losses)) == 6, "the same parameters and rows, another mask"


def test_freezing() -> None:
    before = values(tiny.small())
    training = start(train=["*", "!body.*"])
    after = values(training.finish())
    for key, value in after.items():
        assert np.array_equal(value, before[key]) == key.startswith("body."), key
    assert training.stage.state.trainable.keys() == {"head.kernel", "head.bias"}


def test_one_of_our_optimizers_and_accumulation() -> None:
    whole = values(start(optimizer=tiny.adamw(1e-2)).finish())
    training = start(optimizer=tiny.adamw(1e-2), accumulation=4)
    for event in training:
        assert isinstance(event, Stepped) and event.learning_rate == pytest.approx(1e-2)
    for key, value in values(training.module).items():
        np.testing.assert_allclose(value, whole[key], rtol=1e-4, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("mesh", [Mesh(), Mesh(data=2, fsdp=2, tensor=2)], ids=["data 8", "2 x 2 x 2"])
def test_eight_devices(mesh: Mesh) -> None:
    def axes(path: str, shape: tuple[int, ...]) -> tuple[str | None, ...]:
        return (None,) * len(shape) if len(shape) < 2 else ("embed", "mlp") if path.startswith("body") else ("mlp", None)

    one = tiny.small_stage(goal=cross_entropy, optimizer=optax.adam(1e-2))
    tiny.steps(one, [plain(seed) for seed in range(6)])
    expected = tiny.host(one.state.params)
    training = start(mesh=mesh, shardings=axes)
    for key, value in values(training.finish()).items():
        np.testing.assert_allclose(value, expected[key], rtol=1e-4, atol=1e-6, err_msg=key)
    kernel = training.stage.state.trainable["body.kernel"]
    assert kernel.addressable_shards[0].data.shape == ((4, 8) if mesh == Mesh() else (2, 4))
    assert len(kernel.sharding.device_set) == 8


# -- evaluation and stopping ------------------------------------------------------------------------------------------------


def held_out(module: Any) -> dict[str, float]:
    loss = cross_entropy(module, plain(999), None)
    return {"loss": float(loss.mean), "rows": 16.0}


def test_evaluation_and_events() -> None:
    training = start(evaluate=held_out, evaluate_every=3)
    events = list(training)
    assert [(type(event).__name__, event.step) for event in events] == [
        ("Stepped", 1), ("Stepped", 2), ("Stepped", 3), ("Evaluated", 3), ("Stepped", 4), ("Stepped", 5), ("Stepped", 6), ("Evaluated", 6),
    ]  # fmt: skip
    last = events[-1]
    assert isinstance(last, Evaluated) and last.metrics["loss"] == pytest.approx(held_out(training.module)["loss"], rel=1e-5)
    assert training.progress.best == min(e.metrics["loss"] for e in events if isinstance(e, Evaluated))


def test_the_module_can_be_used_while_it_trains() -> None:
    training = start()
    losses = [held_out(training.module)["loss"] for _ in training]
    assert len(losses) == 6 and np.isfinite(losses).all()


def test_early_stopping() -> None:
    rule = EarlyStopping(patience=2, min_delta=100.0)
    training = start(evaluate=held_out, evaluate_every=1, stopping=[rule], steps=50)
    events = list(training)
    assert isinstance(events[-1], Decided) and events[-1].step == 3 and training.progress.step == 3


def test_numbers_of_an_evaluation_may_be_jax_arrays() -> None:
    training = start(evaluate=lambda module: {"loss": jnp.float32(1.0)}, evaluate_every=1, stopping=[EarlyStopping(patience=2)])
    assert [event.metrics for event in training if isinstance(event, Evaluated)] == [{"loss": 1.0}] * 3


class Halves(StopRule):
    """Asks for half the rate after the first evaluation, and for none of it after the second."""

    def decide(self, memory: Memory, report: Report) -> tuple[Memory, Decision]:
        return memory, ScaleRate(0.5 if report.step == 1 else 0.0, "so") if report.step < 3 else Continue()


def test_a_stop_rule_lowers_the_rate_of_a_plain_optax_optimizer() -> None:
    seen = [values(tiny.small())]
    training = start(
        optimizer=optax.sgd(0.1),
        batches=lambda first: itertools.repeat(plain(0)),
        evaluate=held_out,
        evaluate_every=1,
        steps=3,
        stopping=[Halves()],
    )
    seen += [values(training.module) for event in training if isinstance(event, Stepped)]
    moved = [np.abs(b["head.kernel"] - a["head.kernel"]).max() for a, b in itertools.pairwise(seen)]
    assert moved[1] == pytest.approx(0.5 * moved[0], rel=0.2) and moved[2] == 0.0
    assert training.stage.step.compilations == 1


def test_dropout_reaches_the_loss() -> None:
    seen = []

    def loss(module: Any, batch: Mapping[str, jax.Array], noise: Any) -> Weighted:
        seen.append(noise)
        losses = optax.softmax_cross_entropy_with_integer_labels(module(batch["x"], noise), batch["label"])
        return Weighted.of(losses, jnp.ones_like(losses))

    dropped, whole = values(start(loss=loss, dropout=DropoutRates(hidden=0.5)).finish()), values(start(loss=loss).finish())
    assert {noise is None for noise in seen} == {False, True}
    assert np.abs(dropped["head.kernel"] - whole["head.kernel"]).max() > 1e-3


class RollsBack(StopRule):
    """Goes back the third time it is asked, once."""

    def start(self) -> Memory:
        return {"asked": 0}

    def decide(self, memory: Memory, report: Report) -> tuple[Memory, Decision]:
        asked = memory["asked"] + 1
        return {"asked": asked}, Rollback(0.5, "worse") if asked == 3 else Continue()


def test_rollback_goes_back_to_the_best_and_lowers_the_rate(tmp_path: Path) -> None:
    numbers = iter([3.0, 1.0, 2.0, 1.5, 1.4, 1.3, 1.2])
    training = start(
        optimizer=tiny.adamw(1e-2), checkpoints=tmp_path, evaluate=lambda module: {"loss": next(numbers)}, evaluate_every=1,
        stopping=[RollsBack()], steps=5,
    )  # fmt: skip
    events = list(training)
    stepped = [(event.step, round(event.learning_rate, 6)) for event in events if isinstance(event, Stepped)]
    assert stepped == [(1, 0.01), (2, 0.01), (3, 0.01), (3, 0.005), (4, 0.005), (5, 0.005)]
    assert (training.progress.step, training.progress.best_step, training.progress.ending) == (5, 2, "phase")


def test_the_best_module(tmp_path: Path) -> None:
    numbers = iter([3.0, 1.0, 2.0])
    training = start(checkpoints=tmp_path, evaluate=lambda module: {"loss": next(numbers)}, evaluate_every=1, steps=3)
    seen = [values(training.module) for event in training if isinstance(event, Stepped)]
    tiny.equal(values(training.best_module), seen[1])
    tiny.equal(values(training.module), seen[2])
    with pytest.raises(NoCheckpointError, match="checkpoints="):
        _ = start().best_module


def test_rollback_without_a_checkpoint() -> None:
    training = start(evaluate=held_out, evaluate_every=1, stopping=[RollsBack()])
    with pytest.raises(DivergedError, match="pass checkpoints="):
        training.finish()


def test_divergence_names_the_rows_and_leaves_the_module() -> None:
    def batches(first: int) -> Iterator[tiny.Batch]:
        for seed in itertools.count(first):
            yield plain(seed) | {"x": np.full((16, 4), np.nan, np.float32), "example_id": np.arange(16, dtype=np.int32) + 100 * seed}

    training = start(batches=batches, steps=50)
    with pytest.raises(DivergedError, match=r"5 steps in a row, up to step 5 .* examples \[400, 401"):
        training.finish()
    tiny.equal(values(training.module), values(tiny.small()))


# -- resume -----------------------------------------------------------------------------------------------------------------


def listed(first: int) -> list[tiny.Batch]:
    return [plain(seed) for seed in range(first, 20)]


@pytest.mark.parametrize("replayed", [False, True])
def test_an_interrupted_training_goes_on_where_it_was(tmp_path: Path, replayed: bool) -> None:
    settings: dict[str, Any] = {"batches": listed(0) if replayed else order, "evaluate": held_out, "evaluate_every": 3}
    whole = start(**settings)
    settings |= {"checkpoints": tmp_path, "save_every": 2}
    expected, events = values(whole.finish()), []
    assert not list(tmp_path.iterdir())
    for event in start(**settings):
        events.append(event)
        if isinstance(event, Saved) and event.step == 4:
            break
    again = start(**settings)
    assert again.progress.step == 4
    rest = list(again)
    assert [event.step for event in rest if isinstance(event, Stepped)] == [5, 6]
    tiny.equal(values(again.module), expected)
    tiny.trees_equal(tiny.host(again.stage.state), tiny.host(whole.stage.state))
    assert again.progress.best == whole.progress.best


def test_a_training_that_ended_stays_ended(tmp_path: Path) -> None:
    first = start(checkpoints=tmp_path)
    expected = values(first.finish())
    again = start(checkpoints=tmp_path)
    assert list(again) == [] and again.progress.step == 6
    tiny.equal(values(again.module), expected)


def test_more_steps_go_on_and_fewer_are_refused(tmp_path: Path) -> None:
    start(checkpoints=tmp_path).finish()
    more = start(checkpoints=tmp_path, steps=8)
    assert [event.step for event in more if isinstance(event, Stepped)] == [7, 8]
    tiny.equal(values(more.module), values(start(steps=8).finish()))
    with pytest.raises(ConfigError, match="holds step 8, found 5"):
        start(checkpoints=tmp_path, steps=5)


def test_a_rule_that_ended_it_is_not_asked_again(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"evaluate": held_out, "evaluate_every": 1, "stopping": [EarlyStopping(patience=1, min_delta=100.0)]}
    start(checkpoints=tmp_path, **settings).finish()
    assert list(start(checkpoints=tmp_path, **settings)) == []


def test_a_frozen_part_is_not_in_the_checkpoint(tmp_path: Path) -> None:
    from jaxtune.checkpoint.store import Store

    start(checkpoints=tmp_path, train=["head.*"]).finish()
    store = Store(tmp_path, best="min", read_only=True)
    names = {name for name in store.arrays(6) if name.startswith("params/")}
    assert names == {"params/head.kernel", "params/head.bias"}


# -- what is wrong is said --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"train": ["bodies.*"]}, 'pattern "bodies.*" matches no parameter; did you mean "body.*"?'),
        ({"best": ("loss", "lowest")}, 'best: found "lowest"; expected ("name", "min") or ("name", "max")'),
        ({"optimizer": tiny.adamw(layer_decay=0.9)}, "layer_decay: train() does not know the layers"),
        ({"mesh": Mesh(fsdp=3)}, "does not fit 8 device(s)"),
        ({"stopping": [EarlyStopping()]}, "stopping has no effect without evaluate"),
        ({"evaluate_every": 3}, "evaluate_every has no effect without evaluate"),
        ({"save_every": 3}, "save_every has no effect without checkpoints"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        start(**settings)
    assert text in str(caught.value)


def test_batches_that_end_early() -> None:
    with pytest.raises(DataError, match="ended after step 3 of 6"):
        start(batches=listed(0)[:3]).finish()


def test_an_evaluation_without_the_number_that_decides() -> None:
    with pytest.raises(ConfigError, match='evaluate gives no number "los"; did you mean "loss"'):
        start(evaluate=held_out, best=("los", "min")).finish()
