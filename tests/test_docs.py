"""The pages are true: their code runs, what they name exists, and what is made from code and measurements is up to date.

Pages run in a folder of their own in which `configs/quickstart.yaml` is the shipped experiment on a tiny model and corpus, so blocks run as they
are printed: Python blocks in order in one namespace, blocks that begin with a file's name are written there, lines `jaxtune ...` are called.
"""

from __future__ import annotations

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
from jaxtune.cli.main import app, main
from jaxtune.config.write import to_yaml
from jaxtune.data.sources.text_folder import TextFolder
from jaxtune.experiment import Experiment, load_experiment
from jaxtune.models import FAMILIES
from jaxtune.parallel import hosts

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
COMMANDS = {str(command.callback.__name__) for command in app.registered_commands if command.callback}
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
    assert names["measured"].metrics == pytest.approx(ours.validation)
    assert 'did you mean "data.batch_size"?' in capsys.readouterr().out
    assert (place / "my-model" / "model.safetensors").exists() and len(names["found"].ids) == 2


# -- the other pages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", sorted((DOCS / "extend").glob("*.md")), ids=lambda page: page.stem)
def test_extensions_work_as_printed(page: Path, place: Path) -> None:
    play(page, blocks(page), place, {"__name__": "page"})
