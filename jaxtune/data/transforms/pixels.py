"""The pixels of whatever a record holds as its image: an array, the bytes of an image file, or its path.

Tables (CSV, JSON lines, parquet) name images by path or carry the file's bytes; sources of images give arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from jaxtune.core.errors import DataError
from jaxtune.core.printable import printable
from jaxtune.data.sources.image_folder import load_image

MAX_PIXELS = 64_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
GREY = frozenset({"1", "L", "LA", "La"})  # Pillow's modes without colour


class _Bytes(BytesIO):
    """An image file in memory, named in messages."""

    def __str__(self) -> str:
        return "image bytes"


def read_pixels(value: Any) -> np.ndarray:
    """[Y,X,C]: grey files have one channel, all others three; arrays come back as they are.

    A mapping with "bytes" or "path" is how datasets on the Hugging Face hub store images in parquet.

    Raises:
        DataError: no image, or a file that is missing or cannot be decoded.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, np.ndarray):
        if value.ndim not in (2, 3):
            raise DataError(f"found an array of shape {list(value.shape)}; expected an image as uint8[height, width, channels]")
        return value
    if isinstance(value, str) and value:
        file: Any = Path(value).expanduser()
        if not file.is_file():
            raise DataError(
                f'no file "{printable(value, 200)}"; paths of images are absolute, or relative to the folder jaxtune is started in'
            )
    elif isinstance(value, bytes) and value:
        file = _Bytes(value)
    else:
        raise DataError(f"found {type(value).__name__} {printable(value)!r}; expected pixels, the bytes of an image file, or its path")
    return load_image(file, channels=1 if _is_grey(file) else 3, max_pixels=MAX_PIXELS)


def _is_grey(file: Any) -> bool:
    """Whether the file's header says so; files that cannot be opened are left to `load_image`."""
    from PIL import Image

    try:
        with Image.open(file, formats=FORMATS) as image:
            return image.mode in GREY
    except Exception:
        return False
    finally:
        if isinstance(file, _Bytes):
            file.seek(0)
