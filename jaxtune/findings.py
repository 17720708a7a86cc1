"""What a run finds out besides its numbers: how its evaluations turn out by class and length, what the model writes, what is odd about its data.

The analysis itself is in `evaluation/` and knows no session; here it is given what it needs of one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from jaxtune.core.files import Rows
from jaxtune.evaluation import data_checks, slices
from jaxtune.evaluation.evaluate import Predictions
from jaxtune.evaluation.generation import Answered, answer, choose_questions
from jaxtune.evaluation.outcomes import Outcomes
from jaxtune.models.blueprint import Blueprint, Flat
from jaxtune.prepare import Prepared
from jaxtune.session import Session
from jaxtune.tracking.jsonl import FILE as METRICS

MOST_EPOCH_SECONDS = 3000.0  # of an epoch, for its rows to be read again
MOST_NUMBERS = 20_000_000  # validation rows x classes that are fetched at every evaluation


def check_data(session: Session, folder: Path) -> dict[str, Any]:
    """What the finished run tells about its data: wrong labels, near copies across splits. Neither changes the result."""
    prepared, wanted = session.prepared, session.prepared.experiment.evaluation
    found: dict[str, Any] = {}
    if wanted.label_check and prepared.problem is not None and prepared.truth is not None:
        found["labels"] = data_checks.check_labels(
            folder, prepared.problem, prepared.names, prepared.truth, prepared.scanned.keys,
            prepared.splits["train"].ids, lambda: session.base_features("train"), _why_no_label_check(session, folder),
        )  # fmt: skip
    if wanted.near_duplicates:
        rows = {split: examples.ids for split, examples in prepared.splits.items()}
        found["near_duplicates"] = data_checks.check_near_duplicates(
            folder, prepared.task.domain, prepared.task.content, prepared.scanned.records, rows
        )
    return found


def answer_sample(session: Session, split: str, blueprint: Blueprint, params: Flat, variables: Flat) -> Answered | None:
    """What the model writes for the split's sample of rows; None where the experiment asks for no answers."""
    prepared = session.prepared
    wanted, tokenizer = prepared.experiment.evaluation.answers, prepared.processor.tokenizer
    if wanted is None or split not in prepared.splits:
        return None
    assert tokenizer is not None
    questions = choose_questions(prepared.splits[split], wanted, max_tokens=prepared.base.family.max_tokens, seed=prepared.experiment.seed)
    return answer(questions, wanted, session.generator(blueprint, wanted.generation, wanted.batch_size), params, variables, tokenizer)


def _why_no_label_check(session: Session, folder: Path) -> str:
    """A pass of the base is not worth its time where it tells nothing or would take longer than the training did. It is forward only, so it
    takes no longer than an epoch, which has to end within the time that the watchdog gives an evaluation."""
    if session.prepared.base.checkpoint is None:
        return "the base is a new model, which tells nothing yet"
    if jax.process_count() > 1:
        return "more than one process trains"
    rows, steps = len(session.prepared.splits["train"]), [row for row in Rows(folder / METRICS).read() if row.get("split") == "train"]
    seen = sum(row["examples"] for row in steps)
    if seen < 0.9 * rows:
        return f"the run trained on {seen:,} examples, less than an epoch, and the base would have to read all training rows"
    epoch = sum(row["seconds"] for row in steps if not row["compiled"]) * rows / seen
    return f"an epoch takes {epoch / 60:.0f} minutes, and looking up to as long" if epoch > MOST_EPOCH_SECONDS else ""


def slices_wanted(session: Session) -> bool:
    """Whether evaluations keep their predictions for the table by class and length; not where they are too many to be fetched each time."""
    prepared = session.prepared
    rows = len(prepared.splits.get("validation", ()))
    return (
        prepared.problem is not None
        and prepared.experiment.evaluation.slices
        and jax.process_count() == 1
        and rows * max(len(prepared.names), 1) <= MOST_NUMBERS
    )


def slice_table(predictions: Predictions, prepared: Prepared) -> list[dict[str, Any]]:
    """How an evaluation turned out by class and by length, a line each."""
    known, rows, truth = prepared.known_of_rows, predictions.ids, prepared.truth
    assert truth is not None and prepared.problem is not None
    tokens = [known["tokens"][row] for row in rows] if "tokens" in known else None
    return slices.table(Outcomes.of(predictions, prepared.names, prepared.problem, [truth[row] for row in rows], tokens))
