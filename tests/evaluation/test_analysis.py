"""Analysis and bootstrap against scikit-learn: what the report says per class, per bin and per draw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_run import MadeRun
from sklearn import metrics as reference

from jaxtune.evaluation.analysis import (
    class_scores,
    confusion_matrix,
    hardest,
    most_confused,
    most_mistaken,
    reliability,
    residuals,
    wilson,
)
from jaxtune.evaluation.bootstrap import Interval, affordable, compute, draw, group_sums, intervals
from jaxtune.evaluation.outcomes import Outcomes, read_outcomes

NAMES = ("a", "b", "c", "never")


def single(examples: int = 300, seed: int = 0) -> Outcomes:
    """Three classes that occur, one that neither occurs nor is predicted."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, 3, examples)
    logits = np.pad(random.normal(size=(examples, 3)), ((0, 0), (0, 1)), constant_values=-30.0)
    logits[np.arange(examples), truth] += 1.5
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return Outcomes("single_label", NAMES, np.arange(examples), truth, p.argmax(1), p, -np.log(p[np.arange(examples), truth]))


def multi(examples: int = 250, seed: int = 1) -> Outcomes:
    random = np.random.default_rng(seed)
    truth = random.random((examples, 4)) < np.array([0.5, 0.2, 0.4, 0.0])
    p = 1 / (1 + np.exp(-(random.normal(size=truth.shape) + 2 * truth - 1)))
    return Outcomes("multi_label", NAMES, np.arange(examples), truth, p > 0.5, p, -np.where(truth, np.log(p), np.log1p(-p)).mean(1))


def numbers(examples: int = 200, seed: int = 2) -> Outcomes:
    random = np.random.default_rng(seed)
    truth = random.normal(50, 9, examples)
    predicted = truth + random.normal(1, 4, examples)
    return Outcomes("regression", (), np.arange(examples), truth, predicted, np.empty((examples, 0)), (predicted - truth) ** 2)


# -- analysis ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcomes", [single(), multi()], ids=["single_label", "multi_label"])
def test_scores_per_class(outcomes: Outcomes) -> None:
    found = class_scores(outcomes)
    precision, recall, f1, support = reference.precision_recall_fscore_support(
        outcomes.truth, outcomes.predicted, labels=range(4), zero_division=0
    )
    for mine, theirs in ((found.precision, precision), (found.recall, recall), (found.f1, f1), (found.support, support)):
        np.testing.assert_allclose(mine, theirs)


def test_confusion_matrix_of_all_and_of_chosen_classes() -> None:
    outcomes = single()
    whole = reference.confusion_matrix(outcomes.truth, outcomes.predicted, labels=range(4))
    np.testing.assert_array_equal(confusion_matrix(outcomes, np.arange(4)), whole)
    np.testing.assert_array_equal(confusion_matrix(outcomes, np.array([0, 2])), whole[np.ix_([0, 2], [0, 2])])


def test_confused_pairs_are_the_largest_cells_beside_the_diagonal() -> None:
    outcomes = single()
    whole = confusion_matrix(outcomes, np.arange(4))
    found = most_confused(outcomes, 3)
    beside = sorted(whole[~np.eye(4, dtype=bool)], reverse=True)
    assert [pair.count for pair in found] == beside[:3]
    assert all(whole[pair.truth, pair.predicted] == pair.count and pair.truth != pair.predicted for pair in found)
    assert found[0].share == found[0].count / whole[found[0].truth].sum()


def test_of_many_classes_those_with_the_most_errors_are_chosen() -> None:
    outcomes = single()
    np.testing.assert_array_equal(most_mistaken(outcomes, 4), [0, 1, 2, 3])
    whole = confusion_matrix(outcomes, np.arange(4))
    errors = whole.sum(0) + whole.sum(1) - 2 * np.diag(whole)
    assert set(most_mistaken(outcomes, 2)) == set(np.argsort(-errors)[:2])


def test_reliability_by_hand() -> None:
    found = reliability(np.array([0.2, 0.5, 0.51, 1.0]), np.array([False, True, False, True]), bins=2)
    np.testing.assert_array_equal(found.count, [2, 2])
    np.testing.assert_allclose(found.confidence, [0.35, 0.755])
    np.testing.assert_allclose(found.accuracy, [0.5, 0.5])
    assert found.error == pytest.approx((2 * 0.15 + 2 * 0.255) / 4)
    assert found.overconfidence == pytest.approx((0.2 + 0.5 + 0.51 + 1.0) / 4 - 0.5)


def test_reliability_of_nothing_is_not_a_number() -> None:
    assert np.isnan(reliability(np.array([]), np.array([], bool)).error)


def test_wilson_is_the_published_interval() -> None:
    low, high = wilson(np.array([81.0, 0.0]), np.array([263.0, 20.0]))  # Newcombe 1998, table I
    np.testing.assert_allclose([low[0], high[0]], [0.2553, 0.3662], atol=1e-4)
    np.testing.assert_allclose([low[1], high[1]], [0.0, 0.1611], atol=1e-4)


def test_the_hardest_have_the_highest_loss_and_nan_is_the_worst() -> None:
    outcomes = single(5)
    outcomes.loss[:] = [0.1, 3.0, np.nan, 3.0, 0.5]
    assert hardest(outcomes, 4).tolist() == [2, 1, 3, 4]


def test_residuals() -> None:
    outcomes = numbers()
    found = residuals(outcomes)
    assert found.mean_absolute == pytest.approx(reference.mean_absolute_error(outcomes.truth, outcomes.predicted))
    assert found.root_mean_square == pytest.approx(reference.root_mean_squared_error(outcomes.truth, outcomes.predicted))
    assert found.median_absolute == pytest.approx(reference.median_absolute_error(outcomes.truth, outcomes.predicted))
    assert found.bias == pytest.approx(np.mean(outcomes.predicted - outcomes.truth))
    assert found.largest_absolute == pytest.approx(reference.max_error(outcomes.truth, outcomes.predicted))


# -- bootstrap --------------------------------------------------------------------------------------------------------------

SINGLE = {
    "accuracy": lambda t, a, p: reference.accuracy_score(t, a),
    "f1": lambda t, a, p: reference.f1_score(t, a, average="macro"),
    "f1_micro": lambda t, a, p: reference.f1_score(t, a, average="micro"),
    "f1_weighted": lambda t, a, p: reference.f1_score(t, a, average="weighted"),
    "f1_per_class": lambda t, a, p: reference.f1_score(t, a, average=None, labels=range(4), zero_division=0),
    "matthews": lambda t, a, p: reference.matthews_corrcoef(t, a),
    "auc": lambda t, a, p: np.mean([reference.roc_auc_score(t == i, p[:, i]) for i in range(3)]),
}
MULTI = {
    "accuracy": lambda t, a, p: reference.accuracy_score(t, a),
    "label_accuracy": lambda t, a, p: 1 - reference.hamming_loss(t, a),
    "f1": lambda t, a, p: reference.f1_score(t, a, average="macro", zero_division=0),
    "f1_micro": lambda t, a, p: reference.f1_score(t, a, average="micro", zero_division=0),
    "matthews": lambda t, a, p: np.mean([reference.matthews_corrcoef(t[:, i], a[:, i]) for i in range(4)]),
    "auc": lambda t, a, p: np.mean([reference.roc_auc_score(t[:, i], p[:, i]) for i in range(3)]),
}
NUMBERS = {
    "mean_squared_error": lambda t, a, p: reference.mean_squared_error(t, a),
    "mean_absolute_error": lambda t, a, p: reference.mean_absolute_error(t, a),
    "pearson": lambda t, a, p: np.corrcoef(t, a)[0, 1],
    "r2": lambda t, a, p: reference.r2_score(t, a),
}


@pytest.mark.parametrize(
    ("outcomes", "wanted"), [(single(), SINGLE), (multi(), MULTI), (numbers(), NUMBERS)], ids=["single_label", "multi_label", "regression"]
)
def test_a_draw_gives_what_scikit_learn_gives_for_the_drawn_examples(outcomes: Outcomes, wanted: dict) -> None:
    weights = next(iter(draw(len(outcomes), 5, seed=3)))
    assert weights.shape == (5, len(outcomes)) and (weights.sum(1) == len(outcomes)).all()
    found = compute(outcomes, weights, {*wanted, "loss"})
    assert found.keys() == {*wanted, "loss"}
    for row in range(5):
        rows = np.repeat(np.arange(len(outcomes)), weights[row].astype(int))
        assert found["loss"][row] == pytest.approx(outcomes.loss[rows].mean())
        for name, function in wanted.items():
            expected = function(outcomes.truth[rows], outcomes.predicted[rows], outcomes.probabilities[rows])
            np.testing.assert_allclose(found[name][row], expected, rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("outcomes", [single(), multi()], ids=["single_label", "multi_label"])
def test_calibration_error_of_a_draw(outcomes: Outcomes) -> None:
    weights = next(iter(draw(len(outcomes), 1, seed=3)))
    rows = np.repeat(np.arange(len(outcomes)), weights[0].astype(int))
    each = len(outcomes.confidence) // len(outcomes)
    confidence, right = (x.reshape(-1, each)[rows].reshape(-1) for x in (outcomes.confidence, outcomes.right))
    found = compute(outcomes, weights, ["expected_calibration_error"], bins=10)["expected_calibration_error"]
    np.testing.assert_allclose(found, reliability(confidence, right, 10).error)


def test_the_interval_of_the_accuracy_is_that_of_a_share() -> None:
    outcomes = single(400)
    share = float(np.mean(outcomes.truth == outcomes.predicted))
    found = intervals(outcomes, {"accuracy": share})["accuracy"]
    assert isinstance(found, Interval)
    half = 1.96 * np.sqrt(share * (1 - share) / 400)
    np.testing.assert_allclose([found.low, found.high], [share - half, share + half], atol=0.01)
    assert intervals(outcomes, {"accuracy": share})["accuracy"] == found, "the draws are seeded"
    assert intervals(outcomes, {"accuracy": share}, seed=1)["accuracy"] != found


def test_there_is_no_interval_for_a_number_that_the_predictions_do_not_give() -> None:
    outcomes = single()
    share = float(np.mean(outcomes.truth == outcomes.predicted))
    weighted_loss = float(outcomes.loss.mean()) * 1.3  # as with class weights
    found = intervals(outcomes, {"accuracy": share, "loss": weighted_loss, "my_metric": 0.5, "f1": float("nan")})
    assert found.keys() == {"accuracy"}


def test_one_example_has_no_interval() -> None:
    assert intervals(single(1), {"accuracy": 1.0}) == {}


def test_blocks_of_draws_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = single()
    share = float(np.mean(outcomes.truth == outcomes.predicted))
    whole = intervals(outcomes, {"accuracy": share}, draws=50)
    monkeypatch.setattr("jaxtune.evaluation.bootstrap._BLOCK", 7 * len(outcomes))
    assert intervals(outcomes, {"accuracy": share}, draws=50) == whole


@pytest.mark.parametrize(("examples", "draws"), [(10, 1000), (60_000, 1000), (200_000, 335), (1_000_000, 200)])
def test_very_large_splits_get_fewer_draws(examples: int, draws: int) -> None:
    empty = np.empty((examples, 0))
    outcomes = Outcomes("multi_label", NAMES, np.arange(examples), empty, empty, empty, empty)
    assert affordable(outcomes) == draws


def test_group_sums() -> None:
    weights = np.arange(12.0).reshape(2, 6)
    np.testing.assert_array_equal(group_sums(weights, np.array([3, 0, 3, 1, 0, 3]), 5), [[5, 3, 0, 7, 0], [17, 9, 0, 25, 0]])
    np.testing.assert_array_equal(group_sums(weights[:, :0], np.array([], int), 2), np.zeros((2, 2)))


# -- the file ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", ["single_label", "multi_label", "regression"])
def test_the_predictions_file_is_read_back_as_it_was(problem: str, tmp_path: Path) -> None:
    made = MadeRun(problem=problem, names=() if problem == "regression" else ("x", "1", "<b>"), examples=20)
    found = read_outcomes(made.write(tmp_path / "rate=3") / "predictions" / "test.parquet", problem)  # type: ignore[arg-type]
    written = made.predictions["test"]
    np.testing.assert_array_equal(found.rows, written.ids)
    np.testing.assert_allclose(found.loss, written.loss)
    if problem == "regression":
        np.testing.assert_allclose(found.predicted, written.probabilities[:, 0])
        np.testing.assert_allclose(found.truth, [made.truth[i] for i in written.ids])
        return
    assert found.names == ("x", "1", "<b>")
    np.testing.assert_array_equal(found.probabilities, written.probabilities)
    labels = [made.truth[i] for i in written.ids]
    if problem == "single_label":
        assert [found.names[i] for i in found.truth] == labels
        np.testing.assert_array_equal(found.predicted, written.probabilities.argmax(1))
    else:
        assert [[found.names[i] for i in np.flatnonzero(row)] for row in found.truth] == labels
        np.testing.assert_array_equal(found.predicted, written.probabilities > 0.5)
