"""The image processor against what transformers made of the same images, and every refusal by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from jaxtune.core.errors import ConfigError, DataError
from jaxtune.data.transforms.image import BICUBIC, BILINEAR, FILE, ImageProcessor

REFERENCES = Path(__file__).resolve().parents[1] / "references"
VIT = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_equals_transformers(name: str) -> None:
    recorded = load_file(REFERENCES / name / "reference.safetensors")
    processor = ImageProcessor.of_checkpoint(REFERENCES / name, (0, 0, 3))
    host = np.stack([processor.host(image) for image in recorded["images"]])
    assert host.dtype == np.uint8 and host.shape[1:] == processor.shape
    ours = np.asarray(processor.normalise(jnp.asarray(host))).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(ours, recorded["pixel_values"], atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        {"image_processor_type": "ViTImageProcessor", "size": {"height": 12, "width": 20}, "resample": 1, "image_mean": [0.1, 0.2, 0.3]},
        {"image_processor_type": "DeiTImageProcessor", "size": {"height": 30, "width": 30}, "crop_size": {"height": 17, "width": 24}},
        {"image_processor_type": "DeiTImageProcessor", "do_resize": False, "crop_size": {"height": 41, "width": 30}},
        {"image_processor_type": "DeiTImageProcessor", "size": {"shortest_edge": 19}, "crop_size": 16, "do_normalize": False},
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 20}, "crop_pct": 0.8, "do_rescale": False},
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}},
        {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 21, "crop_pct": 0.9, "image_std": [0.25, 0.5, 0.125]},
    ],
)
def test_equals_the_installed_transformers(config: dict[str, Any]) -> None:
    """Settings that the recorded cases do not have, against transformers' Pillow processors (no PyTorch in them)."""
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
    from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    name = next(value for key, value in config.items() if key.endswith("_type"))
    theirs = {"Vi": ViTImageProcessorPil, "De": DeiTImageProcessorPil, "Co": ConvNextImageProcessorPil}[name[:2]]
    image = pixels(33, 47, 3)
    settings = {key: value for key, value in config.items() if not key.endswith("_type")}
    expected = theirs(**settings)(image, return_tensors="np")["pixel_values"]
    processor = ImageProcessor.parse(config, 3)
    ours = processor.normalise(jnp.asarray(processor.host(image))[None])
    np.testing.assert_allclose(np.asarray(ours).transpose(0, 3, 1, 2), expected, rtol=1e-6, atol=2e-6)


def test_image_of_the_right_size_is_not_touched() -> None:
    image = pixels(16, 16, 3)
    assert np.array_equal(ImageProcessor.parse(VIT, 3).host(image), image)


def test_new_model_has_the_models_size_and_values_from_minus_one_to_one() -> None:
    processor = ImageProcessor.new((8, 10, 1))
    assert processor.shape == (8, 10, 1) and processor.host(pixels(20, 20, 1)).shape == (8, 10, 1)
    ends = processor.normalise(jnp.asarray([0, 255], jnp.uint8).reshape(1, 2, 1, 1))
    np.testing.assert_allclose(np.asarray(ends).ravel(), [-1.0, 1.0], atol=1e-6)
    with pytest.raises(ConfigError, match=r"set task\.size"):
        ImageProcessor.new((0, 0, 3))
    assert ImageProcessor.new((0, 0, 3), 64).shape == (64, 64, 3)


def test_grey_and_two_dimensional_images() -> None:
    processor = ImageProcessor.new((8, 8, 1))
    image = pixels(12, 9)
    expected = np.asarray(Image.fromarray(image).resize((8, 8), Image.Resampling.BILINEAR))
    assert np.array_equal(processor.host(image)[:, :, 0], expected)
    assert np.array_equal(processor.host(image[:, :, None]), processor.host(image))


def test_another_size_keeps_the_share_that_is_cut_away() -> None:
    deit = ImageProcessor.parse({"image_processor_type": "DeiTImageProcessor"}, 3, size=112)
    assert (deit.resize, deit.crop, deit.shape) == ((128, 128), (112, 112), (112, 112, 3))
    vit = ImageProcessor.parse(VIT, 3, size=(24, 32))
    assert (vit.resize, vit.crop, vit.shape) == ((24, 32), None, (24, 32, 3))
    convnext = {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}, "crop_pct": 0.5}
    assert ImageProcessor.parse(convnext, 3).crop is None
    smaller = ImageProcessor.parse(convnext, 3, size=64)
    assert (smaller.resize, smaller.crop) == (128, (64, 64))
    with pytest.raises(ConfigError, match="square"):
        ImageProcessor.parse(convnext, 3, size=(64, 32))


def test_config_is_one_that_reads_back_as_the_same() -> None:
    unresized = ImageProcessor.parse({**VIT, "do_resize": False}, 3)
    for processor in (ImageProcessor.parse(VIT, 3, size=24), ImageProcessor.new((8, 8, 1)), unresized):
        again = ImageProcessor.parse(json.loads(json.dumps(dict(processor.config))), processor.shape[2])
        assert again == processor and again.fingerprint() == processor.fingerprint()


def test_fingerprint_tells_processors_apart() -> None:
    changed = [{}, {"resample": 3}, {"image_mean": [0.4] * 3}, {"rescale_factor": 0.01}, {"size": 17}, {"do_normalize": False}]
    prints = {ImageProcessor.parse({**VIT, **change}, 3).fingerprint() for change in changed}
    assert len(prints) == len(changed)
    processor = ImageProcessor.parse(VIT, 3)
    assert processor.converting().fingerprint() != processor.fingerprint()
    assert ImageProcessor.parse({**VIT, "processor_class": "X"}, 3).fingerprint() == processor.fingerprint()


def test_channels_are_converted_only_on_request() -> None:
    colour, grey = ImageProcessor.parse(VIT, 3), ImageProcessor.new((16, 16, 1))
    with pytest.raises(ConfigError, match=r"1 channel\(s\), the model takes 3; set `task\.channels: convert`"):
        colour.host(pixels(16, 16, 1))
    with pytest.raises(ConfigError, match=r"3 channel\(s\), the model takes 1"):
        grey.host(pixels(16, 16, 3))
    image = pixels(16, 16, 3)
    assert np.array_equal(grey.converting().host(image)[:, :, 0], np.asarray(Image.fromarray(image).convert("L")))
    one = pixels(16, 16, 1)
    assert np.array_equal(colour.converting().host(one), np.repeat(one, 3, 2))
    four = pixels(16, 16, 4)
    assert np.array_equal(colour.converting().host(four), four[:, :, :3])
    assert np.array_equal(grey.converting().host(four), grey.converting().host(four[:, :, :3]))
    with pytest.raises(DataError, match="2 channels"):
        colour.converting().host(pixels(16, 16, 2))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_processor_type": "CLIPImageProcessor"}, "CLIPImageProcessor.*not supported.*ViTImageProcessor"),
        ({"image_processor_type": None}, '"" is not supported'),
        ({"do_reduce_labels": True}, 'key "do_reduce_labels" .=True. is not known'),
        ({"do_pad": True}, 'key "do_pad"'),
        ({"crop_pct": 0.9}, 'key "crop_pct"'),
        ({"size": {"longest_edge": 9}}, "size=.*is not understood"),
        ({"size": {"shortest_edge": 9}}, "different sizes"),
        ({"resample": 9}, "resample=9"),
        ({"image_mean": [0.5, 0.5]}, r"image_mean=\[0.5, 0.5\] does not fit.*3 channel"),
        ({"image_std": [0.5, 0.5, 0.0]}, "zero"),
    ],
)
def test_unknown_settings_are_refused_by_name(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ImageProcessor.parse({**VIT, **change}, 3)


def test_all_unknown_settings_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        ImageProcessor.parse({**VIT, "do_flip": True, "gamma": 2.2, "resample": "bicubic"}, 3)
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("change", [{"do_pad": False}, {"pad_size": None}, {"do_convert_rgb": True}, {"data_format": "channels_first"}])
def test_settings_without_effect_pass(change: dict[str, Any]) -> None:
    assert ImageProcessor.parse({**VIT, **change}, 3) == ImageProcessor.parse(VIT, 3)


def test_files_that_are_missing_or_broken_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no preprocessor_config"):
        ImageProcessor.of_checkpoint(tmp_path, (16, 16, 3))
    (tmp_path / FILE).write_text("{")
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json: not valid JSON"):
        ImageProcessor.of_checkpoint(tmp_path, (16, 16, 3))
    (tmp_path / FILE).write_text(json.dumps({**VIT, "gamma": 1, "beta": 2}))
    with pytest.raises(ConfigError) as caught:
        ImageProcessor.of_checkpoint(tmp_path, (16, 16, 3))
    assert all(problem.startswith(str(tmp_path / FILE)) for problem in caught.value.problems) and len(caught.value.problems) == 2


def test_images_that_are_none_are_refused() -> None:
    processor = ImageProcessor.parse(VIT, 3)
    for wrong in (np.zeros((16, 16, 3), np.float32), np.zeros((2, 16, 16, 3), np.uint8), np.zeros((0, 16, 3), np.uint8)):
        with pytest.raises(DataError, match=r"expected an image as uint8\[height, width, channels\]"):
            processor.host(wrong)


def test_images_that_nothing_resizes_must_have_the_models_size(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({**VIT, "do_resize": False}))
    processor = ImageProcessor.of_checkpoint(tmp_path, (16, 16, 3))
    assert processor.host(pixels(16, 16, 3)).shape == (16, 16, 3)
    with pytest.raises(DataError, match="image of 16 x 17; expected 16 x 16"):
        processor.host(pixels(16, 17, 3))
    with pytest.raises(ConfigError, match=r"set task\.size"):
        ImageProcessor.of_checkpoint(tmp_path, (0, 0, 3))
    assert ImageProcessor.of_checkpoint(tmp_path, (0, 0, 3), size=8).host(pixels(16, 17, 3)).shape == (8, 8, 3)


def test_misfits_between_processor_and_model() -> None:
    processor = ImageProcessor.parse(VIT, 3)
    assert processor.misfits((16, 16, 3), (4, 4)) == [] == processor.misfits((0, 0, 3), None)
    assert "smaller than one patch of 32 x 32" in processor.misfits((64, 64, 3), (32, 32))[0]
    assert "not a multiple of the patch size 5 x 5" in processor.misfits((20, 20, 3), (5, 5))[0]
    assert "e.g. 15" in processor.misfits((20, 20, 3), (5, 5))[0]
    assert "the model takes 1" in processor.misfits((16, 16, 1), (4, 4))[0]


def test_defaults_of_the_classes() -> None:
    kinds = ("ViT", "DeiT", "ConvNext")
    vit, deit, convnext = (ImageProcessor.parse({"image_processor_type": f"{kind}ImageProcessorFast"}, 3) for kind in kinds)
    assert (vit.resize, vit.resample) == ((224, 224), BILINEAR)
    assert (deit.resize, deit.crop, deit.resample) == ((256, 256), (224, 224), BICUBIC)
    assert (convnext.resize, convnext.crop) == ((384, 384), None)


def test_the_config_of_a_new_model_means_the_same_to_transformers() -> None:
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    processor = ImageProcessor.new((8, 8, 1), size=(6, 10))
    image = pixels(13, 9, 1)
    settings = {key: value for key, value in processor.config.items() if not key.endswith("_type")}
    expected = ViTImageProcessorPil(**settings)(image, return_tensors="np", input_data_format="channels_last")["pixel_values"]
    ours = np.asarray(processor.normalise(jnp.asarray(processor.host(image))[None]))
    np.testing.assert_allclose(ours.transpose(0, 3, 1, 2), expected, atol=1e-6)
