"""Images as a checkpoint was trained to see them: resized and cropped on the host, rescaled and normalised on the device.

Pixels travel to the device as 8-bit numbers, a quarter of the bytes of float32, and the arithmetic costs nothing there.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune.core.component import nearest
from jaxtune.core.errors import ConfigError, DataError

FILE = "preprocessor_config.json"
NEAREST, LANCZOS, BILINEAR, BICUBIC, BOX, HAMMING = range(6)  # Pillow's numbers, which transformers writes
WARP_FROM = 384  # at this size and above, ConvNext's processor warps in place of cropping
_TYPE = re.compile(r"(\w+?)(ImageProcessor|FeatureExtractor)(Fast|Pil)?\Z")

# What each processor class assumes for keys that the file leaves out.
_COMMON = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255, "image_mean": 0.5, "image_std": 0.5}
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "ViT": {**_COMMON, "size": {"height": 224, "width": 224}, "resample": BILINEAR, "do_center_crop": False},
    "DeiT": {
        **_COMMON, "size": {"height": 256, "width": 256}, "resample": BICUBIC,
        "do_center_crop": True, "crop_size": {"height": 224, "width": 224},
    },
    "ConvNext": {**_COMMON, "size": {"shortest_edge": 384}, "resample": BICUBIC, "do_center_crop": False, "crop_pct": 224 / 256},
}  # fmt: skip
_KNOWN = frozenset(key for defaults in _DEFAULTS.values() for key in defaults)
# Keys that change no pixel: names, tensor layouts, where transformers computes. (`do_convert_rgb` is the task's `channels` here.)
_NEUTRAL = frozenset(
    {
        *("image_processor_type", "feature_extractor_type", "processor_class", "_processor_class", "_valid_processor_keys"),
        *("data_format", "input_data_format", "return_tensors", "device", "disable_grouping", "do_convert_rgb"),
    }
)


@dataclass(frozen=True)
class ImageProcessor:
    """The steps of one checkpoint's image processor: resize, crop, then (x * rescale - mean) / std.

    Attributes:
        resize: (height, width) exactly, or the length of the shorter edge (the ratio stays), or None: images come in the right size.
        crop: (height, width) cut from the middle after resizing; images that are smaller get a black border.
        shape: (height, width, channels) that comes out; height and width are 0 where images are not resized or cropped.
        mean, std: one number per channel.
        convert: images with other channels are converted; otherwise they are an error.
        config: the same as `preprocessor_config.json`, which transformers reads.
    """

    resize: tuple[int, int] | int | None
    crop: tuple[int, int] | None
    shape: tuple[int, int, int]
    resample: int
    rescale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    convert: bool = False
    config: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def load(cls, folder: Path | None, image_shape: tuple[int, int, int], size: int | tuple[int, int] | None = None) -> ImageProcessor:
        """That of a checkpoint, or of a new model (folder None); see `of_checkpoint` and `new`."""
        return cls.new(image_shape, size) if folder is None else cls.of_checkpoint(folder, image_shape, size)

    @classmethod
    def of_checkpoint(cls, folder: Path, image_shape: tuple[int, int, int], size: int | tuple[int, int] | None = None) -> ImageProcessor:
        """As the checkpoint's preprocessor_config.json says, at another size when one is given.

        Args:
            image_shape: the model's (height, width, channels); images that nothing resizes must have this size.

        Raises:
            ConfigError: the file is missing or says something that is not known here (all such keys).
        """
        path = folder / FILE
        if not path.is_file():
            raise ConfigError(
                f"{folder}: no {FILE}, so nobody knows which pixel values this model was trained on; "
                "copy the file from where the model was published"
            )
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{path}: not valid JSON ({error})") from error
        try:
            processor = cls.parse(config, image_shape[2], size)
        except ConfigError as error:
            raise ConfigError([f"{path}: {problem}" for problem in error.problems]) from error
        if processor.shape[0]:
            return processor
        if not image_shape[0]:
            raise ConfigError(
                f"{path}: nothing resizes images (do_resize is false) and the model takes any size; set task.size, e.g. `size: 224`"
            )
        return replace(processor, shape=image_shape)

    @classmethod
    def new(cls, image_shape: tuple[int, int, int], size: int | tuple[int, int] | None = None) -> ImageProcessor:
        """For a model without a checkpoint: images resized to the model's size, values from -1 to 1.

        Raises:
            ConfigError: neither the model nor `size` says how large images are.
        """
        height, width, channels = image_shape
        if size is None and not (height and width):
            raise ConfigError("task: this model takes images of any size; set task.size, e.g. `size: 224`")
        config = {
            "image_processor_type": "ViTImageProcessor", **_DEFAULTS["ViT"], "size": {"height": height, "width": width},
            "image_mean": [0.5] * channels, "image_std": [0.5] * channels,
        }  # fmt: skip
        return cls.parse(config, channels, size)

    @classmethod
    def parse(cls, config: Mapping[str, Any], channels: int, size: int | tuple[int, int] | None = None) -> ImageProcessor:
        """From the content of a preprocessor_config.json.

        Raises:
            ConfigError: a kind of processor, a key or a value that is not known here.
        """
        name = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
        kind = found[1] if (found := _TYPE.match(name)) else ""
        if kind not in _DEFAULTS:
            raise ConfigError(
                f'image_processor_type "{name}" is not supported (known: {", ".join(f"{k}ImageProcessor" for k in _DEFAULTS)})'
            )
        given = {key: value for key, value in config.items() if value is not None and key not in _NEUTRAL}
        if size is not None:
            given |= _at_size(kind, {**_DEFAULTS[kind], **given}, size)
        problems = [
            f'key "{key}" (={value!r}) is not known for {kind}ImageProcessor{nearest(key, _DEFAULTS[kind])}; it may change the pixels'
            for key, value in given.items()
            if (key not in _KNOWN or (key == "crop_pct" and kind != "ConvNext")) and not (key == "do_pad" and value is False)
        ]
        c = {**_DEFAULTS[kind], **given}
        if c["resample"] not in range(6):
            problems.append(
                f"resample={c['resample']!r} is no filter of Pillow (0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic, 4 box, 5 Hamming)"
            )
        mean, std = (_per_channel(key, c[key], channels, problems) for key in ("image_mean", "image_std"))
        if not all(std):
            problems.append(f"image_std={c['image_std']!r} holds a zero, by which pixels would be divided")
        resize = crop = None
        if c["do_resize"]:
            resize = _edges("size", c["size"], kind != "ConvNext", problems)
        if c["do_center_crop"]:
            crop = _edges("crop_size", c.get("crop_size"), True, problems)
        if kind == "ConvNext" and resize is not None:
            resize, inner = _convnext(resize, c["crop_pct"], problems)
            crop = crop or inner
        if isinstance(crop, int) or (isinstance(resize, int) and crop is None):
            problems.append('images would come out in different sizes; expected a size or crop_size with "height" and "width"')
        if problems:
            raise ConfigError(problems)
        assert not isinstance(crop, int)
        final = crop or resize
        shape = (*final, channels) if isinstance(final, tuple) else (0, 0, channels)
        normalise = c["do_normalize"]
        return cls(
            resize=resize, crop=crop, shape=shape, resample=c["resample"], rescale=c["rescale_factor"] if c["do_rescale"] else 1.0,
            mean=mean if normalise else (0.0,) * channels, std=std if normalise else (1.0,) * channels, config={**config, **given},
        )  # fmt: skip

    def converting(self) -> ImageProcessor:
        """The same, turning grey into colour and colour into grey where the model needs it."""
        return replace(self, convert=True)

    def misfits(self, image_shape: tuple[int, int, int], patch: tuple[int, int] | None) -> list[str]:
        """What of the processor does not fit a model for `image_shape` (height and width 0: any) that cuts images into patches."""
        height, width, channels = self.shape
        problems: list[str] = []
        if channels != image_shape[2]:
            problems.append(f"images have {channels} channel(s) after the processor, the model takes {image_shape[2]}")
        if not height or patch is None:
            return problems
        if height < patch[0] or width < patch[1]:
            problems.append(f"image size {height} x {width} is smaller than one patch of {patch[0]} x {patch[1]}; set a larger task.size")
        elif height % patch[0] or width % patch[1]:
            rounded = [max(p, round(edge / p) * p) for edge, p in zip((height, width), patch, strict=True)]
            problems.append(
                f"image size {height} x {width} is not a multiple of the patch size {patch[0]} x {patch[1]}: pixels at the border would "
                f"not be seen; set task.size, e.g. {rounded[0] if rounded[0] == rounded[1] else rounded}"
            )
        return problems

    def fingerprint(self) -> str:
        """SHA-256: equal when `host` and `normalise` compute the same."""
        said = [self.resize, self.crop, self.shape, self.resample, self.rescale, self.mean, self.std, self.convert]
        return sha256(json.dumps(said).encode()).hexdigest()

    # -- the host part --------------------------------------------------------------------------------------------------

    def host(self, image: np.ndarray) -> np.ndarray:
        """u8 [Y,X,C] or [Y,X] of any size -> u8 of `shape`, as transformers' Pillow processors do it.

        Raises:
            ConfigError: other channels than the model's, and no conversion was asked for.
            DataError: no 8-bit image, or one of the wrong size where nothing resizes.
        """
        if image.ndim == 2:
            image = image[:, :, None]
        if image.ndim != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise DataError(
                f"found {image.dtype}{list(image.shape)}; expected an image as uint8[height, width, channels] with values from 0 to 255"
            )
        image = self._channels(image)
        image = self._resized(image)
        if self.crop is not None:
            image = _centre(image, self.crop)
        height, width, _ = self.shape
        if height and image.shape[:2] != (height, width):
            raise DataError(
                f"found an image of {image.shape[0]} x {image.shape[1]}; expected {height} x {width}, because nothing resizes (do_resize)"
            )
        return np.ascontiguousarray(image)

    def _channels(self, image: np.ndarray) -> np.ndarray:
        found, wanted = image.shape[2], self.shape[2]
        if found == wanted:
            return image
        if not self.convert:
            raise ConfigError(
                f"found an image with {found} channel(s), the model takes {wanted}; set `task.channels: convert` "
                "to turn grey into colour or colour into grey, or choose another base"
            )
        if found == 4:
            image = image[:, :, :3]
        if image.shape[2] == 3 and wanted == 1:
            return _array(_pillow(image).convert("L"))
        if image.shape[2] == 1 and wanted == 3:
            return np.repeat(image, 3, axis=2)
        if image.shape[2] != wanted:
            raise DataError(
                f"found an image with {found} channels, which cannot be converted to {wanted}; expected 1 (grey), 3 (colour) or 4"
            )
        return image

    def _resized(self, image: np.ndarray) -> np.ndarray:
        if self.resize is None:
            return image
        target = self.resize if isinstance(self.resize, tuple) else _keep_ratio(image.shape[:2], self.resize)
        if image.shape[:2] == target:
            return image
        from PIL.Image import Resampling

        size, how = (target[1], target[0]), Resampling(self.resample)
        if image.shape[2] in (1, 3):
            return _array(_pillow(image).resize(size, how))
        return np.concatenate([_array(_pillow(image[:, :, c : c + 1]).resize(size, how)) for c in range(image.shape[2])], axis=2)

    # -- the device part ------------------------------------------------------------------------------------------------

    def normalise(self, image: jax.Array) -> jax.Array:
        """[B,Y,X,C], u8 or float with values from 0 to 255 -> f32, what the model takes."""
        mean, std = (jnp.asarray(values, jnp.float32)[None, None, None] for values in (self.mean, self.std))
        return (image.astype(jnp.float32) * self.rescale - mean) / std


def _pillow(image: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray(image if image.shape[2] == 3 else np.ascontiguousarray(image[:, :, 0]))


def _array(image: Any) -> np.ndarray:
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _keep_ratio(size: Sequence[int], shorter: int) -> tuple[int, int]:
    """(height, width) whose shorter edge is `shorter`; the longer one is rounded down."""
    height, width = size
    return (shorter, shorter * width // height) if height <= width else (shorter * height // width, shorter)


def _centre(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle `size` of the image; black where it is smaller."""
    border = [max(0, wanted - found) for wanted, found in zip(size, image.shape, strict=False)]
    if any(border):
        image = np.pad(image, [((extra + 1) // 2, extra // 2) for extra in border] + [(0, 0)])
    top, left = ((found - wanted) // 2 for wanted, found in zip(size, image.shape, strict=False))
    return image[top : top + size[0], left : left + size[1]]


def _edges(key: str, value: Any, square: bool, problems: list[str]) -> tuple[int, int] | int | None:
    """(height, width), or the shorter edge."""
    if isinstance(value, int):
        return (value, value) if square else value
    if isinstance(value, Mapping):
        edges = {name: edge for name, edge in value.items() if edge is not None}
        if set(edges) == {"height", "width"}:
            return edges["height"], edges["width"]
        if set(edges) == {"shortest_edge"}:
            return edges["shortest_edge"]
    problems.append(f'{key}={value!r} is not understood; expected a number, {{"height", "width"}} or {{"shortest_edge"}}')
    return None


def _convnext(
    resize: tuple[int, int] | int, crop_share: float, problems: list[str]
) -> tuple[tuple[int, int] | int, tuple[int, int] | None]:
    """(resize, crop) of ConvNext's rule: enlarge by 1 / crop_pct and cut; large images are warped."""
    if isinstance(resize, tuple):
        problems.append('size of a ConvNextImageProcessor must be {"shortest_edge"}')
        return resize, None
    if resize >= WARP_FROM:
        return (resize, resize), None
    return int(resize / crop_share), (resize, resize)


def _per_channel(key: str, value: Any, channels: int, problems: list[str]) -> tuple[float, ...]:
    numbers = (value,) if isinstance(value, int | float) else tuple(value)
    if len(numbers) not in (1, channels) or not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
        problems.append(f"{key}={value!r} does not fit the model; expected one number for each of its {channels} channel(s)")
        return (0.5,) * channels
    return tuple(map(float, numbers)) * (channels if len(numbers) == 1 else 1)


def _at_size(kind: str, config: Mapping[str, Any], size: int | tuple[int, int]) -> dict[str, Any]:
    """The keys that give another size; what is cut away keeps its share."""
    height, width = (size, size) if isinstance(size, int) else size
    if kind == "ConvNext":
        if height != width:
            raise ConfigError(f"task.size: this checkpoint's image processor makes square images, found {height} x {width}; set one number")
        return {"size": {"shortest_edge": height}, "do_resize": True, "do_center_crop": False}
    exact = {"height": height, "width": width}
    if not config["do_center_crop"]:
        return {"size": exact, "do_resize": True}
    problems: list[str] = []
    outer, inner = _edges("size", config["size"], True, problems), _edges("crop_size", config.get("crop_size"), True, problems)
    if problems or not isinstance(outer, tuple) or not isinstance(inner, tuple):
        found = f"size={config['size']!r} of this checkpoint's image processor cannot be changed in proportion"
        raise ConfigError(problems or f"task.size: {found}; leave task.size out")
    grown = {"height": round(outer[0] * height / inner[0]), "width": round(outer[1] * width / inner[1])}
    return {"size": grown, "crop_size": exact, "do_resize": True}
