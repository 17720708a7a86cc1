"""Every recorded language model: logits and gradients as `transformers` on PyTorch computed them (what it writes: test_generate.py)."""

from __future__ import annotations

import language_cases as language
import numpy as np
import parity_cases as cases
import pytest

LOGITS_WITHIN = 1e-5  # of the greatest logit, or absolute where that is less than one
GRADIENTS_WITHIN = 1e-4  # of the tensor's greatest absolute value
# Moves all scores of a query alike, which softmax does not see: its true gradient is zero and what is recorded is rounding.
KEY_BIASES = ("k_proj.bias",)
NOTHING_WITHIN = 1e-5


def close(found: np.ndarray, expected: np.ndarray, real: np.ndarray) -> None:
    difference = np.abs(found - expected)[real > 0].max()
    assert difference <= LOGITS_WITHIN * max(1.0, np.abs(expected).max()), f"{difference:.2e} of {np.abs(expected).max():.2e}"


@pytest.mark.parametrize("name", language.NAMES)
def test_logits_with_padding_on_the_right(name: str) -> None:
    expected = cases.reference(name)
    close(language.logits_of(language.loaded(name), language.batch_of(name)), expected["logits"], expected["attention_mask"])


@pytest.mark.parametrize("name", language.NAMES)
def test_logits_with_padding_on_the_left(name: str) -> None:
    expected = cases.reference(name)
    found = language.logits_of(language.loaded(name), language.batch_of(name, "prompt."))
    close(found, expected["prompt_logits"], expected["prompt.attention_mask"])


@pytest.mark.parametrize("name", language.NAMES)
def test_loss_and_gradients(name: str) -> None:
    loss, gradients = language.run(name)
    expected = cases.reference(name)
    assert abs(loss - expected["loss"]) <= 1e-5
    found = cases.by_tensor(language.loaded(name), gradients)
    recorded = {key.removeprefix("grad."): value for key, value in expected.items() if key.startswith("grad.")}
    assert found.keys() == recorded.keys()
    for tensor, reference in recorded.items():
        difference, greatest = np.abs(found[tensor] - reference).max(), np.abs(reference).max()
        if tensor.endswith(KEY_BIASES):
            assert difference <= NOTHING_WITHIN, tensor
        else:
            assert difference <= GRADIENTS_WITHIN * greatest, f"{tensor}: {difference:.2e} of {greatest:.2e}"
