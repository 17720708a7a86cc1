"""From examples and a plan to an iterator of host batches, read ahead by Grain's threads or worker processes.

Grain sees batch numbers and nothing else: batch n is a pure function of n, so seeking is a slice, the position is one integer,
and threads, workers and the number of hosts change speed but never content.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxtune.core.errors import ConfigError, DataError
from jaxtune.data.batch import FIELDS, Row, collate, join
from jaxtune.data.examples import Examples, Ragged
from jaxtune.data.pack import PackedPlan
from jaxtune.data.plan import Plan

log = logging.getLogger(__name__)

RowChange = Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]
AHEAD = 4  # batches that threads keep ready; each worker process keeps 2
REVIVALS = 3
AUGMENTATION = 0x617567  # keeps the augmentation's random numbers apart from the plan's, which start from the same seed


@dataclass(frozen=True, eq=False)
class HostBatch:
    """One batch: this host's rows, and what the batch holds over all hosts."""

    arrays: dict[str, np.ndarray]
    ids: np.ndarray  # int64[..], the numbers of this host's examples in the whole data set, those that share a row too
    number: int  # global batch number, from 0; the position to resume behind it is number + 1
    examples: int  # real rows of all hosts
    tokens: int  # real tokens of all hosts before augmentation; 0 without tokens
    width: int | None


def batches(
    examples: Examples,
    plan: Plan,
    *,
    start: int = 0,
    stop: int | None = None,
    seed: int = 0,
    augment: Sequence[RowChange] = (),
    host: int = 0,
    hosts: int = 1,
    workers: int = 0,
    threads: int = 2,
) -> Batches:
    """The batches `start` to `stop` of the plan (None: epoch after epoch without end), rows host::hosts of each.

    What `augment` does to a row depends on `seed`, epoch and the row's number in the whole data set alone. With `workers`
    > 0 that many processes make the batches (they are spawned: everything must pickle), else `threads` threads; 0 and 0
    makes each batch when it is asked for.

    Raises:
        ConfigError: plan and examples do not belong together, a batch does not divide by `hosts`, or something does not pickle.
    """
    problems = []
    if augment and "token_weight" in examples.columns:
        problems.append("data.augment: random changes of tokens would move the tokens that are to be learned; leave it out here")
    if plan.rows != len(examples):
        problems.append(f"the plan orders {plan.rows} rows, but there are {len(examples)} examples; make the plan from these examples")
    uneven = {rows for rows in map(plan.batch_rows, plan.widths or (None,)) if rows % hosts}
    if uneven:
        problems.append(f"batches of {', '.join(map(str, sorted(uneven)))} rows do not divide by {hosts} hosts; choose another batch_size")
    if problems:
        raise ConfigError(problems)
    return Batches(_Planned(examples, plan, seed, tuple(augment), host, hosts), start, stop, workers, threads)


def template(examples: Examples, plan: Plan) -> Row:
    """A row as the plan's batches hold it, to compile and pad without data: its fields count, not its values."""
    row = examples.row(0)
    return join([row]) if isinstance(plan, PackedPlan) else row


class Batches(Iterator[HostBatch]):
    """Closable iterator, also by `with`. `position` is the number of the batch that comes next."""

    def __init__(self, source: _Planned, start: int, stop: int | None, workers: int, threads: int):
        self.position = start
        self._source = source
        self._stop = stop
        self._workers = workers
        self._threads = threads
        self._deaths = 0
        self._reader: Any = None
        if workers:
            _check_pickles(source)

    def __next__(self) -> HostBatch:
        while True:
            try:
                self._reader = self._reader or self._open()
                arrays = next(self._reader)
                break
            except RuntimeError as error:
                self.close()
                self._bury(error)
            except BaseException:
                self.close()
                raise
        planned = self._source.plan.batch(self.position)
        arrays = {name: arrays[name] for name in FIELDS if name in arrays}  # Grain's workers sort the keys
        ids, tokens = self._source.mine(self.position), self._source.plan.tokens(planned)
        batch = HostBatch(arrays, ids, self.position, planned.examples, tokens, planned.width)
        self.position += 1
        self._deaths = 0
        return batch

    def close(self) -> None:
        """Ends threads and worker processes. Asking for the next batch starts them again at the same position."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _open(self) -> Any:
        import grain
        from absl import flags

        dataset = grain.MapDataset.source(self._source)[self.position : self._stop]
        if not self._workers:
            return iter(dataset.to_iter_dataset(grain.ReadOptions(self._threads, AHEAD if self._threads else 0)))
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # outside an absl program Grain's workers fail to start (grain issue 1355)
        reading = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
        # by the pipe: Grain 0.2.18 leaks the shared memory of what was read ahead when it closes, and small arrays are no faster in it
        piped = grain.experimental.WithOptionsIterDataset(reading, grain.experimental.DatasetOptions(min_shm_size=sys.maxsize))
        return iter(piped.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=2)))

    def _bury(self, error: RuntimeError) -> None:
        """Counts the death of a worker process, so that the caller tries again; any other error goes up.

        Raises:
            DataError: workers died too often at this batch.
        """
        if "terminated unexpectedly" not in str(error):
            raise error
        self._deaths += 1
        if self._deaths > REVIVALS:
            rows = self._source.mine(self.position).tolist()
            raise DataError(
                f"data workers died {self._deaths} times at batch {self.position} ({str(error).split('.')[0]}); "
                f"an exit code of -9 is often a lack of memory: use fewer workers, or workers: 0; rows of the batch: "
                f"{', '.join(map(str, rows[:8]))}{', ...' if len(rows) > 8 else ''}"
            ) from error
        log.warning("a data worker died at batch %d (%s): starting the workers again there", self.position, str(error).split(".")[0])


@dataclass(frozen=True, eq=False)
class _Planned:
    """Random access by batch number: what Grain reads and what worker processes receive."""

    examples: Examples
    plan: Plan
    seed: int
    augment: tuple[RowChange, ...]
    host: int
    hosts: int

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        epoch, _ = self.plan.locate(index)
        planned = self.plan.batch(index)
        mine = planned.rows[self.host :: self.hosts]
        if mine.ndim == 1:
            rows = [self._row(int(row), epoch) if row >= 0 else None for row in mine]
        else:
            rows = [join([self._row(int(row), epoch) for row in pack if row >= 0]) if pack[0] >= 0 else None for pack in mine]
        return collate(rows, planned.width, None if (mine >= 0).any() else template(self.examples, self.plan))

    def _row(self, index: int, epoch: int) -> Mapping[str, Any]:
        row = self.examples.row(index)
        if self.augment:
            random = np.random.default_rng([AUGMENTATION, self.seed, epoch, row["example_id"]])
            for change in self.augment:
                row = change(row, random)
        return row

    def mine(self, number: int) -> np.ndarray:
        """Numbers in the whole data set of this host's examples of a batch."""
        rows = self.plan.batch(number).rows[self.host :: self.hosts]
        return self.examples.ids[rows[rows >= 0]]


def _check_pickles(source: _Planned) -> None:
    import cloudpickle  # what Grain sends its workers their work with

    problems = []
    columns = source.examples.columns.items()
    parts: dict[str, Any] = {f'column "{name}"': column for name, column in columns if not isinstance(column, np.ndarray | Ragged)}
    parts |= {f"augment {number}": change for number, change in enumerate(source.augment)}
    for name, part in parts.items():
        try:
            cloudpickle.dumps(part)
        except Exception as error:
            problems.append(
                f"workers: {name} ({type(part).__name__}) cannot be sent to a worker process ({error}); "
                "use workers: 0, which reads in threads, or make it picklable"
            )
    if problems:
        raise ConfigError(problems)
