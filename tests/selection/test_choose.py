"""`choose` from Python: the order, the files, the costs against a real run's, and candidates that do not work."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import tiny
from tiny_run import Trained

from jaxtune.core.errors import ConfigError
from jaxtune.experiment import load_experiment
from jaxtune.models.settings import NewModel
from jaxtune.prepare import prepare
from jaxtune.selection.candidates import Candidate, Filters
from jaxtune.selection.choose import Effort, choose, open_session
from jaxtune.selection.chosen import Assessed, Chosen, rank
from jaxtune.selection.cost import export_bytes, measure_cost, measure_tokenizer, parameter_count
from jaxtune.selection.scores import Scores
from jaxtune.selection.transferability import Interval, Transferability
from jaxtune.session import Session

QUICK = Effort(rows=60, folds=3, repeats=1, steps=0)


def test_the_better_base_comes_first_and_what_fails_stops_nobody(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A model that was trained on these topics, its random twin, and everything that can go wrong."""
    monkeypatch.chdir(trained.folder)
    shutil.copytree(trained.run / "export", tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"no tensors")
    good = "runs/tiny/export"
    candidates = [
        Candidate("no/where"),
        Candidate(str(tiny.REFERENCES / "vit")),
        Candidate(str(tmp_path / "damaged")),
        Candidate(good, fresh=True),
        Candidate(NewModel(family="bert", config={})),
        Candidate(good),
        Candidate("model"),
    ]
    told: list[str] = []
    experiment = load_experiment("tiny.yaml")
    filters = Filters(max_parameters=10**8)
    found = choose(
        experiment, candidates, filters=filters, effort=QUICK, runs_dir=tmp_path / "runs", cache=tmp_path / "cache", tell=told.append
    )
    assert found.best.name == good and found.best.assessed.score.probe.mean > 0.9
    twin = next(each for each in found.ranked if each.assessed.candidate.fresh)
    assert twin.behind is not None and not twin.within_noise and twin.behind.mean > 0.1
    assert "ahead of" in found.verdict or "Within noise" in found.verdict
    reasons = {each.candidate.name: (each.why, each.reason) for each in found.refused}
    assert set(reasons) == {"no/where", str(tiny.REFERENCES / "vit"), str(tmp_path / "damaged"), "new bert"}
    assert reasons["new bert"][0] == "filtered" and "parameters; wanted" in reasons["new bert"][1]
    assert "could not be downloaded" in reasons["no/where"][1]
    assert "vit model for images" in reasons[str(tiny.REFERENCES / "vit")][1]
    assert "damaged safetensors file" in reasons[str(tmp_path / "damaged")][1]
    assert [line.split("  ")[0] for line in told] == [f"{number} of 7" for number in range(1, 8)]

    assert found.folder == (tmp_path / "runs" / "tiny-choose").absolute()
    assert found.folder is not None and {path.name for path in found.folder.iterdir()} >= {
        "choose.json",
        "experiment.yaml",
        "environment.json",
        "plots",
    }
    written = json.loads((found.folder / "choose.json").read_text())
    assert [each["name"] for each in written["candidates"]] == [each.name for each in found.ranked]
    assert written["candidates"][0]["scores"]["probe"]["mean"] == pytest.approx(found.best.assessed.score.probe.mean)
    assert {each["name"] for each in written["left_out"]} == set(reasons)
    ElementTree.parse(found.folder / "plots" / "score_against_cost.svg")
    page = (found.folder / "choose.html").read_text()
    assert "default-src 'none'" in page and "<script" not in page and str(tiny.REFERENCES / "vit") in page
    assert load_experiment(found.folder / "experiment.yaml") == experiment

    again = choose(experiment, candidates[-2:], effort=QUICK, runs_dir=tmp_path / "runs", cache=tmp_path / "cache")
    assert again.folder is not None and again.folder.name == "tiny-choose-2"
    assert all(each.assessed.from_cache for each in again.ranked)
    assert again.best.assessed.score == found.best.assessed.score


def test_when_none_can_be_compared_every_reason_is_told(tiny_experiment: Path, tmp_path: Path):
    with pytest.raises(ConfigError) as error:
        choose(load_experiment(tiny_experiment), [Candidate("a/b"), Candidate(str(tiny.REFERENCES / "vit"))], runs_dir=tmp_path / "runs")
    assert [problem.split(":")[0] for problem in error.value.problems][:2] == ["no candidate could be compared", "a/b"]
    assert len(error.value.problems) == 3 and not (tmp_path / "runs").exists()


def test_only_training_rows_are_looked_at(tiny_experiment: Path, tmp_path: Path):
    """Other validation and test texts change no score."""

    def scores() -> Transferability:
        found = choose(experiment, [Candidate("model")], effort=QUICK, runs_dir=tmp_path / "runs", cache=tmp_path / "cache")
        return found.best.assessed.score

    experiment = load_experiment(tiny_experiment)
    before = scores()
    prepared = prepare(experiment)
    sources = prepared.scanned.records.source
    for split in ("validation", "test"):
        for record in prepared.splits[split].ids:
            Path("texts", sources[int(record)]["path"]).write_text(f"something else {record}")
    named = {split: [sources[int(i)]["path"] for i in prepared.splits[split].ids] for split in prepared.splits}
    experiment = fixed_split(experiment, named, tmp_path)
    changed = scores()
    assert changed.logme == pytest.approx(before.logme, rel=1e-5) and changed.probe.mean == pytest.approx(before.probe.mean, abs=1e-6)


def fixed_split(experiment, named, folder: Path):  # type: ignore[no-untyped-def]
    """The experiment on a file that names the splits."""
    rows = [
        {"text": Path("texts", path).read_text(), "label": path.split("/")[0], "split": split}
        for split, paths in named.items()
        for path in paths
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [f"data.source={{kind: json_lines, path: {folder / 'rows.jsonl'}}}", "data.split={kind: column, by: split}"]
    return load_experiment("tiny.yaml", words)


# -- costs ----------------------------------------------------------------------------------------------------------------------------


def test_costs_are_those_of_the_run(trained: Trained, monkeypatch: pytest.MonkeyPatch):
    """The exported size is that of the folder a run wrote; FLOPs, rows and memory are those of the compiled phase."""
    monkeypatch.chdir(trained.folder)
    session = Session.open(prepare(load_experiment("tiny.yaml")), tiny.one_device())
    export = trained.run / "export"
    written = sum(path.stat().st_size for path in export.iterdir() if path.suffix in (".safetensors", ".txt") or "token" in path.name)
    header = 8 + int.from_bytes((export / "model.safetensors").read_bytes()[:8], "little")  # names and shapes of the tensors: not counted
    assert export_bytes(session) == written - header
    cost = measure_cost(session, *session.load_base(), 2)
    stage = session.start_phase(0, *session.load_base(), None)
    compiled = session.compile(stage, 0)
    assert (cost.step_flops, cost.rows, cost.width, cost.step_memory_bytes) == (compiled.flops, 16, 20, compiled.memory.peak)
    assert cost.parameters == parameter_count(session) == sum(value.size for value in stage.state.params.values())
    assert cost.trained == sum(value.size for value in stage.state.trainable.values()) < cost.parameters
    assert 0 < cost.step.range.low <= cost.step.median <= cost.step.range.high and cost.prediction.median > 0
    assert cost.flops_per_example == compiled.flops / 16


def test_the_tokenizers_fit(tiny_experiment: Path):
    for path in list(Path("texts").rglob("*.txt"))[::2]:
        path.write_text(f"market \u2603 {path.stem} " + "price " * (30 if path.stem.endswith("0") else 2))
    prepared = prepare(load_experiment(tiny_experiment))
    records = prepared.splits["train"].ids
    found = measure_tokenizer(prepared, records)
    assert found is not None and prepared.processor.tokenizer is not None
    backend = prepared.processor.tokenizer.backend
    texts = [prepared.scanned.records[int(i)]["text"] for i in records]
    tokens = [backend.encode(text, add_special_tokens=False).tokens for text in texts]
    assert found.tokens_per_word == pytest.approx(sum(map(len, tokens)) / sum(len(text.split()) for text in texts))
    assert found.unknown == pytest.approx(sum(part.count("[UNK]") for part in tokens) / sum(map(len, tokens))) and found.unknown > 0
    assert found.cut == pytest.approx(np.mean([len(part) + 2 > 20 for part in tokens])) and 0 < found.cut < 1
    assert found.vocabulary == prepared.processor.tokenizer.vocabulary


def test_patterns_that_a_model_does_not_have_cost_a_note_not_the_candidate(tiny_experiment: Path):
    prepared = prepare(load_experiment(tiny_experiment, ["phases.1.train=[layers.17.*]"]))
    session, notes = open_session(prepared)
    assert len(notes) == 1 and "layers.17.*" in notes[0]
    assert session.trained[1] == frozenset(session.trained[0]) and len(session.trained[0]) > 10
    assert open_session(prepare(load_experiment(tiny_experiment)))[1] == ()


def test_dropped_texts_are_cut_and_that_is_said(tiny_experiment: Path, tmp_path: Path):
    words = ["data.over_length=drop", "data.max_tokens=8", "data.widths=auto"]
    found = choose(
        load_experiment(tiny_experiment, words), [Candidate("model")], effort=QUICK, runs_dir=tmp_path / "runs", cache=tmp_path / "c"
    )
    assert found.training_rows == 72 and found.notes[0].startswith("texts that are too long are cut here")
    assert found.best.assessed.tokenizer is not None and found.best.assessed.tokenizer.cut > 0.3


# -- the order ------------------------------------------------------------------------------------------------------------------------


def assessed(name: str, values: list[float], *, parameters: int = 1, fresh: bool = False) -> Assessed:
    scores = Scores(tuple(values), 5)
    score = Transferability(scores, scores, 0.0, Interval(0.0, 0.0))
    return Assessed(Candidate(name, fresh), "bert", None, 512, parameters, {"head": score}, None, None, 0.0, False)


def chosen(*each: Assessed) -> Chosen:
    return Chosen(rank(each), (), "accuracy", 100, 100, 5, 1)


BASE = [0.80, 0.90, 0.85, 0.95, 0.88]


def test_a_clear_winner_is_called_one():
    found = chosen(assessed("poor", [v - 0.1 for v in BASE]), assessed("good", [v + 0.001 * i for i, v in enumerate(BASE)]))
    assert [each.name for each in found.ranked] == ["good", "poor"]
    assert (
        found.verdict.startswith("good comes first: accuracy 0.878 (")
        and "It is 0.102 (0.099 to 0.105)" in found.verdict
        and "ahead of poor" in found.verdict
    )
    assert found.tied == (found.best,)


def test_what_is_within_noise_is_said_and_the_cheapest_is_named():
    close = assessed("small", [0.81, 0.88, 0.86, 0.93, 0.89], parameters=10**6)
    found = chosen(assessed("large", BASE, parameters=10**8), close, assessed("poor", [v - 0.2 for v in BASE]))
    assert [each.within_noise for each in found.ranked] == [False, True, False]
    assert "Within noise of it: small." in found.verdict and "The cheapest of these is small (1 million parameters)." in found.verdict
    assert found.ranked[1].ahead is not None and not found.ranked[1].ahead.within_noise and found.ranked[0].ahead is not None


def test_a_candidate_is_judged_by_the_reading_that_finds_most():
    low, high = assessed("a", [v - 0.1 for v in BASE]).score, assessed("a", BASE).score
    both = replace(assessed("a", BASE), readings={"head": low, "mean of tokens": high})
    assert (both.reading, both.score) == ("mean of tokens", high)


def test_random_weights_that_do_as_well_are_a_warning():
    found = chosen(assessed("model", BASE), assessed("model", [0.81, 0.88, 0.86, 0.93, 0.89], fresh=True))
    assert "Random weights do as well here" in found.verdict
    assert "Random" not in chosen(assessed("model", BASE), assessed("model", [v - 0.3 for v in BASE], fresh=True)).verdict


@pytest.mark.parametrize(("setting", "value"), [("rows", 5), ("folds", 1), ("repeats", 0), ("steps", -1)])
def test_effort_has_a_least(setting: str, value: int):
    with pytest.raises(ConfigError, match=f"{setting}: found {value}"):
        Effort(**{setting: value})
