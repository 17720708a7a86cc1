"""What a candidate costs in this experiment: the compiled training step, the time it takes, one prediction, the exported folder.

FLOPs, memory and sizes are exact; times are measured on this machine as it is, and said with their spread.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxtune.data.batch import collate
from jaxtune.data.transforms.tokenize import Tokenizer
from jaxtune.evaluation.bootstrap import Interval
from jaxtune.layers import stack
from jaxtune.models.blueprint import Flat
from jaxtune.models.export import COMPANIONS
from jaxtune.prepare import Prepared
from jaxtune.session import OnDevice, Session
from jaxtune.training.stage import Stage

PREDICTIONS = 10
STORED_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
FLOAT32 = 4
TEXTS = 500  # that the tokenizer's fit is measured on


@dataclass(frozen=True)
class Timing:
    """Seconds: the median of some calls, and the least and the greatest."""

    median: float
    range: Interval

    @classmethod
    def of(cls, call: Callable[[], Any], times: int) -> Timing:
        """After one call that is not counted."""
        call()
        seconds = []
        for _ in range(times):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        return cls(statistics.median(seconds), Interval(min(seconds), max(seconds)))


@dataclass(frozen=True)
class Cost:
    """
    Attributes:
        parameters: of the model with its head.
        trained: of those, how many the first phase trains.
        rows, width: of the widest training batch, which the step's numbers are for; width is None without tokens.
        step_flops: matrix products and convolutions of a training step of the first phase, over all devices.
        step_memory_bytes: that the compiled step needs at most, on one device.
        step: its time, on a batch that is on the device already.
        prediction: from a batch with one example per device on the host to its probabilities on the host.
        export_bytes: of the exported folder's weights and tokenizer.
    """

    parameters: int
    trained: int
    rows: int
    width: int | None
    step_flops: int
    step_memory_bytes: int
    compile_seconds: float
    step: Timing
    prediction: Timing
    export_bytes: int

    @property
    def flops_per_example(self) -> float:
        return self.step_flops / self.rows


def measure_cost(session: Session, params: Flat, variables: Flat, steps: int) -> Cost:
    """Compiles and times the first phase's step and a prediction; `params` are used up.

    Raises:
        ConfigError: the step does not fit on the device.
    """
    prediction = time_prediction(session, params, variables)
    stage = session.start_phase(0, params, variables, None)
    compiled = session.compile(stage, 0)
    step = time_step(session, stage, compiled.rows, compiled.width, steps)
    return Cost(
        parameters=parameter_count(session),
        trained=sum(value.size for value in stage.state.trainable.values()),
        rows=compiled.rows,
        width=compiled.width,
        step_flops=compiled.flops,
        step_memory_bytes=compiled.memory.peak,
        compile_seconds=compiled.seconds,
        step=step,
        prediction=prediction,
        export_bytes=export_bytes(session),
    )


def parameter_count(session: Session) -> int:
    return sum(math.prod(shape.shape) for shape in session.blueprint.params.values())


def time_step(session: Session, stage: Stage, rows: int, width: int | None, steps: int) -> Timing:
    """The step alone, on the longest training examples, without reading data."""
    examples = session.prepared.splits["train"]
    order = np.arange(len(examples)) if examples.lengths is None else np.argsort(-np.asarray(examples.lengths), kind="stable")
    chosen: list[Any] = [examples.row(int(i)) for i in order[:rows]]
    arrays = session.placement.put_batch(collate(chosen + [None] * (rows - len(chosen)), width))
    controls = session.placement.put(stage.controls(0, 1.0))

    def one() -> None:
        stage.state, report = stage.step(stage.state, arrays, controls)
        jax.block_until_ready((stage.state.trainable, report))

    return Timing.of(one, steps)


def time_prediction(session: Session, params: Flat, variables: Flat, times: int = PREDICTIONS) -> Timing:
    """One example of median length per device, as `predict` does it."""
    examples, ways = session.prepared.splits["train"], session.placement.batch_ways
    row, width = 0, None
    if examples.lengths is not None:
        row = int(np.argsort(np.asarray(examples.lengths), kind="stable")[len(examples) // 2])
        width = -(-int(examples.lengths[row]) // 8) * 8
        width = width if session.prepared.limit is None else min(width, session.prepared.limit)
    arrays = collate([examples.row(row)] * ways, width)
    evaluator = session.evaluator(session.blueprint)

    def one() -> None:
        batch = OnDevice(session.placement.put_batch(arrays), ways, 0, arrays["example_id"])
        evaluator.infer(params, variables, [batch])

    return Timing.of(one, times)


def export_bytes(session: Session) -> int:
    """Bytes of the exported weights and companion files: float32 for what any phase trains, as in the base for the rest."""
    base, table = session.subject.base, session.table
    touched = session.touched(len(session.trained) - 1) | set(session.blueprint.others)
    tensors = {} if base.checkpoint is None else base.checkpoint.tensors
    prefix = base.family.prefix if any(name.startswith(base.family.prefix) for name in tensors) else ""
    total = 0
    for key, shape in {**session.blueprint.params, **session.blueprint.others}.items():
        names = stack.names(key)
        each = math.prod(shape.shape) // len(names)
        for name in names:
            tensor = table.place(name).tensor
            stored = tensors.get(tensor if name.startswith("head.") else prefix + tensor)
            total += each * (FLOAT32 if stored is None or name in touched else STORED_BYTES.get(stored.dtype, FLOAT32))
    if base.folder is not None:
        total += sum((base.folder / name).stat().st_size for name in COMPANIONS if (base.folder / name).is_file())
    return total


# -- the tokenizer ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenizerFit:
    """
    Attributes:
        vocabulary: rows of the token table.
        tokens_per_word: words are what stands between white space; special tokens do not count.
        unknown: share of tokens that stand for something the vocabulary does not know; None where the vocabulary has no such token.
        cut: share of texts that are longer than the limit.
    """

    vocabulary: int
    tokens_per_word: float
    unknown: float | None
    cut: float


def measure_tokenizer(prepared: Prepared, records: np.ndarray) -> TokenizerFit | None:
    """On the training records given (at most 500 of them for the counts by word); None without tokens."""
    tokenizer, limit = prepared.processor.tokenizer, prepared.limit
    if tokenizer is None or limit is None:
        return None
    some = records[np.linspace(0, len(records) - 1, min(TEXTS, len(records))).round().astype(int)]
    content, pairs = prepared.task.content, len(prepared.task.content) > 1
    special = tokenizer.special_tokens(pairs)
    words = tokens = unknowns = 0
    unknown = unknown_token(tokenizer)
    for number in some:
        record = prepared.scanned.records[int(number)]
        words += sum(len(str(record[name]).split()) for name in content)
        tokens += max(prepared.full_length(int(number)) - special, 0)
        if unknown is not None:
            unknowns += sum(tokenizer.backend.encode(str(record[name]), add_special_tokens=False).ids.count(unknown) for name in content)
    over = sum(prepared.full_length(int(number)) > limit for number in records)
    share = None if unknown is None else unknowns / max(tokens, 1)
    return TokenizerFit(tokenizer.vocabulary, tokens / max(words, 1), share, over / max(len(records), 1))


def unknown_token(tokenizer: Tokenizer) -> int | None:
    """The number of the token for what the vocabulary does not know; None where bytes or characters stand in for it."""
    model = json.loads(tokenizer.backend.to_str())["model"]
    if model.get("unk_id") is not None:
        return int(model["unk_id"])
    name = model.get("unk_token")
    return None if name is None else tokenizer.backend.token_to_id(name)
