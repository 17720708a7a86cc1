"""`jaxtune compare A B`: whether the difference between two runs is real, and where it lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxtune.cli.output import Output
from jaxtune.cli.report import records_of
from jaxtune.core.errors import ConfigError, DiskError
from jaxtune.evaluation import wording
from jaxtune.evaluation.compare import Comparison, Difference, compare
from jaxtune.evaluation.compare_page import changed_examples, costs, names_of, setting, verdict, write_page
from jaxtune.run_folder import RunFolder

TOLD = 3  # examples fixed and broken, in the terminal
CLASSES = 12


def run(output: Output, first: Path, second: Path, out: Path | None) -> dict[str, Any]:
    if out is not None and not out.absolute().parent.is_dir():
        raise ConfigError(f"-o {out}: there is no folder {out.absolute().parent}; make it, or choose another place")
    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f'-o {out}: found suffix "{out.suffix}"; the page is HTML, call it {out.stem}.html')
    folders = [RunFolder.existing(path).path for path in (first, second)]
    found = compare(*folders)
    records, why_not = records_of(found.first.folder)
    tell(output, found, records, why_not)
    if out is not None:
        try:
            write_page(found, out, records, why_not)
        except OSError as error:
            raise DiskError(f"-o {out}: could not be written ({error.strerror}); choose another place") from error
        output.say()
        output.say(f"{out}")
    return as_json(found, out)


def tell(output: Output, found: Comparison, records: Any, why_not: str) -> None:
    names = names_of(found)
    for sentence in verdict(found):
        output.say(sentence)
    output.say()
    output.table([row(d, wording.metric(d.name)) for d in found.numbers], head=(found.split, *names, "difference", "95 % interval"))
    if found.classes:
        output.say()
        shown = sorted(found.classes, key=lambda d: -abs(d.change))[:CLASSES] if len(found.classes) > CLASSES else found.classes
        output.table([row(d, d.name) for d in shown], head=("F1 per class", *names, "difference", "95 % interval"))
    for what, positions in (("fixed", found.fixed), ("broken", found.broken)):
        if len(positions) and found.mcnemar is not None:
            output.say()
            output.say(f"{what}: {len(positions)}" + (f", for example (texts are not shown: {why_not})" if why_not else ", for example"))
            for example in changed_examples(found, positions, records, TOLD):
                text = next(iter(example["shown"].texts), "")
                output.say(
                    f"  row {example['shown'].row}: {example['true']} (was {example['first']}, is {example['second']}) {text[:160]}".rstrip()
                )
    if found.settings:
        output.say()
        output.table([(key, f"{setting(a)} -> {setting(b)}") for key, a, b in found.settings], head=("setting", ""))
    output.say()
    output.table(costs(found), head=("cost", *names))


def row(difference: Difference, name: str) -> tuple[str, ...]:
    interval = difference.interval
    between = "" if interval is None else f"{wording.signed(interval.low)} to {wording.signed(interval.high)}"
    return name, wording.value(difference.first), wording.value(difference.second), wording.signed(difference.change), between


def as_json(found: Comparison, out: Path | None) -> dict[str, Any]:
    def of(d: Difference) -> dict[str, Any]:
        interval = None if d.interval is None else [d.interval.low, d.interval.high]
        return {"first": d.first, "second": d.second, "difference": d.change, "interval": interval, "clear": d.is_clear}

    return {
        "first": str(found.first.folder), "second": str(found.second.folder), "split": found.split, "examples": len(found.pair[0]),
        "left_out": list(found.left_out), "numbers": {d.name: of(d) for d in found.numbers}, "classes": {d.name: of(d) for d in found.classes},
        "fixed": found.pair[0].rows[found.fixed].tolist(), "broken": found.pair[0].rows[found.broken].tolist(), "mcnemar_p": found.mcnemar,
        "settings": {key: [a, b] for key, a, b in found.settings}, "costs": {name: [a, b] for name, a, b in found.costs},
        "page": None if out is None else str(out),
    }  # fmt: skip
