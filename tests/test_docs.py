"""The pages are true: their code runs, what they name exists, and what is made from code and measurements is up to date.

Pages run in a folder of their own in which `configs/quickstart.yaml` is the shipped experiment on a tiny model and corpus, so blocks run as they
are printed: Python blocks in order in one namespace, blocks that begin with a file's name are written there, lines `jaxtune ...` are called.
"""

from __future__ import annotations

import importlib
import json
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny_run
from safetensors.numpy import load_file, save_file

import jaxtune
from jaxtune.cli.calling import command_names
from jaxtune.cli.main import main
from jaxtune.config.write import to_yaml
from jaxtune.core.paths import select
from jaxtune.data.sources.text_folder import TextFolder
from jaxtune.experiment import Experiment, load_experiment
from jaxtune.layers import stack
from jaxtune.layers.stack import StackOptions
from jaxtune.models import FAMILIES
from jaxtune.models.blueprint import Blueprint
from jaxtune.models.load import maker, open_base
from jaxtune.parallel import hosts

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
COMMANDS = set(command_names())
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"# ([\w/]+\.(?:py|yaml))\n")


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int

    @property
    def file(self) -> str | None:
        """The file that the block is, when its first line names one."""
        found = NAMED.match(self.text)
        return found[1] if found else None


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [Block(found[1], found[2], text.count("\n", 0, found.start()) + 2) for found in FENCE.finditer(text)]


def shrink(experiment: Experiment) -> Experiment:
    """The experiment on the tiny model and corpus, in seconds; everything that can stay does."""
    first, *rest = experiment.phases
    return experiment.model_copy(
        update={
            "model": experiment.model.model_copy(update={"base": "model"}),
            "data": experiment.data.model_copy(update={"source": TextFolder(path="texts"), "max_tokens": 20, "batch_size": 16}),
            "phases": (first.model_copy(update={"train": ("head.*", "pooler.*")}), *rest),
            "evaluation": experiment.evaluation.model_copy(update={"every_steps": 4}),
        }
    )


def one_layer(folder: Path) -> None:
    """Leaves the first layer of the recorded model: less to compile."""
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if ".layer." not in k or ".layer.0." in k}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder in which a page runs."""
    one_layer(tiny_run.write_model(tmp_path / "model"))
    tiny_run.write_corpus(tmp_path / "texts", each=16)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("JAXTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hosts, "_STARTED", True)  # the tests have their own flags
    (tmp_path / "configs").mkdir()
    experiment = shrink(load_experiment(ROOT / "configs" / "quickstart.yaml"))
    (tmp_path / "configs" / "quickstart.yaml").write_text(to_yaml(experiment.model_copy(update={"phases": experiment.phases[:1]})))
    before, families = set(sys.modules), dict(FAMILIES)
    yield tmp_path
    FAMILIES.clear()
    FAMILIES.update(families)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def play(page: Path, found: list[Block], place: Path, names: dict[str, Any]) -> None:
    """Runs blocks of a page."""
    for block in found:
        where = f"{page.relative_to(ROOT)}:{block.line}"
        if block.file is not None:
            (place / block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), names)
        elif block.language == "bash":
            for line in block.text.splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["jaxtune"]:
                    assert main(words[1:]) == 0, f"{where}: {line}"


# -- the Python API ---------------------------------------------------------------------------------------------------------


def api_blocks(heading: str) -> list[Block]:
    """The blocks of one section of python-api.md."""
    lines = (DOCS / "python-api.md").read_text(encoding="utf-8").splitlines()
    heads = [number for number, line in enumerate(lines, 1) if line.startswith("## ")] + [len(lines) + 1]
    start = next(number for number in heads if lines[number - 1] == f"## {heading}")
    end = heads[heads.index(start) + 1]
    return [block for block in blocks(DOCS / "python-api.md") if start < block.line < end]


def test_own_module_and_loss(place: Path) -> None:
    page, names = DOCS / "python-api.md", {"__name__": "page"}
    first, *rest = api_blocks("Your own module and loss")
    code = [line for line in first.text.splitlines() if line.strip()]
    assert len(code) < 30, f"{len(code)} lines"
    play(page, [first], place, names)
    assert names["evaluate"](names["net"])["accuracy"] > 0.85 and names["training"].progress.step < 1000
    start = names["Net"](names["nnx"].Rngs(0))
    assert (names["net"].body.kernel[...] == start.body.kernel[...]).all() and (
        names["net"].head.kernel[...] != start.head.kernel[...]
    ).any()
    play(page, rest, place, names)
    assert names["evaluate"](names["best"])["accuracy"] == pytest.approx(names["training"].progress.best)


def test_the_quickstart_in_python_is_that_of_the_yaml(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, names = DOCS / "python-api.md", {"__name__": "page"}
    built, *running = api_blocks("The quickstart in Python")
    play(page, [built], place, names)
    shipped = load_experiment(ROOT / "configs" / "quickstart.yaml")
    assert names["experiment"] == shipped
    names["experiment"] = shrink(names["experiment"])
    play(page, running, place, names)
    ours = names["result"]
    assert ours.folder == place / "runs" / "quickstart" and names["from_file"].phases[0].epochs == 2 and names["other"].seed == 1
    (place / "tiny.yaml").write_text(to_yaml(shrink(shipped)))
    theirs = jaxtune.run(load_experiment(place / "tiny.yaml"), runs_dir="others")
    for split in ("validation", "test"):
        assert ours.numbers[split] == theirs.numbers[split] and ours.numbers[split]["accuracy"] > 0.2
    assert ours.numbers["best_step"] == theirs.numbers["best_step"]
    capsys.readouterr()
    play(page, [*api_blocks("A finished run"), *api_blocks("Errors")], place, names)
    assert names["measured"].metrics == ours.validation
    assert 'did you mean "data.batch_size"?' in capsys.readouterr().out
    assert (place / "my-model" / "model.safetensors").exists() and len(names["found"].ids) == 2


# -- the other pages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", sorted((DOCS / "extend").glob("*.md")), ids=lambda page: page.stem)
def test_extensions_work_as_printed(page: Path, place: Path) -> None:
    play(page, blocks(page), place, {"__name__": "page"})


def test_commands_work_as_printed(place: Path) -> None:
    (place / "reviews.csv").write_text(
        "text,label\n" + "".join(f"a {word} film number {n},{word}\n" for n in range(30) for word in ("good", "bad"))
    )
    (place / "new.csv").write_text("text\nthe team and the game\na new film\n")
    play(DOCS / "commands.md", blocks(DOCS / "commands.md"), place, {})
    written = {path.name for path in (place / "runs" / "quickstart").iterdir()}
    table = re.findall(r"^\| (`.*?) \|", (DOCS / "commands.md").read_text(encoding="utf-8"), re.MULTILINE)
    told = {name.rstrip("/") for cell in table for name in re.findall(r"`([\w./]+)`", cell)}
    assert written - {"lock"} <= told and told <= written | {"plots", "samples.jsonl"}, (written, told)  # the latter: of language models
    play(DOCS / "reproduce.md", blocks(DOCS / "reproduce.md")[:1], place, {})
    first, again = (json.loads((place / "runs" / name / "result.json").read_text()) for name in ("quickstart", "again"))
    assert [first[split] for split in ("validation", "test")] == [again[split] for split in ("validation", "test")]


def test_patterns_of_the_freezing_page_mean_something(place: Path) -> None:
    model = open_base(str(place / "model")).family
    shapes = Blueprint.of(maker(model, 3, seed=0, options=StackOptions(), dtype="float32")).params
    names = [name for key in shapes for name in stack.names(key)]
    found = [
        pattern for block in blocks(DOCS / "freezing.md") for pattern in re.findall(r'"(.*?)"', block.text) if block.language == "yaml"
    ]
    assert len(found) >= 6
    for pattern in found:
        assert select(names, [pattern.replace("{4-5}", "{0-5}").removeprefix("!")])


# -- what pages name --------------------------------------------------------------------------------------------------------


def test_the_map_names_every_package() -> None:
    text = (DOCS / "map.md").read_text(encoding="utf-8")
    packages = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "jaxtune").glob("*/__init__.py")}
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "jaxtune").glob("*.py") if not path.name.startswith("__")}
    missing = [name for name in sorted(packages) if f"`{name}/`" not in text] + [name for name in sorted(files) if f"`{name}`" not in text]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    missing = [
        path for path in re.findall(r"`((?:jaxtune|tests|scripts|configs|benchmarks|docs)/[\w./-]*)", text) if not (ROOT / path).exists()
    ]
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    missing += [link for link in links if not (page.parent / link).exists()]
    fenced = "".join(block.text for block in blocks(page) if block.language in ("", "bash"))
    commands = re.findall(r"`jaxtune ([a-z-]+)", text) + re.findall(r"^(?:\.venv/bin/)?jaxtune ([a-z-]+)", fenced, re.MULTILINE)
    missing += [f"jaxtune {command}" for command in commands if command not in COMMANDS]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_page_names_a_machine_or_a_registry(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"/(?:work|root|tmp)/|/home/\w|https?://|localhost|\d+\.\d+\.\d+\.\d+:\d+", text) == []


def test_every_extension_table_has_a_page_and_every_page_a_link() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page for page in PAGES[1:] if f"({page.relative_to(ROOT)})" not in readme] == []
    assert [name for name in FAMILIES if not re.search(rf"\b{name}\b", readme)] == []


# -- what is made from code and measurements --------------------------------------------------------------------------------


@pytest.fixture
def make_docs(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("make_docs")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_made_parts_are_up_to_date(page: Path, make_docs: Any) -> None:
    text = page.read_text(encoding="utf-8")
    assert make_docs.made(text) == text, f"{page.name} is out of date: .venv/bin/python scripts/make_docs.py"


def test_the_readme_shows_the_shipped_experiment() -> None:
    shown = next(block.text for block in blocks(ROOT / "README.md") if block.language == "yaml")
    assert shown == (ROOT / "configs" / "quickstart.yaml").read_text(encoding="utf-8")


def test_results_are_shown_only_when_there_are_some(make_docs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_docs, "RESULTS", tmp_path)
    page = "a\n<!-- made: measured -->\nold\n<!-- /made -->\nb\n"
    assert make_docs.made(page) == "a\n<!-- made: measured -->\n<!-- /made -->\nb\n"
    (tmp_path / "other.json").write_text('{"rows": []}')
    assert make_docs.measured() == ""
    shown = {"title": "Accuracy", "columns": ["seed", "f1"], "rows": [[0, "0.97"], [1, "a|b"]], "note": "Three seeds."}
    (tmp_path / "quickstart_seeds.json").write_text(json.dumps({"table": shown}))
    made = make_docs.made(page)
    assert "## Measured\n\n### Accuracy\n\n| seed | f1 |\n|---|---|\n| 0 | 0.97 |\n| 1 | a\\|b |\n\nThree seeds.\n\nMore:" in made
    assert make_docs.made(made) == made


def test_the_speed_comparison_is_shown_when_it_has_run_to_its_end(make_docs: Any) -> None:
    step = {
        "step_seconds": 1.0,
        "step_seconds_p10": 0.9,
        "step_seconds_p90": 1.2,
        "examples_per_second": 32.0,
        "peak_gib": 1.5,
        "others_share": [0.01],
    }
    epoch = {"last_epoch_seconds": 40.0, "examples_per_second": 38.9, "accuracy": {"validation": 0.97, "test": 0.98}, "others_share": None}
    ratio = {"jaxtune best / transformers best": {"ratio": 2.5, "between": ["a", "b"], "rounds": [2.4, 2.6]}}
    result = {
        "date": "2026-01-02T00:00:00", "machine": {"cpu": "some cpu", "cores": 2}, "complete": True,
        "steps": {"32x256": {"variants": {"jaxtune bfloat16": step}, "ratios": ratio}},
        "epochs": {"size": "32x256", "rows": 1557, "variants": {"jaxtune bfloat16": epoch}, "ratios": {}},
    }  # fmt: skip
    shown = make_docs.shown_result("encoder_cpu", result)
    assert (
        "| jaxtune bfloat16 | 1.00 (0.90 to 1.20) | 32.0 | 1.50 |" in shown
        and "2.50 x (rounds 2.40, 2.60)" in shown
        and "up to 1%" in shown
    )
    assert make_docs.shown_result("encoder_cpu", result | {"complete": False}) == ""


def test_public_names_are_what_they_say_whatever_was_imported_first() -> None:
    """`jaxtune.run` names a function, and a module of the same name exists."""
    import jaxtune.api  # imports the module jaxtune.run

    for name in jaxtune.__all__:
        assert callable(getattr(jaxtune, name)), name
    from jaxtune.run import resume

    assert callable(resume) and callable(jaxtune.run)
