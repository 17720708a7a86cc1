"""The image task from records to logits: what becomes of images and labels, in memory and on demand, and what is refused."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from jaxtune.core.errors import ConfigError, DataError
from jaxtune.data.pipeline import batches
from jaxtune.data.plan import Plan
from jaxtune.data.processor import Limits, Processor
from jaxtune.data.sources.image_folder import ImageFolder
from jaxtune.data.sources.in_memory import InMemory
from jaxtune.data.transforms.image import ImageProcessor
from jaxtune.data.transforms.pixels import read_pixels
from jaxtune.models.family import Features
from jaxtune.models.load import open_base
from jaxtune.tasks import image_classification
from jaxtune.tasks.image_classification import ImageClassification, Images

REFERENCES = Path(__file__).resolve().parents[1] / "references"
TASK = ImageClassification()
GREY = Processor(image=ImageProcessor.new((8, 8, 1)))


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def records(*images: Any, labels: tuple[Any, ...] = ()) -> Any:
    labels = labels or tuple("ab"[i % 2] for i in range(len(images)))
    return InMemory(records=tuple({"image": image, "label": label} for image, label in zip(images, labels, strict=True))).open()


# -- from the base to a bound task --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_examples_normalised_on_the_device_are_what_transformers_makes(name: str) -> None:
    recorded = load_file(REFERENCES / name / "reference.safetensors")
    base = open_base(str(REFERENCES / name))
    processor = TASK.processor(base)
    encoded = TASK.encode(records(*recorded["images"]), ("a", "b"), processor, Limits())
    image = encoded.examples.column("image")
    assert image.dtype == np.uint8
    prepared = TASK.bind(processor).prepare({"image": jnp.asarray(image), "label": jnp.zeros(3)})
    np.testing.assert_allclose(np.asarray(prepared["image"]).transpose(0, 3, 1, 2), recorded["pixel_values"], atol=1e-6)
    assert "label" in prepared


def test_predict_prepares_inside_the_trace() -> None:
    class Model:
        def __call__(self, batch: Any, noise: Any, training: bool) -> Features:
            return Features(batch["image"].mean((1, 2)))

        def head(self, features: Features, noise: Any) -> jax.Array:
            return features.pooled

    task = TASK.bind(Processor(image=ImageProcessor.new((4, 4, 3))))
    out = jax.jit(lambda image: task.predict(Model(), {"image": image}))(np.full((2, 4, 4, 3), 255, np.uint8))  # type: ignore[arg-type]
    np.testing.assert_allclose(np.asarray(out["logits"]), np.ones((2, 3)), atol=1e-6)


def test_binding_makes_another_task_and_survives_copies() -> None:
    bound = TASK.bind(GREY)
    assert bound is not TASK and TASK._processor is None and bound._processor == GREY.image
    assert bound.model_copy(update={"loss": TASK.loss})._processor == GREY.image
    assert bound.model_dump() == TASK.model_dump()
    with pytest.raises(AssertionError, match="bound to a processor first"):
        TASK.prepare({"image": jnp.zeros((1, 8, 8, 1))})


def test_size_and_channels_reach_the_processor() -> None:
    base = open_base(str(REFERENCES / "vit"))
    larger = ImageClassification(size=24, channels="convert").processor(base).image
    assert larger is not None and larger.shape == (24, 24, 3) and larger.convert
    assert larger.host(pixels(9, 9, 1)).shape == (24, 24, 3)
    oblong = ImageClassification(size=(24, 32)).processor(base).image
    assert oblong is not None and oblong.shape == (24, 32, 3) and not oblong.convert


def test_a_new_model_has_a_processor_of_its_own() -> None:
    config = {"image_size": 8, "patch_size": 2, "num_channels": 1, "hidden_size": 8, "num_attention_heads": 2}
    processor = TASK.processor(open_base({"family": "vit", "config": config})).image
    assert processor is not None and processor.shape == (8, 8, 1)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (18, "18 x 18 is not a multiple of the patch size 4 x 4.*e.g. 16"),
        (2, "2 x 2 is smaller than one patch of 4 x 4"),
        ((16, 2), "16 x 2"),
    ],
)
def test_sizes_that_do_not_fit_the_patches_are_refused(size: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=f"model.base .*references/vit: image size {words}"):
        ImageClassification(size=size).processor(open_base(str(REFERENCES / "vit")))


def test_a_processor_for_other_channels_is_refused(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(REFERENCES / "vit_one_channel" / name, tmp_path)
    with pytest.raises(ConfigError, match="no preprocessor_config"):
        TASK.processor(open_base(str(tmp_path)))
    config = json.loads((REFERENCES / "vit" / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"image_mean=\[0.5, 0.5, 0.5\] does not fit the model; expected one number for each of its 1"):
        TASK.processor(open_base(str(tmp_path)))


def test_a_text_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="takes no images"):
        TASK.processor(open_base(str(REFERENCES / "bert")))


# -- encoding -----------------------------------------------------------------------------------------------------------


def test_labels_and_report() -> None:
    encoded = TASK.encode(records(pixels(9, 5, 1), pixels(8, 8, 1), pixels(30, 20, 1), labels=("b", "a", "b")), ("a", "b"), GREY, Limits())
    assert encoded.examples.column("label").tolist() == [1, 0, 1]
    assert encoded.kept.tolist() == [0, 1, 2]
    assert encoded.report == {"image_shape": (8, 8, 1), "in_memory": True, "smallest": (9, 5), "largest": (30, 20)}


def test_multi_label() -> None:
    task = ImageClassification(problem="multi_label", label="tags")
    rows = InMemory(records=({"image": pixels(8, 8, 1), "tags": ["sea", "sky"]}, {"image": pixels(8, 8, 1), "tags": "sky"})).open()
    encoded = task.encode(rows, ("sea", "sky"), GREY, Limits())
    assert encoded.examples.column("target").tolist() == [[1, 1], [0, 1]]
    assert task.columns == ("image", "tags")


def test_records_without_labels_give_images_alone() -> None:
    rows = InMemory(records=({"image": pixels(8, 8, 1)},)).open()
    assert set(TASK.encode(rows, ("a", "b"), GREY, Limits()).examples.columns) == {"image"}


def test_large_sets_are_read_on_demand_with_the_same_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = records(*(pixels(11, 13, 1, seed=seed) for seed in range(10)))
    small = TASK.encode(rows, ("a", "b"), GREY, Limits())
    monkeypatch.setattr(image_classification, "MEMORY_BYTES", 10 * 64 - 1)
    large = TASK.encode(rows, ("a", "b"), GREY, Limits())
    assert isinstance(large.examples.columns["image"], Images) and not large.report["in_memory"]
    view = large.examples.subset([7, 2])
    assert np.array_equal(view.row(0)["image"], small.examples.row(7)["image"]) and view.row(1)["label"] == small.examples.row(2)["label"]
    read = [list(batches(e.examples, Plan(rows=10, batch_size=4), stop=3, threads=2)) for e in (small, large)]
    for one, other in zip(*read, strict=True):
        assert one.arrays["image"].shape == (4, 8, 8, 1)
        assert all(np.array_equal(one.arrays[name], other.arrays[name]) for name in one.arrays)
    again = pickle.loads(pickle.dumps(large.examples))
    assert np.array_equal(again.row(3)["image"], small.examples.row(3)["image"])
    with pytest.raises(IndexError):
        large.examples.columns["image"][10]


@dataclass(frozen=True)
class Counting:
    """Records that count how often each is read."""

    inner: Any
    reads: list[int]

    @property
    def fields(self) -> tuple[str, ...]:
        return self.inner.fields

    label_names = {}  # noqa: RUF012

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.reads.append(index)
        return self.inner[index]


def test_every_image_is_read_once() -> None:
    counting = Counting(records(*(pixels(8, 8, 1) for _ in range(600))), [])
    encoded = TASK.encode(counting, ("a", "b"), GREY, Limits())
    encoded.examples.row(5)
    assert sorted(counting.reads) == list(range(600))


def test_all_bad_images_are_named_with_their_rows() -> None:
    good = pixels(8, 8, 1)
    with pytest.raises(DataError) as caught:
        TASK.encode(records(good, good.astype(np.float32), good, None), ("a", "b"), GREY, Limits())
    lines = str(caught.value).splitlines()
    assert lines[0].startswith('row 1, column "image": found float32[8, 8, 1]; expected an image as uint8')
    assert lines[1].startswith('row 3, column "image": found NoneType') and len(lines) == 2
    many = records(*[None] * 14)
    with pytest.raises(DataError, match="and 4 more"):
        TASK.encode(many, ("a", "b"), GREY, Limits())


def test_other_channels_are_a_configuration_error_that_names_the_option() -> None:
    with pytest.raises(ConfigError, match=r'row 1, column "image": found an image with 3 channel.*task\.channels: convert'):
        TASK.encode(records(pixels(8, 8, 1), pixels(8, 8, 3)), ("a", "b"), GREY, Limits())


def test_unknown_labels_are_refused() -> None:
    with pytest.raises(DataError, match=r"column .label.*'c'"):
        TASK.encode(records(pixels(8, 8, 1), labels=("c",)), ("a", "b"), GREY, Limits())


# -- where pixels come from ---------------------------------------------------------------------------------------------


def test_images_by_path_bytes_and_hub_style(tmp_path: Path) -> None:
    colour, grey = pixels(5, 7, 3), pixels(5, 7)
    Image.fromarray(colour).save(tmp_path / "colour.png")
    Image.fromarray(grey).save(tmp_path / "grey.png")
    content = (tmp_path / "colour.png").read_bytes()
    hub = {"bytes": content, "path": "somewhere/else.png"}
    for value in (colour, str(tmp_path / "colour.png"), content, hub, {"bytes": None, "path": str(tmp_path / "colour.png")}):
        assert np.array_equal(read_pixels(value), colour)
    assert np.array_equal(read_pixels(str(tmp_path / "grey.png"))[:, :, 0], grey)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("nowhere.png", 'no file "nowhere.png"; paths of images are absolute'),
        ("", "found str"),
        (b"no image", "image bytes: cannot be decoded"),
        (7, "found int '7'; expected pixels"),
        (np.zeros((2, 2, 2, 2), np.uint8), r"array of shape \[2, 2, 2, 2\]"),
        ({"array": 1}, "found NoneType"),
    ],
)
def test_values_that_are_no_image(value: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_pixels(value)


def test_image_folder_end_to_end(tmp_path: Path) -> None:
    for number, label in enumerate(("cat", "dog", "cat")):
        (tmp_path / label).mkdir(exist_ok=True)
        Image.fromarray(pixels(20, 16, 3, seed=number)).save(tmp_path / label / f"{number}.png")
    rows = ImageFolder(path=str(tmp_path)).open()
    names = TASK.find_labels(["cat", "dog"], rows.label_names["label"])
    processor = Processor(image=ImageProcessor.new((8, 8, 3)))
    encoded = TASK.encode(rows, names, processor, Limits())
    assert names == ("cat", "dog") and encoded.examples.column("label").tolist() == [0, 0, 1]
    expected = Image.fromarray(pixels(20, 16, 3, seed=0)).resize((8, 8), Image.Resampling.BILINEAR)
    assert np.array_equal(encoded.examples.row(0)["image"], np.asarray(expected))


def test_importing_the_task_does_not_import_pillow() -> None:
    import subprocess

    code = "import sys, jaxtune.tasks.image_classification, jaxtune.data.transforms.rand_augment; print('PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
