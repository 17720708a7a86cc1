"""The page of `jaxtune choose` in a real browser: no script error, no request, and nothing of a candidate's name or licence runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_report_browser import ATTACK, open_page

from jaxtune.evaluation.bootstrap import Interval
from jaxtune.run_folder import RunFolder
from jaxtune.selection.candidates import Candidate, Refused
from jaxtune.selection.catalogue import load_catalogue
from jaxtune.selection.choose_page import write_chosen
from jaxtune.selection.chosen import Assessed, Chosen, rank
from jaxtune.selection.cost import Cost, Timing, TokenizerFit
from jaxtune.selection.scores import Scores
from jaxtune.selection.transferability import Transferability


def assessed(name: str, score: float, million: int) -> Assessed:
    scores = Scores(tuple(score + 0.01 * fold for fold in range(-2, 3)), 5)
    found = Transferability(scores, scores, score - 1, Interval(score - 1.1, score - 0.9))
    timing = Timing(0.2, Interval(0.1, 0.3))
    cost = Cost(million * 10**6, million * 10**6, 16, 64, million * 10**10, 2**30, 3.0, timing, timing, million * 4 * 10**6)
    fit = TokenizerFit(30_522, 1.3, 0.001, 0.4)
    return Assessed(Candidate(name), ATTACK, ATTACK, 512, cost.parameters, {"head": found}, cost, fit, 1.0, False, (ATTACK,))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ranked = rank([assessed(ATTACK, 0.9, 22), assessed("a-name-without-any-place-to-break-it-" * 4, 0.8, 11), assessed("small", 0.5, 4)])
    chosen = Chosen(ranked, (Refused(Candidate(ATTACK * 2), "failed", ATTACK),), "accuracy", 400, 2000, 5, 1, (ATTACK,))
    with RunFolder.create(tmp_path_factory.mktemp("runs"), "attacked-choose") as folder:
        write_chosen(folder, chosen, load_catalogue())
    return folder.path / "choose.html"


@pytest.mark.parametrize("guarded", [True, False])
def test_the_page_opens_without_errors_and_asks_for_nothing(page: Path, guarded: bool, tmp_path: Path) -> None:
    """With its content policy, and without, when escaping alone protects."""
    text, count = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    assert count == 1
    opened = tmp_path / "page.html"
    opened.write_text(page.read_text(encoding="utf-8") if guarded else text, encoding="utf-8")
    found = open_page(opened, tmp_path / "profile")
    assert found.console == [] and found.requests == [] and "data-ran" not in found.document
    assert "comes first" in found.document and found.document.count("<circle") == 2 * 3  # wide and narrow
