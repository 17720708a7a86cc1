"""Two runs side by side: exact p-values (scipy), differences by resampling by hand, who is fixed and broken, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_run import MadeRun, moment
from scipy.stats import binomtest
from sklearn import metrics as reference
from test_report import ATTACKS, Parsed, Told, check_harmless

from jaxtune.core.errors import ConfigError
from jaxtune.evaluation.compare import Comparison, compare, mcnemar
from jaxtune.evaluation.compare_page import setting, verdict, write_page

NAMES = ("business", "politics", "tech")


def two(tmp_path: Path, first: dict[str, Any] | None = None, second: dict[str, Any] | None = None) -> tuple[Path, Path]:
    a = MadeRun(**({"skill": 1.5, "checked": True} | (first or {}))).write(tmp_path / "a")
    return a, MadeRun(**({"skill": 4.0, "checked": True} | (second or {}))).write(tmp_path / "b")


def answers(made: Path) -> tuple[np.ndarray, np.ndarray]:
    import pyarrow.parquet as pq

    table = pq.ParquetFile(made / "predictions" / "test.parquet").read().to_pydict()
    return np.array(table["label"]), np.array(table["predicted"])


@pytest.mark.parametrize(("fixed", "broken"), [(0, 0), (1, 0), (5, 5), (9, 3), (40, 12), (300, 250), (3000, 2700)])
def test_mcnemar_is_the_exact_binomial_test(fixed: int, broken: int) -> None:
    wanted = binomtest(min(fixed, broken), fixed + broken).pvalue if fixed + broken else 1.0
    assert mcnemar(fixed, broken) == mcnemar(broken, fixed) == pytest.approx(wanted, rel=1e-8)


def test_numbers_and_examples(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    found = compare(a, b)
    (truth, first), (_, second) = answers(a), answers(b)
    numbers = {d.name: d for d in found.numbers}
    assert (found.split, len(found.pair[0]), found.left_out) == ("test", 200, ())
    assert numbers["accuracy"].first == pytest.approx((first == truth).mean())
    assert numbers["f1"].change == pytest.approx(
        reference.f1_score(truth, second, average="macro") - reference.f1_score(truth, first, average="macro")
    )
    assert set(found.fixed) == set(np.flatnonzero((first != truth) & (second == truth)))
    assert set(found.broken) == set(np.flatnonzero((first == truth) & (second != truth)))
    gain = found.pair[0].loss - found.pair[1].loss
    assert (np.diff(gain[found.fixed]) <= 0).all() and found.mcnemar == mcnemar(len(found.fixed), len(found.broken))
    assert found.best.name == "accuracy" and found.best.is_better and found.mcnemar is not None and found.mcnemar < 0.01
    per_class = {d.name: d.change for d in found.classes}
    wanted = reference.f1_score(truth, second, average=None) - reference.f1_score(truth, first, average=None)
    assert list(per_class) == list(NAMES) and list(per_class.values()) == pytest.approx(wanted.tolist())


def test_intervals_are_those_of_paired_draws(tmp_path: Path) -> None:
    found = compare(*two(tmp_path))
    (accuracy,) = [d for d in found.numbers if d.name == "accuracy"]
    one, other = ((o.truth == o.predicted).astype(float) for o in found.pair)
    random = np.random.default_rng(5)
    drawn = [(other - one)[random.integers(200, size=200)].mean() for _ in range(4000)]
    assert accuracy.interval is not None
    assert (accuracy.interval.low, accuracy.interval.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.012)


def test_a_run_and_itself(tmp_path: Path) -> None:
    a, _ = two(tmp_path)
    found = compare(a, a)
    assert all(d.change == 0 and not d.is_clear for d in (*found.numbers, *found.classes))
    assert (len(found.fixed), len(found.broken), found.mcnemar, found.settings) == (0, 0, 1.0, ())
    assert verdict(found)[0].startswith("There is no clear difference: test accuracy")


def test_the_worse_run_is_named(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    assert verdict(compare(a, b))[0].startswith("b is better: test accuracy")
    assert verdict(compare(b, a))[0].startswith("b is better: test accuracy")


@pytest.mark.parametrize("problem", ["multi_label", "regression"])
def test_other_problems(problem: str, tmp_path: Path) -> None:
    names = () if problem == "regression" else ("x", "y")
    a, b = two(tmp_path, {"problem": problem, "names": names}, {"problem": problem, "names": names})
    found = compare(a, b)
    assert (found.mcnemar is None) == (problem == "regression") and len(found.classes) == len(names)
    assert verdict(found)[0].startswith("b is better")
    Parsed(write_page(found, tmp_path / "page.html").read_text(encoding="utf-8"))


# -- which examples ---------------------------------------------------------------------------------------------------------


def test_other_data_are_refused_with_both_fingerprints(tmp_path: Path) -> None:
    a, b = two(tmp_path, {}, {"data": "another-fingerprint", "examples": 150})
    rename_keys(b)
    with pytest.raises(
        ConfigError, match=r"other data: .*a has the fingerprint fingerprint- and 200 test examples, .*another-fing and 150, of which 0 are"
    ):
        compare(a, b)


def test_other_data_with_the_same_texts_are_matched_by_content(tmp_path: Path) -> None:
    a, b = two(tmp_path, {}, {"data": "another-fingerprint"})
    order = np.random.default_rng(0).permutation(200)
    edit(b, lambda table: {name: [values[i] for i in order] for name, values in table.items()} | {"row": [int(i) + 5000 for i in order]})
    straight = compare(a, MadeRun(skill=4.0, checked=True).write(tmp_path / "c"))
    found = compare(a, b)
    assert [(d.name, d.first, d.second) for d in found.numbers] == [
        (d.name, pytest.approx(d.first), pytest.approx(d.second)) for d in straight.numbers
    ]
    assert (found.fixed == straight.fixed).all()


def test_runs_of_earlier_versions_have_no_keys(tmp_path: Path) -> None:
    a, b = two(tmp_path, {"checked": False}, {"checked": False, "data": "x"})
    with pytest.raises(ConfigError, match="tell no content keys"):
        compare(a, b)


def test_runs_that_know_no_fingerprint_are_not_taken_for_runs_on_the_same_data(tmp_path: Path) -> None:
    a, b = two(tmp_path, {"data": None}, {"data": None})
    assert len(compare(a, b).pair[0]) == 200, "the same texts, found by their content"
    rename_keys(b)
    with pytest.raises(ConfigError, match=r"other data: .*a has the fingerprint no fingerprint and 200 test examples"):
        compare(a, b)


def test_only_shared_rows_with_the_same_label_count(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    edit(b, lambda table: {name: values[20:] for name, values in table.items()})
    edit(b, lambda table: table | {"label": ["tech" if i < 10 else label for i, label in enumerate(table["label"])]})
    truth, _ = answers(a)
    changed = int((truth[20:30] != "tech").sum())
    found = compare(a, b)
    assert len(found.pair[0]) == 180 - changed and changed > 0
    assert found.left_out == ("20 test examples are in one of the runs only", f"{changed} examples have other labels in the two runs")
    assert "Left out: 20 test examples are in one of the runs only." in verdict(found)


def test_nothing_in_common(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    edit(b, lambda table: table | {"row": [row + 5000 for row in table["row"]]})
    with pytest.raises(ConfigError, match="have no example in common"):
        compare(a, b)


def test_classes_in_another_order_and_one_more(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    before = compare(a, b)

    def other(table: dict[str, list[Any]]) -> dict[str, list[Any]]:
        kept = {name: values for name, values in table.items() if not name.startswith("probability")}
        mixed = {f"probability {name}": table[f"probability {name}"] for name in ("tech", "business", "politics")}
        return kept | mixed | {"probability weather": [0.0] * len(table["row"])}

    edit(b, other)
    found = compare(a, b)
    assert [d.second for d in found.classes] == pytest.approx([d.second for d in before.classes])
    assert found.numbers[0].second == before.numbers[0].second


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    a, _ = two(tmp_path)
    number = MadeRun(problem="regression", names=()).write(tmp_path / "number")
    with pytest.raises(ConfigError, match="only runs of the same kind of problem"):
        compare(a, number)
    silent = MadeRun().write(tmp_path / "silent")
    for path in (silent / "predictions").iterdir():
        path.unlink()
    with pytest.raises(ConfigError, match=r"silent: no predictions of a split that both runs have"):
        compare(a, silent)
    (silent / "result.json").unlink()
    with pytest.raises(ConfigError, match="has ended"):
        compare(a, silent)


# -- settings, costs, page --------------------------------------------------------------------------------------------------


def test_settings_that_differ_and_what_was_changed_while_a_run_trained(tmp_path: Path) -> None:
    change = {"time": moment(90), "event": "adjusted", "step": 40, "changes": ["rate_scale=0.5", "stop=run"], "problems": []}
    a, b = two(tmp_path, {"phases": 1}, {"phases": 1, "events": [change, change]})  # twice: taken up again after a resume
    assert compare(a, b).settings == (("changed while it ran", "nothing", "step 40: rate_scale=0.5 stop=run"),)
    path = b / "resolved.yaml"
    path.write_text(path.read_text().replace("seed: 0", "seed: 1", 1).replace("name: made", "name: other"))
    assert compare(a, b).settings[0] == ("seed", 0, 1), "the name is no setting"
    assert [setting(value) for value in (None, True, 1e-3, ["*"], "x")] == ["not set", "true", "0.001", '["*"]', "x"]


def test_the_better_direction_of_every_number(tmp_path: Path) -> None:
    low = {"loss", "expected_calibration_error", "mean_squared_error", "mean_absolute_error"}
    for problem in ("single_label", "multi_label", "regression"):
        made = {"problem": problem, "names": () if problem == "regression" else ("x", "y")}
        for d in compare(*two(tmp_path / problem, made, made)).numbers:
            assert d.higher_is_better == (d.name not in low), d.name


def test_the_page_tells_it_all(tmp_path: Path) -> None:
    a, b = two(tmp_path, {}, {"phases": 1, "steps": 60})
    found = compare(a, b)
    page = Parsed(write_page(found, tmp_path / "page.html", Told(text=lambda row: f"text of row {row}")).read_text(encoding="utf-8"))  # type: ignore[arg-type]
    assert page.text_in("h2") == ["Numbers", "F1 per class", "Fixed by b", "Broken by b", "Settings that differ", "Costs"]
    assert {attributes["href"].removeprefix("#") for attributes in page.all("a")} == {attributes["id"] for attributes in page.all("h2")}
    assert len(page.all("caption")) == len(page.all("table")) and all(th.get("scope") in ("row", "col") for th in page.all("th"))
    rows = found.pair[0].rows
    assert page.text_in("blockquote")[: min(10, len(found.fixed))] == [f"text of row {rows[i]}" for i in found.fixed[:10]]
    assert "phases.1" in page.text_in("code") and "trained parameters" in page.text_in("th")
    check_harmless(page)


@pytest.mark.parametrize("attack", ATTACKS)
def test_text_from_the_data_stays_text(attack: str, tmp_path: Path) -> None:
    names = (attack, "other", attack + "2")
    a, b = two(tmp_path, {"names": names, "base": attack.replace("\x00", "")}, {"names": names})
    page = Parsed(write_page(compare(a, b), tmp_path / "page.html", Told(text=attack, path=attack), attack).read_text(encoding="utf-8"))  # type: ignore[arg-type]
    check_harmless(page)
    assert not set("\x1b\x00\u202e") & set(page.text)


def edit(run: Path, change: Any) -> None:
    """The test predictions of a run, changed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = run / "predictions" / "test.parquet"
    pq.write_table(pa.table(change(pq.ParquetFile(path).read().to_pydict())), path)


def rename_keys(run: Path) -> None:
    edit(run, lambda table: table | {"key": [f"other {key}" for key in table["key"]]})


def test_json_holds_everything(tmp_path: Path) -> None:
    from jaxtune.cli.compare import as_json
    from jaxtune.core.files import plain

    found: Comparison = compare(*two(tmp_path))
    told = json.loads(json.dumps(plain(as_json(found, None)), allow_nan=False))
    assert told["numbers"]["accuracy"].keys() == {"first", "second", "difference", "interval", "clear"}
    assert told["fixed"] == found.pair[0].rows[found.fixed].tolist() and told["page"] is None
