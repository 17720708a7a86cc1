"""The page of a search in a real browser: no script error, no request, and neither names nor settings nor reasons are executed."""

from __future__ import annotations

import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_report_browser import ATTACK, open_page

from jaxtune.search.ledger import Record, ranked
from jaxtune.search.page import write_page
from jaxtune.search.parameters import Choice, Float
from jaxtune.search.results import Finalist, Found
from jaxtune.search.settings import Search
from jaxtune.search.strategies import Hyperband

RATE, DECAY, LAYERS, DROPOUT = (
    "phases.1.optimizer.schedule.peak",
    "phases.1.optimizer.weight_decay",
    "phases.1.train",
    "model.dropout.hidden",
)
PARAMETERS: dict[str, Any] = {
    RATE: Float(low=1e-5, high=1e-3, log=True),
    DECAY: Float(low=1e-4, high=0.3, log=True),
    LAYERS: Choice(choices=(["head.*"], ["head.*", "layers.{4-5}.*"], ["*"], ATTACK)),
    DROPOUT: Float(low=0, high=0.3),
}


def made(number: int, dice: random.Random) -> Record:
    """A trial of a made-up response surface."""
    rate, decay = (float(f"{10 ** dice.uniform(*ends):.4g}") for ends in ((-5, -3), (-4, -0.52)))
    settings = {RATE: rate, DECAY: decay, LAYERS: dice.choice(PARAMETERS[LAYERS].choices), DROPOUT: round(dice.uniform(0, 0.3), 3)}
    value = 0.975 - 0.02 * (math.log10(rate) + 3.8) ** 2 - 0.1 * (settings[DROPOUT] - 0.1) ** 2 + dice.gauss(0, 0.003)
    if number == 7:
        return Record(number, "failed", settings, None, {}, None, {"steps": 20, "seconds": 3.0, "reason": ATTACK})
    stopped = number > 2 and number % 3 > 0
    value -= 0.05 * stopped
    curve, facts = {10: value - 0.01, 20: value}, {"steps": 20 if stopped else 60, "seconds": 9.1, "reason": ""}
    return Record(number, "stopped" if stopped else "complete", settings, value, curve, None, facts)


def write(folder: Path) -> Path:
    dice = random.Random(1)
    records = tuple(made(number, dice) for number in range(40))
    order = tuple(ranked(records, True))
    finalists = (Finalist(order[0], (0.968, 0.971), 0), Finalist(order[1], (0.961, 0.972), 0), Finalist(order[2], (), 2))
    importance = dict(zip(PARAMETERS, (0.62, 0.2, 0.13, 0.05), strict=True))
    rounds = ({"round": 1, "trial": 14, "ranges": {RATE: [1e-4, 5e-4], DROPOUT: [0.05, 0.2]}},)
    repeats = ({"trial": order[0].number, "seed": 1, "value": 0.968, "steps": 240},)
    found = Found(records, order, finalists, order[0], importance, repeats, rounds)
    space: Any = SimpleNamespace(file="x.yaml", parameters=PARAMETERS, metric="f1", higher_is_better=True)
    search = Search(name="quickstart-search", experiment="x.yaml", space={RATE: [1e-3]}, strategy=Hyperband())  # type: ignore[arg-type]
    numbers = found.numbers(search, space, 40, "done") | {"name": ATTACK}
    folder.mkdir(parents=True)
    return write_page(folder, space, found, numbers)


@pytest.mark.parametrize("guarded", [True, False])
def test_the_page_of_a_search(guarded: bool, tmp_path: Path) -> None:
    page = write(tmp_path / "search")
    text = page.read_text(encoding="utf-8")
    if not guarded:  # it is the escaping that protects, not the policy alone
        policy = '<meta http-equiv="Content-Security-Policy"'
        start = text.index(policy)
        page.write_text(text[:start] + text[text.index(">", start) + 1 :], encoding="utf-8")
    opened = open_page(page, tmp_path / "profile")
    assert opened.console == [] and opened.requests == [] and "data-ran" not in opened.document
    for heading in ("Winner", "History", "What mattered", "Finalists with other seeds", "How the ranges narrowed", "Trials"):
        assert heading in opened.document
