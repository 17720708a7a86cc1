"""A run, from an experiment to an exported model: the one place where all parts meet, to be read from top to bottom."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxtune.adapter_export import merged, write_adapter
from jaxtune.adjust import Requests
from jaxtune.checkpoint.store import Store
from jaxtune.config.write import to_yaml
from jaxtune.core.errors import ConfigError, DivergedError, Interrupted, JaxtuneError, NoCheckpointError, Preempted
from jaxtune.core.heap import Heap
from jaxtune.data.facts import FILE as FACTS
from jaxtune.data.facts import recorded
from jaxtune.evaluation.advice import write_advice
from jaxtune.evaluation.predictions import write_predictions
from jaxtune.evaluation.report import write_report
from jaxtune.experiment import Experiment, load_experiment
from jaxtune.findings import answer_sample, check_data, slice_table, slices_wanted
from jaxtune.model_session import ModelSession
from jaxtune.models.card import model_card
from jaxtune.models.export import export
from jaxtune.models.weights import kernel_beside
from jaxtune.parallel import hosts
from jaxtune.prepare import prepare
from jaxtune.recorder import Recorder
from jaxtune.reference import add_read, check_read
from jaxtune.run_folder import RunFolder, runs_folder
from jaxtune.session import Session
from jaxtune.tasks.labelled import HF_PROBLEM
from jaxtune.training.compile import device_memory
from jaxtune.training.loop import Goal, Progress, Schedule, Stepped, train_phase
from jaxtune.training.signals import Signals
from jaxtune.training.stage import Stage
from jaxtune.training.watchdog import Watchdog

_LOG = logging.getLogger(__name__)
Watch = Callable[[Any], None]  # is given every event as it happens: a panel, a notebook


@dataclass(frozen=True)
class Result:
    """What a run hands back; `numbers` is what `result.json` holds."""

    folder: Path
    numbers: Mapping[str, Any]

    @property
    def export(self) -> Path:
        return self.folder / "export"

    @property
    def test(self) -> Mapping[str, Any]:
        return self.numbers["test"]

    @property
    def validation(self) -> Mapping[str, Any]:
        return self.numbers["validation"]


def ignore(event: Any) -> None:
    """A watch that looks away."""


def run(
    experiment: Experiment,
    *,
    runs_dir: str | Path = "runs",
    name: str | None = None,
    given: str | None = None,
    watch: Watch = ignore,
    lineage: Mapping[str, Any] | None = None,
) -> Result:
    """Trains an experiment in a new run folder.

    Args:
        runs_dir: where the folder `<runs_dir>/<name>` is made, numbered when it exists.
        given: the experiment file's text, kept beside the resolved one.
        watch: is given every event as it happens.
        lineage: the run that this one branches off, kept as lineage.json.

    Raises:
        ConfigError, DataError: before anything is trained or written.
        JaxtuneError: what stopped the run; state.json in the folder tells what it left.
    """
    place = runs_folder(runs_dir)
    hosts.start()
    session = Session.open(prepare(experiment), experiment.mesh.build())
    session.check()
    check_read(session)
    with RunFolder.create(place, name or experiment.name) as folder:
        folder.write("resolved.yaml", to_yaml(experiment))
        folder.write("experiment.yaml", given if given is not None else to_yaml(experiment))
        folder.write_json(FACTS, facts_of(session))
        if lineage is not None:
            folder.write_json("lineage.json", lineage)
        return execute(session, folder, watch)


def resume(path: str | Path, *, watch: Watch = ignore) -> Result:
    """Goes on with a run from its newest whole checkpoint; a run that is done is left as it is.

    Raises:
        NoCheckpointError: nothing usable is left.
        ConfigError: it is no run, or base model or data changed since.
    """
    with RunFolder.existing(Path(path)) as folder:
        if folder.state().get("status") == "done":
            return Result(folder.path, json.loads(folder.result.read_text(encoding="utf-8")))
        hosts.start()
        experiment = load_experiment(folder.resolved)
        session = Session.open(prepare(experiment), experiment.mesh.build())
        session.check()
        check_read(session)
        return execute(session, folder, watch)


def facts_of(session: Session) -> dict[str, Any]:
    """What advice and pages ask about the data and the device, long after both are out of reach."""
    prepared, plans = session.prepared, [session.plan(number) for number in range(len(session.prepared.experiment.phases))]
    device = session.placement.mesh.devices.flat[0]
    facts = recorded(
        prepared.facts, prepared.splits, prepared.scanned.keys, plans[0],
        phases=[(session.steps(number), plan.steps()) for number, plan in enumerate(plans)],
        limit=prepared.limit, possible=prepared.base.family.max_tokens,
    )  # fmt: skip
    return {**facts, "device": {"platform": device.platform, "memory_bytes": device_memory(device)}}


def execute(session: Session, folder: RunFolder, watch: Watch) -> Result:
    """Phases, the best checkpoint on the test split, the export; from where the folder's checkpoints end."""
    experiment, task = session.prepared.experiment, session.prepared.task
    goal = Goal(task.best, task.higher_is_better)
    folder.write_environment([str(d) for d in jax.devices()], data=session.prepared.fingerprint, licence=session.prepared.base.licence)
    folder.set_state("running", reason=None, exit_code=None)
    try:
        with (
            open_store(experiment, folder, goal) as store,
            Signals() as signals,
            Watchdog(folder.path, report=lambda message: folder.set_state("failed", reason=message, exit_code=70)) as watchdog,
            Recorder(folder, experiment, store, watch) as recorder,
        ):
            with watchdog.section("evaluation"):
                add_read(session)
            stage, progress = begin(session, store, recorder, watchdog)
            while True:
                if not progress.ending:
                    train_one(session, stage, store, progress, goal, signals, watchdog, recorder)
                if progress.ending == "adjust":
                    stage = session.adjust(stage, progress)
                    recorder.phase(session, stage, progress)
                elif progress.ending == "rollback":
                    stage, progress = roll_back(session, store, progress, recorder)
                elif progress.ending == "run" or progress.phase + 1 == len(experiment.phases):
                    break
                else:
                    before = stage.state
                    progress.next_phase()
                    stage = session.start_phase(progress.phase, before.params, before.variables, before)
                    recorder.phase(session, stage, progress)
            with watchdog.section("save"):
                store.wait()
            recorder.note_durable()
            with watchdog.section("evaluation"):
                result = conclude(session, folder, store, progress, recorder)
            with watchdog.section("evaluation"):
                look_back(session, folder)
    except JaxtuneError as error:
        status = "preempted" if isinstance(error, Preempted) else "interrupted" if isinstance(error, Interrupted) else "failed"
        folder.set_state(status, reason=str(error), exit_code=error.exit_code)
        if isinstance(error, DivergedError) and hosts.is_primary():
            write_advice(folder.path)
        raise
    except BaseException as error:
        folder.set_state("failed", reason=f"{type(error).__name__}: {error}", exit_code=1)
        raise
    folder.set_state("done", exit_code=0, reason=None)
    return result


def open_store(experiment: Experiment, folder: RunFolder, goal: Goal) -> Store:
    return Store(folder.checkpoints, keep_latest=experiment.checkpoint.keep_latest, best="max" if goal.higher_is_better else "min")


def begin(session: Session, store: Store, recorder: Recorder, watchdog: Watchdog) -> tuple[Stage, Progress]:
    """The first phase from the base model, or the newest checkpoint's phase with its numbers."""
    with watchdog.section("load"):
        if not store.is_empty:
            stage, progress, found = session.resume(store)
            recorder.resumed(found)
        else:
            progress = Progress()
            stage = session.start_phase(0, *session.load_base(), None)
        recorder.open(progress.step)
        recorder.phase(session, stage, progress)
    if progress.step == 0:
        with watchdog.section("evaluation"):
            told = answer_sample(session, "validation", stage.blueprint, stage.state.evaluated, stage.state.variables)
        if told is not None:
            recorder.answered(0, told)
    return stage, progress


def train_one(
    session: Session, stage: Stage, store: Store, progress: Progress, goal: Goal, signals: Signals, watchdog: Watchdog, recorder: Recorder
) -> None:
    """The rest of one phase."""
    experiment = session.prepared.experiment
    phase, steps = experiment.phases[progress.phase], session.steps(progress.phase, progress)
    has_validation = "validation" in session.prepared.splits
    with watchdog.section("compile"):
        compiled = session.compile(stage, progress.phase)
        recorder.compiled(compiled)
    heap = Heap()
    heap.after_other_work()

    sliced = slices_wanted(session)

    def evaluate(state: Any) -> Mapping[str, Any]:
        with watchdog.section("evaluation"):
            found = session.evaluate("validation", stage.blueprint, state.evaluated, state.variables, keep=sliced)
        if found.predictions is not None:
            recorder.slices(progress.step, slice_table(found.predictions, session.prepared))
        with watchdog.section("evaluation"):
            told = answer_sample(session, "validation", stage.blueprint, state.evaluated, state.variables)
        if told is None:
            return found.metrics
        recorder.answered(progress.step, told)
        return {**found.metrics, **told.metrics}

    def save(state: Any, progress: Progress, metric: float | None) -> None:
        with watchdog.section("save"):
            session.save(store, state, progress, metric)

    def adjusted(progress: Progress) -> bool:
        return take_up(session, progress, recorder)

    plan, end = session.plan(progress.phase, progress.order), steps - progress.order_start
    with session.feed("train", plan, progress.batch, end, training=True) as feed:
        events = train_phase(
            stage.state, stage.step, feed, stage.controls, session.placement,
            Schedule(steps, experiment.evaluation.every_steps, experiment.checkpoint.every_steps, phase.skip_limit), progress,
            evaluate=evaluate if has_validation else None,
            goal=goal, rules=phase.stopping, save=save, interrupted=signals.requested, adjusted=adjusted,
        )  # fmt: skip
        while True:
            try:
                with watchdog.section("step"):
                    event, state = next(events, (None, None))
            except (Preempted, Interrupted):
                store.wait()  # the promise is that the step is saved
                recorder.note_durable()
                raise
            if event is None or state is None:
                return
            stage.state = state
            store.poll()
            recorder.event(event)
            heap.after_step() if isinstance(event, Stepped) else heap.after_other_work()


def take_up(session: Session, progress: Progress, recorder: Recorder) -> bool:
    """Adds what was asked of the run since to `progress.adjustments`; whether there was anything. What does not fit is refused, not raised."""
    requests = Requests(recorder.folder.path)
    asked = json.loads(hosts.share(json.dumps([(number, requests.words(number)) for number in requests.due(progress.step)])))
    before = len(progress.adjustments)
    for number, words in asked:
        problems: tuple[str, ...] = ()
        try:
            progress.adjustments.append(session.consider(progress, words))
        except ConfigError as error:
            problems = error.problems
        if hosts.is_primary():
            requests.take(number, progress.step, problems)
        recorder.adjusted(progress.step, words, problems)
    return len(progress.adjustments) > before


def roll_back(session: Session, store: Store, progress: Progress, recorder: Recorder) -> tuple[Stage, Progress]:
    """The best checkpoint again, with a lower rate.

    Raises:
        DivergedError: there is no checkpoint to go back to.
    """
    store.wait()
    step = store.best_step
    if step is None:
        raise DivergedError("the run diverged before there was a checkpoint to go back to; lower the rate or lengthen the warm-up")
    store.delete_after(step)
    stage, found, _ = session.resume(store)
    going_on = progress.go_on_from(found)
    recorder.rolled_back(progress.step, step, going_on.rate_scale)
    return stage, going_on


def conclude(session: Session, folder: RunFolder, store: Store, progress: Progress, recorder: Recorder) -> Result:
    """Evaluates the best checkpoint on validation and test, keeps the predictions, writes result.json and the export."""
    prepared = session.prepared
    step = store.best_step or store.latest_step
    if step is None:
        raise NoCheckpointError(f"{folder.checkpoints}: nothing was saved; the run has no result")
    blueprint, params, variables = session.restore_params(store, step)
    numbers: dict[str, Any] = {"best_step": step, "steps": progress.step, **recorder.speed(progress)}
    for split in ("validation", "test"):
        if split not in prepared.splits:
            numbers[split] = {}
            continue
        found = session.evaluate(split, blueprint, params, variables, keep=prepared.experiment.evaluation.predictions)
        told = answer_sample(session, split, blueprint, params, variables)
        numbers[split] = {**found.metrics, **({} if told is None else told.metrics)}
        Heap().after_other_work()
        recorder.result(split, step, numbers[split])
        if found.predictions is not None and hosts.is_primary():
            path = folder.path / "predictions" / f"{split}.parquet"
            write_predictions(path, found.predictions, prepared.names, prepared.problem, prepared.truth, prepared.known_of_rows)
    numbers["peak_memory_bytes"] = recorder.peak_memory()
    if hosts.is_primary():
        folder.write_json("result.json", numbers)
        shutil.rmtree(folder.path / "export", ignore_errors=True)  # of a start that was killed after it
        export_run(session, folder.path / "export", params | variables, numbers, progress.phase)
    return Result(folder.path, numbers)


def look_back(session: Session, folder: RunFolder) -> None:
    """What the finished run tells about its data and its settings, and the report; nothing here changes the result."""
    if hosts.is_primary():
        folder.write_json("checks.json", check_data(session, folder.path))
        try:
            write_advice(folder.path)
            write_report(folder.path, session.prepared.scanned.records)
        except Exception as error:
            _LOG.warning("no report (%s: %s); the result stands, `jaxtune report` tries again", type(error).__name__, error)


def export_run(
    session: ModelSession, target: Path, values: Mapping[str, jax.Array], numbers: Mapping[str, Any], phase: int, *, whole: bool = False
) -> Path:
    """A Hugging Face folder with the given parameters; never-trained tensors are the base's own bytes.

    Of a run with an adapter what `model.adapter.export` says; `whole` is a merged model in any case.
    """
    subject = session.subject
    experiment = subject.experiment
    model = experiment.model
    card = model_card(
        subject.base,
        name=experiment.name,
        labels=subject.names,
        test=numbers.get("test") or numbers.get("validation") or {},
        configuration=to_yaml(experiment),
    )
    files = {"README.md": card}
    wanted = "merged" if whole or model.adapter is None else model.adapter.export
    if wanted == "peft":
        return write_adapter(session, target, values, phase, files)
    trained = session.touched(phase) | set(session.blueprint.others)
    adapted = values
    if model.adapter is not None or model.quantize != "none":
        found = merged(session, values, phase)
        hosts.say(
            f"merged: {len(found.changed)} kernels in float32; compared with layer and adapter, outputs differ by at most {found.difference:.1g} "
            "of the greatest"
        )
        values, trained = found.values, frozenset(name for name in trained if not kernel_beside(name)) | found.changed
    if subject.processor.image is not None:
        files["preprocessor_config.json"] = json.dumps(dict(subject.processor.image.config), indent=2) + "\n"
    export(
        target,
        subject.base,
        values,
        trained=trained,
        labels=subject.names,
        problem=None if subject.problem is None else HF_PROBLEM[subject.problem],
        language=subject.outputs == "language",
        files=files,
    )
    if wanted == "both":
        write_adapter(session, target / "adapter", adapted, phase, {})
    return target
