"""Writes what the docs state from the code and from measurements, so that no page repeats by hand what stands elsewhere.

    .venv/bin/python scripts/make_docs.py            # rewrites README.md and docs/*.md
    .venv/bin/python scripts/make_docs.py --check    # exits 1 and names the pages that are out of date

A page marks such a part with `<!-- made: NAME -->` and `<!-- /made -->`; MAKERS says what stands between. A part without anything to
say (a measurement that has not been taken) is empty, heading included. A file of benchmarks/results/ is shown where a maker knows its
layout, or when it holds `"table": {"title": ..., "columns": [...], "rows": [[...]], "note": ...}`.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PART = re.compile(r"(<!-- made: ([\w-]+) -->\n).*?(<!-- /made -->)", re.DOTALL)

Row = Sequence[Any]


def main() -> int:
    stale = [page for page in pages() if made(text := page.read_text(encoding="utf-8")) != text]
    if "--check" in sys.argv[1:]:
        for page in stale:
            print(f"{page.relative_to(ROOT)} is out of date; run scripts/make_docs.py", file=sys.stderr)
        return 1 if stale else 0
    for page in stale:
        page.write_text(made(page.read_text(encoding="utf-8")), encoding="utf-8")
        print(page.relative_to(ROOT))
    return 0


def pages() -> list[Path]:
    """Every page that may hold made parts."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def made(text: str) -> str:
    """A page with its made parts made again."""

    def part(match: re.Match[str]) -> str:
        body = MAKERS[match[2]]().strip()
        return match[1] + (f"\n{body}\n\n" if body else "") + match[3]

    return PART.sub(part, text)


# -- the parts ----------------------------------------------------------------------------------------------------------


def picture() -> str:
    image = ROOT / "docs" / "images" / "report.png"
    return f"![The report of the run](docs/images/{image.name})" if image.exists() else ""


def quickstart() -> str:
    return f"```yaml\n{(ROOT / 'configs' / 'quickstart.yaml').read_text(encoding='utf-8').strip()}\n```"


def works() -> str:
    """Families and the tasks of their domain, with how many recorded checkpoints the parity tests compare."""
    from jaxtune.core.component import OneOf
    from jaxtune.models import FAMILIES
    from jaxtune.models.family import family_class
    from jaxtune.tasks import TASKS

    index = ROOT / "tests" / "references"
    recorded = Counter(json.loads(path.read_text(encoding="utf-8"))["model_type"] for path in sorted(index.glob("*/config.json")))
    tasks = {name: OneOf(TASKS).find(name).domain for name in TASKS}  # type: ignore[attr-defined]
    rows = []
    for model_type in FAMILIES:
        domain = family_class(model_type).domain
        rows.append(
            (f"`{model_type}`", domain, ", ".join(f"`{task}`" for task, own in tasks.items() if own == domain), recorded[model_type])
        )
    return table(("`model_type`", "reads", "task", "checkpoints compared with PyTorch"), rows)


def commands() -> str:
    from jaxtune.cli.main import app

    rows = []
    for command in app.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__
        rows.append((f"[`{name}`](#{name})", command.short_help))
    return table(("command", "what it does"), rows)


def exit_codes() -> str:
    from jaxtune.core.errors import EXIT_CODES

    return table(("code", "meaning"), list(EXIT_CODES.items()))


def public_names() -> str:
    import inspect

    import jaxtune

    rows = []
    for name in jaxtune.__all__:
        thing = getattr(jaxtune, name)
        rows.append((f"`jaxtune.{name}`", f"`{thing.__module__}`", (inspect.getdoc(thing) or "").split("\n")[0]))
    return table(("name", "lives in", "what it is"), rows)


def levels() -> str:
    """The levels of the layering test: what may import what."""
    import ast

    tree = ast.parse((ROOT / "tests" / "test_layering.py").read_text(encoding="utf-8"))
    found = next(node.value for node in ast.walk(tree) if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "LEVELS")
    by_level: dict[int, list[str]] = {}
    for name, level in ast.literal_eval(found).items():  # type: ignore[arg-type]
        folder, file = ROOT / "jaxtune" / name, ROOT / "jaxtune" / f"{name}.py"
        if folder.is_dir() or file.is_file():
            by_level.setdefault(level, []).append(f"`{name}/`" if folder.is_dir() else f"`{file.name}`")
    return table(("level", "packages and files"), [(level, " ".join(names)) for level, names in sorted(by_level.items(), reverse=True)])


# -- an experiment, setting by setting ------------------------------------------------------------------------------------


def experiment() -> str:
    """Every section and every kind, from their own declarations, as `jaxtune describe` tells them."""
    from jaxtune.config.describe import tables
    from jaxtune.config.schema import field_place
    from jaxtune.config.words import describe, row_of
    from jaxtune.core.component import Component
    from jaxtune.experiment import Experiment

    lines = ["## The sections", "", setting_table(row_of(name, field) for name, field in Experiment.model_fields.items())]

    def section(cls: type[Component], path: str) -> None:
        for name, field in cls.model_fields.items():
            place = field_place(field)
            for inner in (*place.sections, *(place.items.sections if place.items else ())):
                lines.extend(("", f"### `{path}{name}`", "", about(inner), "", setting_table(describe(inner))))
                section(inner, f"{path}{name}.")

    section(Experiment, "")
    lines += ["", "## The kinds"]
    for choice in tables(Experiment):
        lines += ["", kinds_of(choice)]
    return "\n".join(lines)


def kinds_of(choice: Any) -> str:
    """One table: the settings that all its kinds share, then each kind with its own."""
    from jaxtune.config.schema import kinds
    from jaxtune.config.words import describe, table_name

    found = {kind: (cls, describe(cls)) for kind, cls in kinds(choice).items()}
    counts = Counter(row for _, rows in found.values() for row in rows)
    shared = [row for row in dict.fromkeys(chain.from_iterable(rows for _, rows in found.values())) if counts[row] == len(found) > 1]
    lines = [f"### {table_name(choice)}"]
    if shared:
        lines += ["", "Every kind has:", "", setting_table(shared)]
    for kind, (cls, rows) in found.items():
        own = [row for row in rows if row not in shared]
        lines += ["", f"#### `{kind}`", "", about(cls)]
        if own:
            lines += ["", setting_table(own)]
    return "\n".join(lines)


def about(cls: type) -> str:
    import inspect

    text = inspect.getdoc(cls) if cls.__doc__ else ""
    return text or (sys.modules[cls.__module__].__doc__ or "").strip().split("\n")[0]


def setting_table(rows: Any) -> str:
    cells = []
    for row in rows:
        kind = ", ".join(part for part in (row.type, row.constraints) if part)
        cells.append(
            (f"`{row.name}`", kind, row.default if row.default in ("required", "its defaults") else f"`{row.default}`", row.description)
        )
    return table(("setting", "what it takes", "default", "meaning"), cells)


# -- measurements -------------------------------------------------------------------------------------------------------


def measured() -> str:
    """The README's section of measurements: every result there is, or nothing."""
    parts = [
        shown
        for path in sorted(RESULTS.glob("*.json"))
        if path.stem != "freezing" and (shown := result_table(json.loads(path.read_text(encoding="utf-8"))))
    ]
    return "\n\n".join(["## Measured", *parts]) if parts else ""


def freezing() -> str:
    path = RESULTS / "freezing.json"
    return freezing_table(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else ""


def result_table(result: Mapping[str, Any]) -> str:
    """One result as markdown, or nothing where its layout is not known."""
    if "table" in result:
        shown = result["table"]
        return "\n\n".join(filter(None, (f"### {shown['title']}", table(shown["columns"], shown["rows"]), shown.get("note", ""))))
    return encoder_table(result) if result.get("steps") and result.get("epochs") else ""


def encoder_table(result: Mapping[str, Any]) -> str:
    """benchmarks/encoder_cpu.py."""
    machine, epochs = result["machine"], result["epochs"]
    size = epochs["size"] if epochs.get("size") in result["steps"] else next(iter(result["steps"]))
    steps = result["steps"][size]
    step_rows = [
        (name, f"{row['step_seconds']:.2f} ({row['step_seconds_p10']:.2f} to {row['step_seconds_p90']:.2f})",
         f"{row['examples_per_second']:.1f}", f"{row['peak_gib']:.2f}")
        for name, row in steps["variants"].items()
    ]  # fmt: skip
    epoch_rows = [
        (name, f"{row['last_epoch_seconds']:.1f}", f"{row['examples_per_second']:.1f}", f"{row['accuracy']['test']:.4f}")
        for name, row in epochs["variants"].items()
    ]
    ratios = [
        f"- {where}: {name}: {row['ratio']:.2f} x"
        for where, found in ((f"step of {size}", steps), ("epoch", epochs))
        for name, row in found["ratios"].items()
    ]
    versions = ", ".join(f"{name} {version}" for name, version in flat(result["versions"]).items())
    return "\n\n".join(
        (
            "### Speed of full fine-tuning on the CPU",
            "MiniLM-L6 on BBC News, every side in a process of its own on the same cores, steps in alternating rounds "
            f"(`benchmarks/encoder_cpu.py`). {machine['cpu']}, {machine['cores']} cores, {result['date'][:10]}.",
            f"One step of {size} (rows x tokens, no padding), median and 10th to 90th percentile:",
            table(("", "seconds per step", "examples/s", "peak GiB"), step_rows),
            f"Whole epochs of {epochs['rows']} rows, each side's own batching:",
            table(("", "seconds of the last epoch", "examples/s", "test accuracy"), epoch_rows),
            "Examples per second of jaxtune over the other's:",
            "\n".join(ratios),
            f"Versions: {versions}." if versions else "",
        )
    ).strip()


def flat(tree: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested mappings as one, with words joined by a space."""
    out: dict[str, Any] = {}
    for name, value in tree.items():
        out |= flat(value, f"{before}{name} ") if isinstance(value, Mapping) else {f"{before}{name}": value}
    return out


def freezing_table(result: Mapping[str, Any]) -> str:
    """benchmarks/freezing.py."""
    machine = result["machine"]
    rows = [
        (row["trained"], row["how"], f"{row['parameters']:,}", f"{row['gflop']:.1f}", f"{row['temporaries_mib']:.0f}",
         f"{row['arguments_mib']:.0f}", f"{row['step_milliseconds']:.0f}")
        for row in result["rows"]
    ]  # fmt: skip
    head = ("trains", "how", "parameters", "GFLOP a step", "temporary MiB", "state and batch MiB", "ms a step (median)")
    return (
        f"MiniLM-L6, 32 rows x 128 tokens, bfloat16 (`benchmarks/freezing.py`; {machine['processor']}, {machine['cores']} cores, "
        f"{result['date'][:10]}):\n\n{table(head, rows)}"
    )


def table(head: Row, rows: Sequence[Row]) -> str:
    def line(cells: Row) -> str:
        return "| " + " | ".join(" ".join(str(cell).replace("|", "\\|").split()) for cell in cells) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])


MAKERS: Mapping[str, Callable[[], str]] = {
    "picture": picture,
    "quickstart": quickstart,
    "works": works,
    "measured": measured,
    "commands": commands,
    "exit-codes": exit_codes,
    "public-names": public_names,
    "levels": levels,
    "experiment": experiment,
    "freezing": freezing,
}

if __name__ == "__main__":
    sys.exit(main())
