"""The examples that a model gets most wrong, as a person wants to look at them: what was expected, what was said, and the thing itself."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np

from jaxtune.core.errors import JaxtuneError
from jaxtune.core.printable import printable
from jaxtune.data.sources.base import Records
from jaxtune.data.transforms.pixels import read_pixels
from jaxtune.evaluation import wording
from jaxtune.evaluation.analysis import hardest
from jaxtune.evaluation.outcomes import Outcomes

TEXT_CHARACTERS = 320
THUMBNAIL_PIXELS = 112


@dataclass(frozen=True)
class Shown:
    """A record as a page shows it; texts come from the data and are not to be trusted."""

    row: int
    source_row: int  # of the source, before transforms left rows out
    texts: tuple[str, ...]
    image: str  # a data: address of a PNG, or ""
    place: str  # file name, where the record has one
    trouble: str  # why the record cannot be shown


@dataclass(frozen=True)
class HardExample(Shown):
    """One entry of the list."""

    true: str
    predicted: str
    said: str  # probabilities, or the error of a number
    loss: str


def hard_examples(outcomes: Outcomes, limit: int, task: Mapping[str, Any], records: Records | None) -> list[HardExample]:
    """The worst first. Without `records`, without texts and images.

    Args:
        task: the experiment's task section, which names the columns.
    """
    found = []
    for position in hardest(outcomes, limit).tolist():
        true, predicted, said = answer(outcomes, position)
        loss = wording.value(float(outcomes.loss[position]))
        found.append(
            HardExample(**vars(show(records, int(outcomes.rows[position]), task)), true=true, predicted=predicted, said=said, loss=loss)
        )
    return found


def answer(outcomes: Outcomes, position: int) -> tuple[str, str, str]:
    """(true, predicted, what stands beside them)."""
    truth, predicted, names = outcomes.truth[position], outcomes.predicted[position], outcomes.shown
    if outcomes.problem == "regression":
        return wording.value(float(truth)), wording.value(float(predicted)), f"{float(predicted - truth):+.4g}"
    probabilities = outcomes.probabilities[position]
    if outcomes.problem == "single_label":
        shown = [f"{names[predicted]}:{wording.NO_BREAK}{probabilities[predicted]:.2f}"]
        if truth != predicted:
            shown.append(f"{names[truth]}:{wording.NO_BREAK}{_small(float(probabilities[truth]))}")
        return names[truth], names[predicted], ", ".join(shown)
    wrong = np.flatnonzero(truth != predicted)
    worst = wrong if len(wrong) else np.argsort(-np.abs(truth - probabilities))[:1]
    told = [f"{names[i]}:{wording.NO_BREAK}{_small(float(probabilities[i]))}" for i in worst[:6].tolist()]
    return _listed(truth, names), _listed(predicted, names), ", ".join(told)


def _small(probability: float) -> str:
    return f"{probability:.2f}" if probability >= 0.005 else f"{probability:.1g}"


def _listed(mask: np.ndarray, names: Sequence[str]) -> str:
    return ", ".join(names[i] for i in np.flatnonzero(mask).tolist()) or "none"


def show(records: Records | None, row: int, task: Mapping[str, Any]) -> Shown:
    """A record's texts or image; a record that is gone since training is a remark, not the end of the page."""
    rows = getattr(records, "rows", None)
    if records is None:
        return Shown(row, row, (), "", "", "")
    source = row if rows is None else int(rows[row])
    try:
        record = records[row]
        texts = tuple(_beginning(record[column]) for key in ("text", "pair") if (column := task.get(key)))
        image = thumbnail(read_pixels(record[task["image"]])) if "image" in task else ""
    except (JaxtuneError, OSError, IndexError) as error:
        return Shown(row, source, (), "", "", printable(error, 200))
    place = record.get("path")
    return Shown(row, source, texts, image, printable(place, 120) if isinstance(place, str) else "", "")


def _beginning(text: object) -> str:
    """One line that ends between words."""
    shown = printable(text, TEXT_CHARACTERS)
    return shown.rsplit(" ", 1)[0] + " …" if shown.endswith("…") and " " in shown[-30:] else shown


def thumbnail(pixels: np.ndarray) -> str:
    """A PNG of at most THUMBNAIL_PIXELS a side, as a data: address; pixels u8 [Y,X] or [Y,X,C] with 1, 3 or 4 channels."""
    from PIL import Image

    pixels = np.asarray(pixels)
    if pixels.ndim == 3 and pixels.shape[2] not in (3, 4):
        pixels = pixels[:, :, 0]
    if pixels.dtype != np.uint8:
        finite = np.nan_to_num(pixels.astype(np.float32))
        spread = float(finite.max() - finite.min()) or 1.0
        pixels = ((finite - finite.min()) / spread * 255).astype(np.uint8)
    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    file = BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
