"""Record what the packages rouge-score and sacrebleu give for pairs of texts, as the truth of the text metrics' tests.

    python3.11 -m venv venv && venv/bin/pip install rouge-score sacrebleu
    venv/bin/python scripts/record_text_scores.py

Rouge is recorded without stemming, as F1; chrF with sacrebleu's defaults (runs of 6, beta 2, spaces left out) as a share of 1.
"""

import json
import random
from importlib.metadata import version
from pathlib import Path

from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import CHRF

OUTPUT = Path(__file__).resolve().parents[1] / "tests" / "references" / "text_scores.json"
PAIRS = [
    ("the cat sat on the mat", "the cat is on the mat"),
    ("Blair seeks new talks over EU budget", "Blair calls for EU budget talks"),
    ("", "something"),
    ("something", ""),
    ("", ""),
    ("...", "!!"),
    ("The end.", "the END"),
    ("police killed the gunman", "the gunman kill police"),
    ("a b a b a", "b a b b a a"),
    ("U.S.-based firm's Q3 profit up 12.5%", "US firm posts 12.5% rise in Q3 profit"),
    ("under_score words", "under score words"),
    ("running runs ran", "run running runner"),
    ("one", "one two three four five six seven"),
    ("ab", "abc"),
]
WORDS = [
    "the",
    "a",
    "of",
    "to",
    "in",
    "and",
    "market",
    "firm",
    "profit",
    "film",
    "star",
    "wins",
    "award",
    "game",
    "team",
    "says",
    "new",
    "deal",
    "minister",
    "law",
    "tax",
    "vote",
    "plan",
]


def main() -> None:
    dice = random.Random(0)
    made = [tuple(" ".join(dice.choices(WORDS, k=dice.randint(1, 60))) for _ in range(2)) for _ in range(20)]
    rouge, chrf = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False), CHRF()
    cases = []
    for generated, reference in [*PAIRS, *made]:
        found = rouge.score(reference, generated)
        scores = {name: found[key].fmeasure for name, key in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL"))}
        scores["chrf"] = chrf.sentence_score(generated, [reference]).score / 100
        cases.append({"generated": generated, "reference": reference, **scores})
    versions = {name: version(name) for name in ("rouge-score", "sacrebleu")}
    OUTPUT.write_text(json.dumps({"recorded_with": versions, "cases": cases}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
