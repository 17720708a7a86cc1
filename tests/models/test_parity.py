"""Every recorded case: outputs, loss and gradients as `transformers` on PyTorch computed them."""

from __future__ import annotations

import numpy as np
import parity_cases as cases
import pytest

TRAINED = [name for name in cases.NAMES if cases.INDEX[name]["training_pass"]]
OUTPUTS_WITHIN = 1e-5  # absolute; outputs are of order one
GRADIENTS_WITHIN = 1e-4  # of the tensor's greatest absolute value
# A key's bias moves all scores of a query alike, which softmax does not see: its true gradient is zero and what is recorded is rounding.
NOTHING_WITHIN = 1e-6


def compare_gradients(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], excused: dict[str, int]) -> None:
    """`excused`: the one row of an embedding table that PyTorch sets to zero."""
    for name, reference in expected.items():
        gradient = found[name]
        assert gradient.shape == reference.shape, name
        if name.endswith(("key.bias", "k_lin.bias")):
            assert np.abs(gradient).max() < NOTHING_WITHIN and np.abs(reference).max() < NOTHING_WITHIN, name
            continue
        if name in excused:
            gradient, reference = (np.delete(table, excused[name], axis=0) for table in (gradient, reference))
        difference = np.abs(gradient - reference).max()
        assert difference <= GRADIENTS_WITHIN * np.abs(reference).max(), f"{name}: {difference:.2e} of {np.abs(reference).max():.2e}"


def channels_last(values: np.ndarray) -> np.ndarray:
    """[B, C, Y, X] -> [B, Y X, C]; token features stay."""
    return values.reshape(*values.shape[:2], -1).transpose(0, 2, 1) if values.ndim == 4 else values


@pytest.mark.parametrize("name", cases.NAMES)
def test_outputs_and_loss(name: str) -> None:
    found, loss, _, _ = cases.run(name)
    expected = cases.reference(name)
    assert np.abs(found["tokens"] - channels_last(expected["last_hidden_state"])).max() <= OUTPUTS_WITHIN
    if "pooler_output" in expected:
        assert np.abs(found["pooled"] - expected["pooler_output"].reshape(found["pooled"].shape)).max() <= OUTPUTS_WITHIN
    if "logits" in expected:
        assert np.abs(found["logits"] - expected["logits"]).max() <= OUTPUTS_WITHIN
    assert abs(loss - expected["loss"]) <= OUTPUTS_WITHIN


@pytest.mark.parametrize("name", cases.NAMES)
def test_gradients(name: str) -> None:
    _, _, gradients, _ = cases.run(name)
    expected = {key.removeprefix("grad."): value for key, value in cases.reference(name).items() if key.startswith("grad.")}
    excused: dict[str, int] = {}
    if name.endswith("left_padded"):
        # The head reads a padded first position here, so its embedding rows do take part in the loss. PyTorch's padding_idx sets their
        # gradient to zero; ours is the true one.
        family = cases.loaded(name).base.family
        excused = {f"{family.prefix}embeddings.word_embeddings.weight": family.raw["pad_token_id"]}
        if family.model_type == "roberta":
            excused[f"{family.prefix}embeddings.position_embeddings.weight"] = family.raw["pad_token_id"]
        for table, row in excused.items():
            assert not expected[table][row].any() and gradients[table][row].any()
    if name.startswith("vit_bare"):  # the bare model's pooler belongs to no classifier, so we have none
        expected = {key: value for key, value in expected.items() if not key.startswith("pooler.")}
    compare_gradients(gradients, expected, excused)
    beside = {key for key, value in gradients.items() if key not in expected and value.any()}
    assert not beside, f"gradients where PyTorch has none: {beside}"


@pytest.mark.parametrize("name", TRAINED)
def test_batch_statistics_in_training(name: str) -> None:
    found, loss, gradients, changed = cases.run(name, training=True)
    expected = {key.removeprefix("train."): value for key, value in cases.reference(name).items() if key.startswith("train.")}
    assert np.abs(found["logits"] - expected["logits"]).max() <= OUTPUTS_WITHIN
    assert abs(loss - expected["loss"]) <= OUTPUTS_WITHIN
    compare_gradients(gradients, {k.removeprefix("grad."): v for k, v in expected.items() if k.startswith("grad.")}, {})
    moved = {key: value for key, value in expected.items() if key.endswith((".running_mean", ".running_var"))}
    assert moved.keys() == changed.keys()
    for key, value in moved.items():
        assert np.abs(changed[key] - value).max() <= OUTPUTS_WITHIN, key
        assert np.abs(value - cases.stored(name)[key]).max() > 100 * OUTPUTS_WITHIN, f"{key} did not move: the case shows nothing"


@pytest.mark.parametrize("name", TRAINED[:1])
def test_evaluation_leaves_batch_statistics_alone(name: str) -> None:
    _, _, _, changed = cases.run(name)
    for key, value in changed.items():
        np.testing.assert_array_equal(value, cases.stored(name)[key], err_msg=key)
