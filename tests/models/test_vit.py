"""What the recorded cases do not show of ViT and DeiT: other image sizes on oblong grids, heads, and refusals."""

from __future__ import annotations

import jax
import numpy as np
import parity_cases as cases
import pytest

from jaxtune.core.errors import ConfigError
from jaxtune.models.load import open_base


def logits(name: str, image: np.ndarray) -> np.ndarray:
    return cases.logits_of(cases.loaded(name), {"image": image})


@pytest.mark.parametrize("name", ["vit_wide", "deit"])
def test_other_image_sizes_run_and_differ(name: str) -> None:
    large = np.random.default_rng(0).standard_normal((2, 24, 40, 3)).astype(np.float32)
    found = logits(name, large)
    assert found.shape == (2, 3) and np.isfinite(found).all()
    assert np.abs(found - logits(name, large[:, :, :36])).max() > 1e-3


def test_pixels_beyond_the_last_whole_patch_are_not_read() -> None:
    """As a convolution without padding leaves them."""
    image = np.random.default_rng(0).standard_normal((2, 18, 19, 3)).astype(np.float32)
    np.testing.assert_array_equal(logits("vit", image), logits("vit", image[:, :16, :16]))


def test_channels_must_fit() -> None:
    with pytest.raises(ConfigError, match="found 16 x 16 with 1 channel"):
        logits("vit", np.zeros((2, 16, 16, 1), np.float32))


def test_image_shape_and_depth() -> None:
    wide = open_base(str(cases.REFERENCES / "vit_wide")).family
    assert wide.image_shape == (16, 24, 3) and wide.max_tokens is None
    names = ["embeddings.cls", "embeddings.patches.kernel", "layers.0.up.bias", "layers.1.attn.q.kernel", "norm.scale", "head.out.bias"]
    assert [wide.layer_of(name) for name in names] == [0, 0, 1, 2, 3, 3]


def test_teacher_head_is_the_mean_of_two() -> None:
    it, expected = cases.loaded("deit_teacher"), cases.reference("deit_teacher")

    @jax.jit
    def both(values: dict[str, jax.Array], image: np.ndarray) -> tuple[jax.Array, jax.Array]:
        model = it.blueprint.build(values)
        features = model({"image": image})
        return model.head.out(features.pooled), model.head.distillation(features.tokens[:, 1])

    first, second = both(it.values, cases.batch_of("deit_teacher")["image"])
    np.testing.assert_allclose(first, expected["cls_logits"], atol=1e-5)
    np.testing.assert_allclose(second, expected["distillation_logits"], atol=1e-5)


def test_a_teacher_checkpoint_takes_a_new_head_of_its_own_kind() -> None:
    it = cases.load_folder(cases.REFERENCES / "deit_teacher", 7, new_head=True)
    assert it.plan.fresh == {f"head.{part}.{kind}" for part in ("out", "distillation") for kind in ("kernel", "bias")}
    assert cases.logits_of(it, cases.batch_of("deit_teacher")).shape == (3, 7)
