"""The report page: its structure, its numbers, and that nothing in the data becomes part of the page's code."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from made_run import MadeRun
from PIL import Image
from sklearn import metrics as reference

from jaxtune.core.errors import ConfigError, DataError
from jaxtune.evaluation.report import render, write_report

ATTACKS = (
    "<script>document.title='taken'</script>",
    "</script><img src=x onerror=alert(1)>",
    "{{7*7}} {% raw %} {{ config }}",
    '<a href="javascript:alert(1)">here</a>',
    '" onmouseover="alert(1)" \' onload=\'x',
    "<svg onload=alert(1)> ]]> <!-- --> </svg></style><style>*{display:none}",
    "\x1b[31mred\x1b[0m \u202eevil\u202c \x00 nul",
)
ADDRESSES = {"src", "href", "srcset", "action", "background", "poster", "data", "xlink:href", "ping", "formaction"}
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Parsed(HTMLParser):
    """A page as tags, attributes and text; every tag must be closed in its place."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []  # (innermost tag, text)
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> inside <{self.open[-1] if self.open else 'nothing'}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open:
            self.texts.append((self.open[-1], " ".join(data.split())))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def text_in(self, tag: str) -> list[str]:
        return [text for where, text in self.texts if where == tag]

    @property
    def text(self) -> str:
        return " ".join(text for _, text in self.texts)

    @property
    def headings(self) -> list[str]:
        """Of the sections, without the advice, which made-up numbers may or may not bring about (tests/evaluation/test_advice.py)."""
        return [text for text in self.text_in("h2") if text != "What to try next"]


class Told:
    """Records that hold whatever a test wants to see on the page."""

    def __init__(self, **fields: Any):
        self.fields = fields

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {name: value(row) if callable(value) else value for name, value in self.fields.items()}


def report(tmp_path: Path, records: Any = None, **made: Any) -> Parsed:
    return Parsed(write_report(MadeRun(**made).write(tmp_path / "run"), records).read_text(encoding="utf-8"))


# -- structure --------------------------------------------------------------------------------------------------------------

SECTIONS = {
    "single_label": ["Numbers", "Learning curves", "Classes", "What is taken for what", "Calibration", "Slices"],
    "multi_label": ["Numbers", "Learning curves", "Classes", "Calibration"],
    "regression": ["Numbers", "Learning curves", "Residuals"],
}
COMMON = ["Hardest examples", "What was trained", "Where the time went", "How to reproduce"]


@pytest.mark.parametrize("problem", SECTIONS)
def test_the_page_has_its_sections_and_can_be_read_aloud(problem: str, tmp_path: Path) -> None:
    names = () if problem == "regression" else ("a", "b", "c")
    page = report(tmp_path, Told(text=lambda row: f"text of row {row}"), problem=problem, names=names)
    assert page.headings == SECTIONS[problem] + COMMON
    assert page.text_in("h1") == ["run"]
    anchors = {attributes["href"].removeprefix("#") for attributes in page.all("a")}
    assert anchors == {attributes["id"] for attributes in page.all("h2")}
    assert len(page.all("caption")) == len(page.all("table")) >= 6
    assert all(attributes.get("scope") in ("row", "col") for attributes in page.all("th"))
    drawings = [attributes for attributes in page.all("svg") if "role" in attributes]
    assert drawings and all(attributes["role"] == "img" and attributes["aria-label"] for attributes in drawings)
    assert page.all("html")[0]["lang"] == "en"
    assert [attributes["content"] for attributes in page.all("meta") if attributes.get("http-equiv") == "Content-Security-Policy"] == [
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    ]


def test_nothing_is_loaded_from_anywhere(tmp_path: Path) -> None:
    made = MadeRun(domain="image", base={"family": "vit"})
    records: Any = Told(image=lambda row: np.full((8, 8, 1), row % 256, np.uint8))
    path = write_report(made.write(tmp_path / "run"), records)
    text = path.read_text(encoding="utf-8")
    check_harmless(Parsed(text))
    assert "url(" not in text and "@import" not in text
    assert len(text) < 300_000


def check_harmless(page: Parsed) -> None:
    """No element that runs, loads, submits or embeds; no handler; no address but data: and places on the page itself."""
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "iframe", "object", "embed", "form", "base", "audio", "video", "source", "use", "image", "foreignobject"}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ADDRESSES & attributes.keys():
            assert attributes[name].startswith("#") or attributes[name].startswith("data:"), (tag, attributes)


# -- hostile data -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ATTACKS)
def test_text_from_the_data_stays_text(attack: str, tmp_path: Path) -> None:
    records = Told(text=attack, path=attack)
    page = report(tmp_path, records, names=(attack, "other", attack + "2"), events=hostile_events(attack), base=attack.replace("\x00", ""))
    check_harmless(page)
    assert len(page.all("style")) == 1 and len(page.all("title")) >= 1
    assert page.headings[:3] == ["Numbers", "Learning curves", "Classes"]
    if attack.isprintable():
        assert " ".join(attack.split()) in page.text
    assert "49" not in [word for text in page.text_in("blockquote") for word in text.split()]
    assert not set("\x1b\x00\u202e") & set(page.text)
    harmless_plots(tmp_path / "run")


def hostile_events(attack: str) -> list[dict[str, Any]]:
    return [
        {"time": "2026-09-21T13:00:00+0000", "event": "decision", "step": 100, "decision": attack, "reason": attack},
        {"time": "2026-09-21T13:00:00+0000", "event": "resumed", "step": 60, "rejected": [[80, attack]]},
    ]


def harmless_plots(folder: Path) -> None:
    for path in (folder / "plots").glob("*.svg"):
        tags = {element.tag.split("}")[1] for element in ElementTree.parse(path).iter()}
        assert tags <= {"svg", "style", "text", "tspan", "path", "line", "circle", "rect", "polyline", "title"}


def test_a_hostile_folder_name_and_metric(tmp_path: Path) -> None:
    made = MadeRun()
    folder = made.write(tmp_path / "<img src=x onerror=alert(1)>")
    numbers = json.loads((folder / "result.json").read_text())
    numbers["test"]["<script>x</script>"] = 0.5
    (folder / "result.json").write_text(json.dumps(numbers))
    page = Parsed(write_report(folder).read_text(encoding="utf-8"))
    check_harmless(page)
    assert page.text_in("h1") == ["<img src=x onerror=alert(1)>"]
    assert "<script>x</script>" in page.text


def test_long_texts_are_cut_between_words(tmp_path: Path) -> None:
    page = report(tmp_path, Told(text="word " * 500))
    shown = page.text_in("blockquote")
    assert shown and all(text.endswith("word …") and 250 < len(text) <= 325 for text in shown)


# -- numbers ----------------------------------------------------------------------------------------------------------------


def test_numbers_are_those_of_scikit_learn(tmp_path: Path) -> None:
    made = MadeRun(names=("a", "b", "c"), examples=300)
    page = Parsed(write_report(made.write(tmp_path / "run")).read_text(encoding="utf-8"))
    told = made.predictions["test"]
    truth = [made.names.index(made.truth[i]) for i in told.ids]
    answers = told.probabilities.argmax(1)
    matrix = reference.confusion_matrix(truth, answers)
    cells = [int(text) for text in page.text_in("td") if re.fullmatch(r"\d+", text)]
    wanted = matrix.reshape(-1).tolist()
    assert any(cells[i : i + 9] == wanted for i in range(len(cells))), (cells, wanted)
    precision, recall, f1, _ = reference.precision_recall_fscore_support(truth, answers)
    for value in (*precision, *recall, *f1):
        assert f"{value:.3f}" in page.text
    wrong = int((answers != truth).sum())
    assert page.text_in("dd")[0] == f"{made.metrics['test']['accuracy']:.3f}"
    assert page.text_in("dd")[2:4] == [str(wrong), "of 300 examples"]
    accuracy = f"{made.metrics['test']['accuracy']:.3f}"
    assert re.search(rf"Test accuracy is {accuracy} \(95 % interval 0\.\d+ to 0\.\d+\) on 300 examples", page.text)


def test_the_hardest_examples_come_with_row_truth_and_text(tmp_path: Path) -> None:
    made = MadeRun()
    records = Told(text=lambda row: f"text of row {row}", path=lambda row: f"folder/{row}.txt")
    page = Parsed(write_report(made.write(tmp_path / "run"), records).read_text(encoding="utf-8"))  # type: ignore[arg-type]
    told = made.predictions["test"]
    worst = [int(told.ids[i]) for i in np.argsort(-told.loss)[:12]]
    assert page.text_in("blockquote") == [f"text of row {row}" for row in worst]
    assert [f"row {row}, folder/{row}.txt" in page.text for row in worst] == [True] * 12
    assert f"true {made.truth[worst[0]]} predicted" in page.text


def test_rows_of_the_source_are_named_where_transforms_left_some_out(tmp_path: Path) -> None:
    records = Told(text="t")
    records.rows = np.arange(1000) + 5  # type: ignore[attr-defined]
    page = report(tmp_path, records)
    found = re.search(r"row (\d+) \(row (\d+) of the source\)", page.text)
    assert found and int(found[2]) == int(found[1]) + 5


def test_regression_tells_residuals(tmp_path: Path) -> None:
    made = MadeRun(problem="regression", names=())
    page = Parsed(write_report(made.write(tmp_path / "run")).read_text(encoding="utf-8"))
    told = made.predictions["test"]
    error = told.probabilities[:, 0] - np.array([made.truth[i] for i in told.ids])
    assert f"{np.abs(error).mean():.3f}" in page.text_in("td")
    assert "Test mean squared error is" in page.text and "Confusions" not in page.text
    assert {path.stem for path in (tmp_path / "run" / "plots").iterdir()} == {"learning_curves", "scatter", "residuals"}


def test_multi_label_tells_labels_and_their_calibration(tmp_path: Path) -> None:
    page = report(tmp_path, problem="multi_label", names=("x", "y"))
    assert "Every label of every example counts as one answer" in page.text
    assert page.text_in("dt")[1] == "examples with an error"


def test_images_become_thumbnails(tmp_path: Path) -> None:
    page = report(tmp_path, Told(image=lambda row: np.full((300, 200, 3), row % 256, np.uint8)), domain="image")
    images = page.all("img")
    assert len(images) == 12
    for attributes in images:
        assert re.fullmatch(r"row \d+: true \w+, predicted \w+", attributes["alt"])
        kind, _, data = attributes["src"].partition(",")
        assert kind == "data:image/png;base64"
        with Image.open(BytesIO(base64.b64decode(data))) as image:
            assert image.size == (75, 112)


def test_many_classes_show_the_weakest_and_fold_the_others(tmp_path: Path) -> None:
    page = report(tmp_path, names=tuple(f"class {i}" for i in range(45)), examples=900)
    assert "The other 15 classes" in page.text and "25 others are left out" in page.text


# -- what may be missing ----------------------------------------------------------------------------------------------------


def test_without_predictions_the_rest_is_told(tmp_path: Path) -> None:
    folder = MadeRun().write(tmp_path / "run")
    for path in (folder / "predictions").iterdir():
        path.unlink()
    page = Parsed(write_report(folder).read_text(encoding="utf-8"))
    assert page.headings == ["Numbers", "Learning curves", "What was trained", "Where the time went", "How to reproduce"]
    assert "the run kept no predictions" in page.text


@pytest.mark.parametrize("splits", [("test",), ("validation",)])
def test_one_split_is_enough(splits: tuple[str, ...], tmp_path: Path) -> None:
    page = report(tmp_path, splits=splits)
    assert f"{splits[0].capitalize()} accuracy is" in page.text
    assert ("There is no test split" in page.text) == (splits == ("validation",))


def test_numbers_that_are_not_defined(tmp_path: Path) -> None:
    folder = MadeRun().write(tmp_path / "run")
    numbers = json.loads((folder / "result.json").read_text())
    numbers["test"] |= {"auc": "NaN", "loss": "Infinity"}
    (folder / "result.json").write_text(json.dumps(numbers))
    page = Parsed(write_report(folder).read_text(encoding="utf-8"))
    assert "not defined" in page.text_in("td") and "infinite" in page.text_in("td")


def test_a_record_that_is_gone_is_a_remark(tmp_path: Path) -> None:
    def gone(row: int) -> str:
        raise DataError(f"file {row}.txt is missing")

    page = report(tmp_path, Told(text=gone))
    quoted = page.text_in("blockquote")
    assert len(quoted) == 12 and all(re.fullmatch(r"The record cannot be shown: file \d+.txt is missing", text) for text in quoted)


@pytest.mark.parametrize("steps", [1, 2, 3, 5000])
def test_runs_of_any_length(steps: int, tmp_path: Path) -> None:
    folder = MadeRun(steps=steps, examples=3, phases=1).write(tmp_path / "run")
    text = write_report(folder).read_text(encoding="utf-8")
    Parsed(text)
    assert len(text) < 250_000 and "nan" not in re.findall(r'"(nan|inf)"', text)


def test_a_run_without_a_result_has_no_report(tmp_path: Path) -> None:
    folder = MadeRun(steps=3).write(tmp_path / "run")
    (folder / "result.json").unlink()
    with pytest.raises(ConfigError, match="has ended"):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_the_report_can_be_made_again_and_is_the_same(tmp_path: Path) -> None:
    folder = MadeRun().write(tmp_path / "run")
    assert write_report(folder).read_bytes() == write_report(folder).read_bytes()


def test_the_template_does_not_stay_silent_about_a_missing_name() -> None:
    with pytest.raises(Exception, match="undefined"):
        render(name="x")


# -- the run's story --------------------------------------------------------------------------------------------------------


def test_how_to_reproduce(tmp_path: Path) -> None:
    page = report(tmp_path)
    assert "jaxtune train made.yaml 'name=a b'" in page.text_in("code")
    assert "abc123, with uncommitted changes" in page.text_in("code") and "fingerprint-of-data" in page.text_in("code")
    assert any(text.startswith("name: made seed: 0 model: base:") for text in page.text_in("code"))


def test_a_branch_names_the_run_it_comes_from(tmp_path: Path) -> None:
    folder = MadeRun().write(tmp_path / "run")
    (folder / "lineage.json").write_text(json.dumps({"run": "runs/<b>first", "step": 80, "changes": ["data.max_tokens=64"]}))
    assert "runs/<b>first, step 80: data.max_tokens=64" in Parsed(write_report(folder).read_text(encoding="utf-8")).text_in("code")


def test_decisions_and_interruptions(tmp_path: Path) -> None:
    at = {"time": "2026-09-21T13:00:00+0000"}
    events = [
        {**at, "event": "decision", "step": 100, "decision": "Stop", "reason": "no better for 3 evaluations"},
        {**at, "event": "rolled_back", "step": 70, "to": 40, "rate_scale": 0.5},
        {**at, "event": "skipped", "step": 7, "loss": "NaN"},
        {**at, "event": "skipped", "step": 9, "loss": "NaN"},
        {**at, "event": "resumed", "step": 60, "rejected": [[80, "bad checksum"]]},
        {**at, "event": "adjusted", "step": 50, "changes": ["rate_scale=0.5", "stop=phase"], "problems": []},
        {**at, "event": "refused", "step": 51, "changes": ["data.batch_size=7"], "problems": ["7 rows do not divide", "over 8 devices"]},
    ]
    page = report(tmp_path, events=events)
    for said in (
        "stopped: no better for 3 evaluations",
        "went back to step 40; from there the learning rate is multiplied by 0.5",
        "2 steps from here on skipped",
        "resumed from this step's checkpoint; checkpoint 80 was refused (bad checksum)",
        "changed: rate_scale=0.5 stop=phase",
        "not changed: data.batch_size=7 (7 rows do not divide; over 8 devices)",
    ):
        assert any(said in text for text in page.text_in("td")), said


def test_what_trained_and_what_was_frozen(tmp_path: Path) -> None:
    page = report(tmp_path)
    assert "1.0 % of 1,000 parameters for 60 steps, then all of them for 60 steps" in page.text.replace("\u00a0", " ")
    cells = [text.replace("\u00a0", " ") for text in page.text_in("td")]
    assert "frozen" in cells and "99.0 %" in cells and "990" in cells
