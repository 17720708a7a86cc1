"""What a task fills in by its kind of problem, from YAML words and from objects alike."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from jaxtune.losses.binary_cross_entropy import BinaryCrossEntropy
from jaxtune.metrics.accuracy import Accuracy
from jaxtune.metrics.f1 import F1
from jaxtune.tasks.base import Task
from jaxtune.tasks.causal_lm import CausalLM
from jaxtune.tasks.preference import Preference
from jaxtune.tasks.text_classification import TextClassification


def test_words_and_objects_mean_the_same() -> None:
    words, objects = TextClassification(metrics=("f1",)), TextClassification(metrics=(F1(),))  # type: ignore[arg-type]
    assert words == objects and words.best == objects.best == "f1"


@pytest.mark.parametrize(
    ("settings", "best"),
    [
        ({}, "accuracy"),
        ({"problem": "multi_label"}, "f1"),
        ({"problem": "regression"}, "mean_squared_error"),
        ({"metrics": ["f1", "accuracy"]}, "accuracy"),
        ({"metrics": [{"kind": "auc", "bins": 64}, "f1"]}, "auc"),
        ({"metrics": ["tiny_metric:Brier"]}, "brier"),
        ({"metrics": []}, "loss"),
    ],
)
def test_what_is_best_unless_said(settings: dict, best: str, tmp_path, monkeypatch) -> None:
    (tmp_path / "tiny_metric.py").write_text(
        "from jaxtune.metrics.loss import MeanLoss\n\nclass Brier(MeanLoss):\n    higher_is_better = {'brier': False}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert TextClassification.model_validate(settings).best == best


def test_the_loss_belongs_to_the_problem() -> None:
    assert isinstance(TextClassification(problem="multi_label").loss, BinaryCrossEntropy)
    assert [type(metric) for metric in TextClassification().metrics] == [Accuracy, F1]


def test_an_unknown_metric_is_named_once() -> None:
    with pytest.raises(ValidationError) as caught:
        TextClassification.model_validate({"metrics": ["f2"]})
    assert [error["loc"] for error in caught.value.errors()] == [("metrics", 0)]


@pytest.mark.parametrize(
    ("task", "settings", "said"),
    [
        (
            CausalLM,
            {"text": "text", "metrics": ["accuracy"]},
            "Accuracy cannot be measured in CausalLM; those that can: loss, perplexity, token_accuracy",
        ),
        (Preference, {"metrics": ["perplexity"]}, "Perplexity cannot be measured in Preference; those that can: loss, preference_accuracy"),
        (TextClassification, {"metrics": ["perplexity"]}, "Perplexity cannot be measured in TextClassification"),
    ],
)
def test_a_metric_of_another_task_is_refused(task: type[Task], settings: dict, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        task.model_validate(settings)
