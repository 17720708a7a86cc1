"""Advice where it is met: at the end of `jaxtune train`, and in `jaxtune describe RUN`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_run
from tiny_run import Trained

from jaxtune.cli.main import main
from jaxtune.cli.output import Output
from jaxtune.cli.watching import show_result
from jaxtune.evaluation.advice_file import Advice, read_advice
from jaxtune.run import Result

FOUND = [Advice(f"rule{n}", f"The figure is {n}.", (f"data.batch_size={n}",), "Because.") for n in range(1, 6)]
NUMBERS = {"steps": 3, "seconds": 1.0, "examples_per_second": 2.0, "peak_memory_bytes": 1 << 30}


def write(folder: Path) -> None:
    (folder / "advice.json").write_text(json.dumps({"findings": [one.as_json() for one in FOUND], "rules": []}), encoding="utf-8")


def test_the_end_of_a_training_shows_three_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write(tmp_path)
    told = show_result(Output(), Result(tmp_path, NUMBERS))
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("advice", "        "))]
    assert shown == [f"advice  The figure is {n}. Try data.batch_size={n}." for n in (1, 2, 3)] + ["        and 2 more in the report"]
    assert [one["rule"] for one in told["advice"]] == [one.rule for one in FOUND]


def test_nothing_is_said_where_there_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert show_result(Output(), Result(tmp_path, NUMBERS))["advice"] == []
    assert "advice" not in capsys.readouterr().out


def test_describe_shows_all(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = tiny_run.copy(trained.run, tmp_path / "run")
    write(run)
    assert main(["describe", str(run), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["kinds"]
    assert [facts[f"advice {n}"] for n in range(1, 6)] == [one.line for one in FOUND]


def test_a_real_run_leaves_its_facts_and_its_advice(trained: Trained):
    facts = json.loads((trained.run / "facts.json").read_text())
    assert facts["rows"] == {"train": 72, "validation": 24, "test": 24} and facts["tokens"]["limit"] == 20
    assert facts["copies"]["seen_in_training"] == {"validation": 0, "test": 0} and facts["padding"]["widths"] == [20]
    assert [phase["steps"] for phase in facts["phases"]] == [10, 45] and facts["device"]["platform"] == "cpu"
    told = json.loads((trained.run / "advice.json").read_text())
    assert "padding" in told["rules"] and trained.done.told["advice"] == told["findings"]
    rows = [json.loads(line) for line in (trained.run / "metrics.jsonl").read_text().splitlines()]
    parts = [row["gradient_norm_by_part"] for row in rows if "gradient_norm_by_part" in row]
    assert set(parts[0]) == {"head"} and {"embeddings", "layers.0", "layers.2", "head"} <= set(parts[-1])
    assert len(parts) == sum(row["split"] == "validation" for row in rows)
    assert len(read_advice(trained.run)) == len(told["findings"])
