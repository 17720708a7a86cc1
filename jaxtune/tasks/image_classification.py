"""Image classification: one class, several, or a number per image.

Images are decoded and resized on the host and normalised on the device. A small set is kept in memory after one pass; a large one is
read again in every epoch, by the pipeline's threads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import jax
import numpy as np
from pydantic import Field, PositiveInt, PrivateAttr

from jaxtune.core.errors import ConfigError, DataError
from jaxtune.data.examples import Examples
from jaxtune.data.processor import Limits, Processor
from jaxtune.data.sources.base import Records, row_number
from jaxtune.data.transforms.image import ImageProcessor
from jaxtune.data.transforms.pixels import read_pixels
from jaxtune.models.family import Domain
from jaxtune.models.load import Base
from jaxtune.tasks.base import Encoded
from jaxtune.tasks.labelled import LabelledTask

MEMORY_BYTES = 256 << 20  # a set up to this size, as the model sees it, stays in memory
NAMED_ROWS = 10


class ImageClassification(LabelledTask):
    """Reads `image`, predicts `label`."""

    domain: ClassVar[Domain] = "image"

    image: str = Field(
        default="image", description="column with the image: pixels (uint8[height, width, channels]), bytes of a file, or its path"
    )
    size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = Field(
        None, description="image size that the model sees, one number or [height, width]; default: the checkpoint's"
    )
    channels: Literal["same", "convert"] = Field(
        "same",
        description="images with other channels than the model's: same refuses them, convert turns grey into colour or colour into grey",
    )

    _processor: ImageProcessor | None = PrivateAttr(None)

    @property
    def content(self) -> tuple[str, ...]:
        return (self.image,)

    def processor(self, base: Base) -> Processor:
        """The base's image processor at this task's size.

        Raises:
            ConfigError: its file is missing or not understood, or it and the model do not fit each other.
        """
        shape = base.family.image_shape
        if shape is None:
            raise ConfigError(f"model.base {base.reference} takes no images; choose a base for images or another task.kind")
        image = ImageProcessor.load(base.folder, shape, self.size)
        patch = base.family.raw.get("patch_size") if shape[0] else None  # a model for any size needs no whole number of patches
        problems = image.misfits(shape, (patch, patch) if isinstance(patch, int) else patch and (patch[0], patch[1]))
        if problems:
            raise ConfigError([f"model.base {base.reference}: {problem}" for problem in problems])
        return Processor(image=image.converting() if self.channels == "convert" else image)

    def bind(self, processor: Processor) -> Self:
        """This task with the means and deviations that `prepare` needs."""
        bound = self.model_copy()
        bound._processor = processor.image
        return bound

    def prepare(self, batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        assert self._processor is not None, "the task must be bound to a processor first: task = task.bind(processor)"
        return {**batch, "image": self._processor.normalise(batch["image"])}

    def encode(self, records: Records, names: tuple[str, ...], processor: Processor, limits: Limits) -> Encoded:
        """Looks at every image once; u8 images in memory, or read again on demand when they are too large for it.

        Raises:
            ConfigError: images have other channels than the model.
            DataError: images that cannot be read, or labels that do not fit.
        """
        del limits  # they speak of tokens; pixels are not worth a place on disk
        assert processor.image is not None
        images = Images(records, self.image, processor.image)
        in_memory = len(images) * int(np.prod(processor.image.shape)) <= MEMORY_BYTES
        kept = np.empty((len(images), *processor.image.shape), np.uint8) if in_memory else None
        labels: list[Any] = []
        sizes: list[tuple[int, int]] = []
        problems: list[str] = []
        for number, seen in enumerate(images.look(self.label)):
            if isinstance(seen, Exception):
                problems.append(str(seen))
                continue
            labels.append(seen.label)
            sizes.append(seen.size)
            if kept is not None:
                kept[number] = seen.pixels
        if problems:
            more = f"\nand {len(problems) - NAMED_ROWS} more" if len(problems) > NAMED_ROWS else ""
            raise DataError("\n".join(problems[:NAMED_ROWS]) + more)
        columns: dict[str, Any] = {"image": images if kept is None else kept}
        if self.label in records.fields:
            columns |= self.encode_labels(labels, names)
        report = {
            "image_shape": processor.image.shape,
            "in_memory": in_memory,
            "smallest": min(sizes, key=lambda size: size[0] * size[1]),
            "largest": max(sizes, key=lambda size: size[0] * size[1]),
        }
        return Encoded(Examples(columns), np.arange(len(images)), report)


@dataclass(frozen=True)
class Seen:
    """One record as it was read: its label, the image's (height, width) before resizing, and u8 pixels after it."""

    label: Any
    size: tuple[int, int]
    pixels: np.ndarray


@dataclass(frozen=True, eq=False)
class Images:
    """A column of examples that decodes and resizes an image when its row is asked for: u8 [Y,X,C]. Picklable."""

    records: Records
    column: str
    processor: ImageProcessor

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.read(row_number(index, len(self))).pixels

    def read(self, number: int, label: str = "") -> Seen:
        """Raises:
        ConfigError, DataError: the image cannot be used; with its row.
        """
        try:
            record = self.records[number]
            pixels = read_pixels(record[self.column])
            return Seen(record.get(label), (pixels.shape[0], pixels.shape[1]), self.processor.host(pixels))
        except (ConfigError, DataError) as error:
            raise type(error)(f'row {number}, column "{self.column}": {error}') from error

    def look(self, label: str) -> Iterator[Seen | DataError]:
        """Every row in order, read by threads; rows that cannot be used come as their error.

        Raises:
            ConfigError: an image has other channels than the model.
        """

        def read(number: int) -> Seen | DataError:
            try:
                return self.read(number, label)
            except DataError as error:
                return error

        block = 256  # bounds what is decoded ahead of the reader
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for start in range(0, len(self), block):
                yield from pool.map(read, range(start, min(start + block, len(self))))
