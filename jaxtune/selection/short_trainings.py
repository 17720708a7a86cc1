"""Short trainings of one phase that all start where a run would start, and share its compiled step.

The step gives its state's memory away, so what trains is kept on the host and put back for every training; what is frozen goes from one
training to the next. Seeds change the order of the data, fresh parameters (the head) and dropout. None of these is a constant of the program.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxtune.core.errors import ConfigError
from jaxtune.data.plan import Plan
from jaxtune.layers import stack
from jaxtune.models.blueprint import Flat
from jaxtune.models.load import maker
from jaxtune.session import Compiled, Session
from jaxtune.training.stage import Stage
from jaxtune.training.state import TrainState, recut_params, shardings_of

EVALUATION_BATCHES = 32  # of the validation split, at most: a random sample of a large one
_PUT_BACK = ("step", "trainable", "variables", "opt_state", "skipped", "skipped_in_a_row")  # of the state, for every training


@dataclass(frozen=True)
class Step:
    """One optimizer step: its rate, and the mean loss of its batch before it; `finite` is false where loss or gradients were not."""

    rate: float
    loss: float
    finite: bool


class ShortTrainings:
    """The trainings of one phase.

    Attributes:
        number: of the phase. A later phase starts from the base as well: the earlier ones are skipped.
        steps: optimizer steps that were run, over all trainings.
        compiled: the widest step, which must fit on the device.
    """

    def __init__(self, session: Session, number: int):
        """Loads the base, builds the phase and compiles its widest step.

        Raises:
            ConfigError: the step does not fit on the device, or there are several processes.
        """
        if jax.process_count() > 1:
            raise ConfigError("lr-test works in one process; run it on a single host, with a batch that fits there")
        self.session, self.number, self.steps = session, number, 0
        self.stage: Stage = session.start_phase(number, *session.load_base(), None)
        self.compiled: Compiled = session.compile(self.stage, number)
        self.total = session.steps(number)
        state = self.stage.state
        self._shardings = shardings_of(state)
        self._start = {part: jax.tree.map(np.array, jax.device_get(getattr(state, part))) for part in _PUT_BACK}
        self._copy = jax.jit(lambda tree: jax.tree.map(jax.numpy.copy, tree))
        self._fresh = self._fresh_parameters()

    @property
    def compilations(self) -> int:
        """Programs of the training step so far: one per batch width, whatever the rates and seeds."""
        return self.stage.step.compilations

    @property
    def compile_seconds(self) -> float:
        return self.stage.step.compile_seconds

    def start(self, seed: int) -> TrainState:
        """The state before the first step of a run with this seed. The state of an earlier training is no longer valid."""
        state, new = self.stage.state, self._fresh(seed)
        averaged = bool(state.average)
        frozen = {key: jax.device_put(new[key], value.sharding) if key in new else value for key, value in state.frozen.items()}
        state = self.stage.state = replace(state, trainable={}, variables={}, opt_state={}, average={}, frozen=frozen)  # frees their memory

        def put(part: str) -> Any:
            """On the devices, as a copy of our own: a host array may be used in place, and the step writes over what it is given."""
            tree = self._start[part]
            if part in ("trainable", "variables"):
                tree = {key: new.get(key, value) for key, value in tree.items()}
            return self._copy(jax.device_put(tree, getattr(self._shardings, part)))

        parts = {part: put(part) for part in _PUT_BACK}
        average = self._copy(parts["trainable"]) if averaged else {}
        key = self.session.placement.put(jax.random.key(seed))
        self.stage.state = replace(state, **parts, average=average, key=key)
        return self.stage.state

    def train(self, seed: int, rates: Sequence[float]) -> Generator[Step]:
        """Trains from the start with one rate per step, everything else as the phase has it; `stage.state` is the state so far.

        A consumer that has seen enough closes the iterator.
        """
        state, plan, placement = self.start(seed), self.plan(seed), self.session.placement
        with self.session.feed("train", plan, stop=len(rates), training=True) as feed:
            for number, (rate, batch) in enumerate(zip(rates, feed, strict=True)):
                controls = self.stage.controls(number, 1.0)
                controls = {**controls, "optimizer": {**controls["optimizer"], "rate": np.float32(rate)}}
                state, report = self.stage.step(state, batch.arrays, placement.put(controls))
                self.stage.state = state
                self.steps += 1
                found = jax.device_get({name: report[name] for name in ("loss", "finite")})
                weight = float(found["loss"].weight)
                yield Step(float(rate), float(found["loss"].total) / weight if weight > 0 else float("nan"), bool(found["finite"]))

    def plan(self, seed: int) -> Plan:
        """The order of the training batches of a run with this seed; for the experiment's own seed, that of the run."""
        return replace(self.session.plan(self.number), seed=int(np.random.SeedSequence([seed, self.number]).generate_state(1)[0]))

    def evaluate(self) -> tuple[Mapping[str, Any], int]:
        """Metrics of the present parameters on the validation split (a random sample of it where it is large), and the number of examples.

        The trained parameters are measured, not their running average, which after a few steps is still the start.
        """
        session, state = self.session, self.stage.state
        whole = session.prepared.plan("validation", divisor=session.placement.batch_ways, training=False)
        sampled = whole.steps() > EVALUATION_BATCHES
        plan, stop = (replace(whole, shuffle=True, seed=0), EVALUATION_BATCHES) if sampled else (whole, whole.steps())
        with session.feed("validation", plan, stop=stop) as feed:
            found = session.evaluator(self.stage.blueprint)(state.params, state.variables, feed)
        return found.metrics, sum(plan.batch(number).examples for number in range(stop))

    # -- parts --------------------------------------------------------------------------------------------------------------

    def _fresh_parameters(self) -> Any:
        """seed -> the parameters and variables that do not come from the base, as a run with this seed would begin with them.

        The seed is traced, so all seeds share one small program.
        """
        session, state, blueprint = self.session, self.stage.state, self.stage.blueprint
        subject = session.subject
        whole, names = sorted(session.loading.fresh), session.fresh
        ours = {key: v.get_value() for key, v in blueprint.variables.items() if stack.names(key)[0] in names}
        placed = {**self._shardings.trainable, **self._shardings.frozen, **self._shardings.variables}
        kept = {key: value.dtype for key, value in {**state.params, **state.variables}.items()}

        def fresh(seed: Any) -> Flat:
            options, dtype = subject.experiment.model.stack(), subject.experiment.model.dtype
            module = maker(subject.base.family, subject.outputs, seed=seed, options=options, dtype=dtype)()
            flat = {".".join(map(str, path)): v.get_value() for path, v in nnx.to_flat_state(nnx.state(module))}
            return {key: flat[key] for key in whole}

        program = jax.jit(fresh, out_shardings=session.placement.replicated)

        def make(seed: int) -> Flat:
            if not whole:
                return {}
            flat = recut_params(program(np.uint32(seed)), ours, placed)
            return {key: value.astype(kept[key]) for key, value in flat.items()}

        return make
