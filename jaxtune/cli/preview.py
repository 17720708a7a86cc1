"""`jaxtune preview X.yaml`: examples as the model sees them, after transforms, tokenizing, cutting and augmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxtune.cli.output import Output
from jaxtune.core.component import nearest
from jaxtune.core.errors import ConfigError
from jaxtune.core.printable import printable
from jaxtune.data.augment import host_part
from jaxtune.experiment import load_experiment
from jaxtune.prepare import Prepared, prepare

SHADES = " .:-=+*#%@"


def run(output: Output, experiment: Path, overrides: list[str], count: int, split: str) -> dict[str, Any]:
    prepared = prepare(load_experiment(experiment, overrides))
    if split not in prepared.splits:
        raise ConfigError(
            f'--split: "{split}" does not exist{nearest(split, list(prepared.splits))} (splits: {", ".join(prepared.splits)})'
        )
    examples = prepared.splits[split]
    augments = host_part(prepared.experiment.data.augment, prepared.processor) if split == "train" else ()
    chosen = np.random.default_rng(prepared.experiment.seed).choice(len(examples), min(count, len(examples)), replace=False)
    shown = []
    for index in sorted(int(i) for i in chosen):
        row = dict(examples.row(index))
        for augment in augments:
            row = augment(row, np.random.default_rng([prepared.experiment.seed, index]))
        shown.append(tell(output, prepared, row))
    return {"split": split, "examples": shown}


def tell(output: Output, prepared: Prepared, row: dict[str, Any]) -> dict[str, Any]:
    """One example for people, and as JSON."""
    target = wanted(prepared, row)
    output.say(f"row {row['example_id']}   {prepared.task.label}: {printable(target)}")
    found: dict[str, Any] = {"row": int(row["example_id"]), "label": target}
    if "tokens" in row:
        tokenizer = prepared.processor.tokenizer
        assert tokenizer is not None
        tokens = np.asarray(row["tokens"])
        full = prepared.full_length(int(row["example_id"]))
        text = tokenizer.decode(tokens)
        output.say(f"  {len(tokens)} tokens" + (f" of {full}, the rest is cut" if full > len(tokens) else ""))
        output.say(f"  {printable(text, 600)}")
        output.say(f"  {' | '.join(printable(piece, 30) for piece in tokenizer.pieces(tokens[:16]))} ...")
        found |= {"tokens": len(tokens), "full_length": full, "text": text}
    else:
        image = np.asarray(row["image"])
        found |= {"shape": list(image.shape), "mean": float(image.mean())}
        output.say(f"  image {' x '.join(map(str, image.shape))}, mean {image.mean():.1f} of 255")
        for line in drawing(image):
            output.say(f"  {line}")
    output.say()
    return found


def wanted(prepared: Prepared, row: dict[str, Any]) -> Any:
    """What the model is to say, in words."""
    if "label" in row:
        return prepared.names[int(row["label"])]
    target = np.asarray(row["target"])
    if prepared.task.problem == "regression":
        return float(target[0])
    return [name for name, on in zip(prepared.names, target, strict=True) if on > 0.5]


def drawing(image: np.ndarray, width: int = 32) -> list[str]:
    """An image [Y, X, C] as characters, dark to light."""
    grey = image.astype(np.float32).mean(axis=-1)
    columns = np.linspace(0, grey.shape[1] - 1, min(width, 2 * grey.shape[1])).round().astype(int)
    rows = np.linspace(0, grey.shape[0] - 1, max(1, len(columns) * grey.shape[0] // (2 * grey.shape[1]))).round().astype(int)
    return ["".join(SHADES[int(value) * (len(SHADES) - 1) // 255] for value in grey[row][columns]) for row in rows]
