"""`kind: image_folder`: one image file per example in a folder per label, decoded when its record is asked for.

Pixels come out upright (by the EXIF tag) and in one colour form, because cameras and converters disagree about both.
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, PositiveInt

from jaxtune.core.errors import DataError
from jaxtune.data.sources.base import FileSource, Records
from jaxtune.data.sources.folder import FolderRecords, labelled_files

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
END_BYTES = 4096


class ImageFolder(FileSource):
    """Fields: image (u8 [Y,X,C]), label (the folder's name), path (relative, such as "cats/1.png")."""

    channels: Literal[1, 3] = Field(
        default=3, description="3: red, green, blue; 1: grey. Images in another form are converted, transparency goes."
    )
    max_pixels: PositiveInt = Field(
        64_000_000,
        le=89_478_485,
        description="Larger images are refused before they are decoded (guards memory; Pillow's own limit is 89 million).",
    )

    def read(self, path: Path) -> Records:
        return FolderRecords.of(path, self.files(path), "image", partial(load_image, channels=self.channels, max_pixels=self.max_pixels))

    def files(self, path: Path) -> list[Path]:
        return labelled_files(path, lambda file: file.suffix.lower() in SUFFIXES, " or ".join(SUFFIXES) + " files")

    def file_digest(self, file: Path) -> str:
        """Size and both ends of a compressed image: other pixels give another size or end, and a million files take minutes."""
        if file.suffix.lower() == ".bmp":
            return super().file_digest(file)
        size = file.stat().st_size
        with file.open("rb") as opened:
            start = opened.read(END_BYTES)
            opened.seek(max(0, size - END_BYTES))
            return hashlib.sha256(size.to_bytes(8, "little") + start + opened.read(END_BYTES)).hexdigest()


def load_image(file: Path, channels: Literal[1, 3], max_pixels: int) -> np.ndarray:
    """u8 [Y, X, channels].

    Raises:
        DataError: the file is truncated, no image, or has more than `max_pixels` pixels.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(file, formats=("PNG", "JPEG", "WEBP", "BMP")) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise DataError(
                    f"{file}: {width} x {height} = {width * height} pixels, at most {max_pixels} are read; "
                    "make the image smaller, or raise max_pixels"
                )
            if image.mode.startswith("I") or image.mode == "F":
                raise DataError(f'{file}: pixels of form "{image.mode}" do not fit 8 bits; convert the image to 8 bits per channel')
            upright = ImageOps.exif_transpose(image)
            flat = upright.convert("RGBA") if "transparency" in upright.info else upright
            pixels = np.array(flat.convert("RGB" if channels == 3 else "L"), np.uint8)
    except DataError:
        raise
    except Exception as error:  # decoders of broken files raise nearly anything: struct.error, SyntaxError, EOFError, zlib.error
        raise DataError(f"{file}: cannot be decoded as an image ({error}); repair or remove the file") from error
    return pixels.reshape(*pixels.shape[:2], channels)
