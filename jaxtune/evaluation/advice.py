"""What to try next: rules over a run's own numbers. Each finding names the figure it saw, the setting to change, and why.

The rules are a table, in the order in which findings are told: what makes the numbers untrue first, then what keeps the model from
learning, then what costs time. A rule that cannot judge a run (no validation split, a run of an earlier version) says nothing.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from jaxtune.core.files import plain, write_whole
from jaxtune.core.printable import printable
from jaxtune.evaluation.advice_file import FILE, Advice
from jaxtune.evaluation.advice_rules import data, fit, rates
from jaxtune.evaluation.advice_rules.evidence import Evidence, Finding, Rule

_LOG = logging.getLogger(__name__)
_BY_NAME = {rule.name: rule for rule in (*data.RULES, *rates.RULES, *fit.RULES)}
ORDER = (
    "leak", "label_noise", "rate_too_high", "rate_too_low", "gradients_exploding", "no_warmup", "cut_texts", "imbalance", "stopped_early",
    "overfitting", "best_at_end", "batch_small", "evaluated_rarely", "gradients_dead", "idle_phase", "data_bound", "padding", "memory_headroom",
)  # fmt: skip
RULES: tuple[Rule, ...] = tuple(_BY_NAME[name] for name in ORDER)


def advise(evidence: Evidence) -> list[Advice]:
    """The findings, the weightiest first. A rule that fails is left out with a warning: advice never costs a run its result."""
    found: dict[str, Finding] = {}
    for rule in RULES:
        try:
            finding = rule.check(evidence)
        except Exception as error:
            _LOG.warning("the advice rule %s failed on %s (%s: %s)", rule.name, evidence.record.folder, type(error).__name__, error)
            continue
        if finding is not None:
            found[rule.name] = finding
    told = {name: finding for name, finding in found.items() if not any(better in found for better in _BY_NAME[name].unless)}
    return [Advice(name, printable(finding.saw, 600), finding.change, finding.why) for name, finding in told.items()]


def write_advice(folder: Path) -> list[Advice]:
    """Writes advice.json of a run that has ended, in whatever way.

    Raises:
        ConfigError: it is no run folder.
        OSError: it cannot be written.
    """
    found = advise(Evidence.read(folder))
    told = {"findings": [one.as_json() for one in found], "rules": [rule.name for rule in RULES]}
    write_whole(folder / FILE, json.dumps(plain(told), indent=2, ensure_ascii=False) + "\n")
    return found
