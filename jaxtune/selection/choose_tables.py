"""The tables of a comparison as words, for the terminal and the page alike: scores, costs, tokenizers, what is published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtune.selection.catalogue import Catalogue
from jaxtune.selection.chosen import MEASURES, Chosen, Ranked, shown

NOTHING = "-"


@dataclass(frozen=True)
class Table:
    """`columns` and the cells of `rows` begin with the candidate."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def tables(chosen: Chosen, catalogue: Catalogue) -> tuple[Table, ...]:
    """Those that have something to say."""
    made = (scores(chosen), costs(chosen), tokenizers(chosen), facts(chosen, catalogue), left_out(chosen))
    return tuple(table for table in made if table.rows)


def scores(chosen: Chosen) -> Table:
    def row(each: Ranked) -> tuple[str, ...]:
        score = each.assessed.score
        behind = NOTHING if each.behind is None else f"{each.behind.mean:.3f}{', within noise' if each.within_noise else ''}"
        return (
            each.name,
            str(each.place),
            shown(score.probe),
            f"{score.neighbours.mean:.3f}",
            f"{score.logme:.3f}",
            each.assessed.reading,
            behind,
        )

    columns = ("candidate", "place", f"probe, {MEASURES[chosen.measure]}", "neighbours", "LogME", "read at", "behind the first")
    note = (
        f"On {chosen.rows} of {chosen.training_rows} training rows, {chosen.repeats} x {chosen.folds} folds, 95 % intervals; "
        "validation and test rows have no part in it. Read at: where a probe finds most, what the head reads or the mean of the tokens."
    )
    return _table("Scores", columns, chosen, row, note)


def costs(chosen: Chosen) -> Table:
    def row(each: Ranked) -> tuple[str, ...] | None:
        cost = each.assessed.cost
        if cost is None:
            return None
        return (
            each.name, f"{cost.parameters / 1e6:,.3g} M", f"{cost.flops_per_example / 1e9:,.3g}", f"{cost.step_memory_bytes / 2**20:,.0f} MiB",
            seconds(cost.step.median), seconds(cost.prediction.median), f"{cost.export_bytes / 2**20:,.3g} MiB",
        )  # fmt: skip

    note = ""
    widest = next((each.assessed.cost for each in chosen.ranked if each.assessed.cost is not None), None)
    if widest is not None:
        shape = f"{widest.rows} x {widest.width} tokens" if widest.width else f"{widest.rows} images"
        note = (
            f"GFLOP per training example, peak memory of one device and median time of a training step of {shape} in the first phase; prediction: "
            "one example per device, from host to host; times as they were measured on this machine."
        )
    return _table("Costs", ("candidate", "parameters", "GFLOP", "memory", "step", "prediction", "export"), chosen, row, note)


def tokenizers(chosen: Chosen) -> Table:
    def row(each: Ranked) -> tuple[str, ...] | None:
        fit = each.assessed.tokenizer
        if fit is None:
            return None
        unknown = NOTHING if fit.unknown is None else f"{fit.unknown:.2%}"
        return each.name, f"{fit.tokens_per_word:.2f}", unknown, f"{fit.cut:.0%}", f"{fit.vocabulary:,}"

    note = "Unknown: tokens that stand for what the vocabulary does not know. Cut: texts longer than the limit."
    return _table("Tokenizers", ("candidate", "tokens per word", "unknown", "texts cut", "vocabulary"), chosen, row, note)


def facts(chosen: Chosen, catalogue: Catalogue) -> Table:
    """What the model folder says, and for models of the catalogue what is published."""

    def row(each: Ranked) -> tuple[str, ...]:
        it, known = each.assessed, catalogue.find(each.assessed.candidate.base)
        published = None if known is None or known.benchmark is None else f"{known.benchmark.value:g} ({known.benchmark.name})"
        tokens = None if it.max_tokens is None else f"{it.max_tokens} tokens"
        found = (it.model_type, it.licence, tokens, known and known.languages, None if it.candidate.is_random else published)
        return (each.name, *(str(fact or NOTHING) for fact in found))

    known = any(catalogue.find(each.assessed.candidate.base) for each in chosen.ranked)
    note = f"Languages and published numbers are those of the catalogue of {catalogue.revised}." if known else ""
    return _table("About them", ("candidate", "family", "licence", "longest text", "languages", "published"), chosen, row, note)


def left_out(chosen: Chosen) -> Table:
    rows = tuple((each.candidate.name, each.why, "; ".join(each.reason.splitlines())) for each in chosen.refused)
    return Table("Left out", ("candidate", "why", "reason"), rows)


def notes(chosen: Chosen) -> list[str]:
    return [*chosen.notes, *(f"{each.name}: {note}" for each in chosen.ranked for note in each.assessed.notes)]


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def _table(title: str, columns: tuple[str, ...], chosen: Chosen, row: Callable[[Ranked], tuple[str, ...] | None], note: str) -> Table:
    return Table(title, columns, tuple(cells for each in chosen.ranked if (cells := row(each)) is not None), note)
