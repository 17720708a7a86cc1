"""Writes what the docs state from the code and from measurements, so that no page repeats by hand what stands elsewhere.

    .venv/bin/python scripts/make_docs.py            # rewrites README.md and docs/*.md
    .venv/bin/python scripts/make_docs.py --check    # exits 1 and names the pages that are out of date

A page marks such a part with `<!-- made: NAME -->` and `<!-- /made -->`; MAKERS says what stands between. A part without anything to
say (a measurement that has not been taken) is empty, heading included. A file of benchmarks/results/ is shown where `shown_result` knows its
name, or when it holds `"table": {"title": ..., "columns": [...], "rows": [[...]], "note": ...}`.
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


def quickstart() -> str:
    return f"```yaml\n{(ROOT / 'configs' / 'quickstart.yaml').read_text(encoding='utf-8').strip()}\n```"


def commands() -> str:
    from jaxtune.cli import main as main  # which registers them
    from jaxtune.cli.calling import app, command_names

    rows = [(f"[`{name}`](#{name})", command.short_help) for name, command in zip(command_names(), app.registered_commands, strict=True)]
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


def advice_rules() -> str:
    """The rules of advice, from their own table."""
    from jaxtune.evaluation.advice import RULES

    rows = [(f"`{rule.name}`", rule.sign, rule.reason, ", ".join(f"`{name}`" for name in rule.unless)) for rule in RULES]
    return table(("finding", "what is seen", "why this threshold", "unless"), rows)


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


FIRST = ("quickstart_seeds", "encoder_cpu", "lm_cpu", "freezing", "kill_resume")  # what the README shows; docs/measured.md shows the rest


def measured() -> str:
    """The README's section of measurements, or nothing where none was taken."""
    parts = results(FIRST)
    return "\n\n".join(["## Measured", *parts, "More: [measured](docs/measured.md)."]) if parts else ""


def measurements() -> str:
    """Every other result there is."""
    return "\n\n".join(results(sorted({path.stem for path in RESULTS.glob("*.json")} - set(FIRST))))


def results(names: Sequence[str]) -> list[str]:
    paths = [path for name in names if (path := RESULTS / f"{name}.json").is_file()]
    return [shown for path in paths if (shown := shown_result(path.stem, json.loads(path.read_text("utf-8"))))]


def shown_result(name: str, result: Mapping[str, Any]) -> str:
    """One result as markdown, or nothing where its layout is not known or it is not complete."""
    if "table" in result:
        it = result["table"]
        return "\n\n".join(filter(None, (f"### {it['title']}", table(it["columns"], it["rows"]), it.get("note", ""))))
    shown = {"encoder_cpu": encoder, "freezing": freezing_result, "kill_resume": kills, "broken_experiments": broken}.get(name)
    return shown(result) if shown else ""


def freezing() -> str:
    path = RESULTS / "freezing.json"
    return freezing_table(json.loads(path.read_text("utf-8"))) if path.exists() else ""


def freezing_result(result: Mapping[str, Any]) -> str:
    return f"### What freezing saves\n\n{freezing_table(result)}"


def freezing_table(result: Mapping[str, Any]) -> str:
    """What the compiler says, which has no spread; times depend on the machine's other work and stay in the JSON."""
    machine = result["machine"]
    rows = [
        (row["trained"], f"{row['parameters']:,}", row["how"], f"{row['gflop']:.1f}", f"{row['temporaries_mib']:.0f} MiB", f"{row['arguments_mib']:.0f} MiB")
        for row in result["rows"]
    ]  # fmt: skip
    return (
        "MiniLM, one training step of 32 x 128 tokens in bfloat16, compiled for the CPU (`benchmarks/freezing.py`, "
        f"{result['date'][:10]}, {machine['processor']}, {machine['cores']} cores, jax {machine['jax']}). *split* is what jaxtune does; *masked* is the "
        "same step with optax masking, which computes every gradient. The figures are the compiler's, so they have no spread.\n\n"
        + table(("trained", "parameters", "how", "GFLOP", "temporary memory", "state and batch"), rows)
    )


def kills(result: Mapping[str, Any]) -> str:
    signals = ", ".join(f"{count} by {name}" for name, count in result["signals"].items())
    moments = table(("killed", "times"), list(result["moments"].items()))
    return (
        f"### Killed and resumed\n\nA run of {result['steps_of_the_run']} steps, killed and resumed in {result['trials']} trials ({signals}): "
        f"{result['bit_equal']} of {result['trials']} ended bit-equal to the undisturbed run in parameters, optimizer state, metrics, predictions and "
        f"export (`benchmarks/kill_resume.py`, {result['date']}, {result['machine']['processors']} cores).\n\n{moments}"
    )


def broken(result: Mapping[str, Any]) -> str:
    slowest = {
        limit: max(row["processor_seconds"] for row in result["rows"] if row["limit_seconds"] == limit)
        for limit in sorted({row["limit_seconds"] for row in result["rows"]})
    }
    times = ", ".join(f"{seconds:.1f} s where {limit:g} s are allowed" for limit, seconds in slowest.items())
    return (
        f"### Wrong experiments\n\n{result['passed']} of {result['cases']} broken experiments are answered with the documented message and exit code, in "
        f"time, and leave nothing behind ([errors](errors.md), `benchmarks/broken_experiments.py`). Slowest, in processor seconds: {times}."
    )


def encoder(result: Mapping[str, Any]) -> str:
    """benchmarks/encoder_cpu.py, when it has run to its end."""
    if not (result.get("complete", True) and result.get("steps") and result.get("epochs", {}).get("variants")):
        return ""
    machine, epochs = result["machine"], result["epochs"]
    size = epochs["size"] if epochs["size"] in result["steps"] else next(iter(result["steps"]))
    steps, only = result["steps"][size], result.get("settings", {}).get("epochs") == 1
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
        f"- {where}, {name}: {row['ratio']:.2f} x{spread(row)}"
        for where, found in ((f"step of {size}", steps), ("epoch", epochs))
        for name, row in found["ratios"].items()
    ]
    busy = [share for part in (*steps["variants"].values(), *epochs["variants"].values()) for share in flat(part["others_share"])]
    return "\n\n".join(
        (
            "### Speed of full fine-tuning on the CPU",
            "MiniLM on BBC News; every side in a process of its own on the same cores, steps in alternating rounds (`benchmarks/encoder_cpu.py`, "
            f"{result['date'][:10]}, {machine['cpu']}, {machine['cores']} cores). Other processes had up to {max(busy, default=0):.0%} of the machine.",
            f"One step of {size} (rows x tokens, no padding), median and 10th to 90th percentile:",
            table(("", "seconds per step", "examples/s", "peak GiB"), step_rows),
            f"Whole epochs of {epochs['rows']} rows, each side's own batching{'; the only epoch, so compilation is in it' if only else ''}:",
            table(("", "seconds of the last epoch", "examples/s", "test accuracy"), epoch_rows),
            "Examples per second of jaxtune over the other's:",
            "\n".join(ratios),
        )
    )


def spread(row: Mapping[str, Any]) -> str:
    return f" (rounds {', '.join(f'{value:.2f}' for value in row['rounds'])})" if row.get("rounds") else ""


def flat(shares: Any) -> list[float]:
    return [share for share in (shares if isinstance(shares, list) else [shares]) if share is not None]


def table(head: Row, rows: Sequence[Row]) -> str:
    def line(cells: Row) -> str:
        return "| " + " | ".join(" ".join(str(cell).replace("|", "\\|").split()) for cell in cells) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])


MAKERS: Mapping[str, Callable[[], str]] = {
    "quickstart": quickstart,
    "measured": measured,
    "measurements": measurements,
    "commands": commands,
    "exit-codes": exit_codes,
    "public-names": public_names,
    "levels": levels,
    "experiment": experiment,
    "freezing": freezing,
    "advice-rules": advice_rules,
}

if __name__ == "__main__":
    sys.exit(main())
