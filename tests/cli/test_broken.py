"""Every broken experiment of the list: its exact words, its exit code, nothing written; and how long the answer takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_run
from broken_cases import DEVICES, PAGE, Case, cases, lay_out, page

from jaxtune.cli.main import main

CASES = {case.title: case for case in cases()}
TIMED = (
    "not YAML",
    "an unknown setting",
    "an unknown kind",
    "a package that is not installed",
    "no tokenizer",
    "a config key that the family does not know",
    "a checkpoint with a tensor missing",
    "an empty split",
    "a batch that does not divide",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("here")
    lay_out(made)
    return made


@pytest.fixture(params=CASES.values(), ids=lambda case: case.title.replace(" ", "-"))
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the broken things as the current one; afterwards it holds what it held."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    before = set(folder.rglob("*"))
    yield folder
    assert not {path for path in set(folder.rglob("*")) - before if "__pycache__" not in path.parts and path.name != "x.yaml"}


def test_the_words_and_the_code(case: Case, here: Path, capsys: pytest.CaptureFixture[str]):
    (here / "x.yaml").write_text(case.text)
    code = main(["train", "x.yaml", *case.words])
    captured = capsys.readouterr()
    assert (case.said(captured.err, here), captured.out) == (case.stderr, "")
    assert code == case.exit_code


@pytest.mark.parametrize("title", TIMED)
def test_the_answer_comes_soon(title: str, here: Path):
    """Processor time, because other work on the machine is not ours."""
    case = CASES[title]
    (here / "x.yaml").write_text(case.text)
    done = tiny_run.run("train", "x.yaml", *case.words, folder=here, devices=DEVICES)
    assert (done.code, case.said(done.stderr, here), done.stdout) == (case.exit_code, case.stderr, "")
    assert done.processor_seconds < case.limit_seconds


def test_there_are_enough_of_them():
    assert len(CASES) >= 30 and {case.exit_code for case in CASES.values()} == {2, 72, 77}


def test_the_page_is_the_list():
    assert PAGE.read_text(encoding="utf-8") == page(CASES.values()), "run: python tests/cli/broken_cases.py"
