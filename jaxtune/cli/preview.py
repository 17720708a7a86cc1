"""`jaxtune preview X.yaml`: examples as the model sees them, after transforms, tokenizing, cutting and augmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxtune.cli.output import Output, coloured
from jaxtune.core.component import nearest
from jaxtune.core.errors import ConfigError
from jaxtune.core.printable import printable
from jaxtune.data.augment import host_part
from jaxtune.data.transforms.pieces import pieces, stretches
from jaxtune.data.transforms.tokenize import Tokenizer
from jaxtune.experiment import load_experiment
from jaxtune.prepare import Prepared, prepare
from jaxtune.tasks.labelled import LabelledTask

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
    found: dict[str, Any] = {"row": int(row["example_id"])}
    said = f"row {row['example_id']}"
    if isinstance(prepared.task, LabelledTask):
        found["label"] = wanted(prepared, row)
        said += f"   {prepared.task.label}: {printable(found['label'])}"
    output.say(said)
    if "tokens" in row:
        tokenizer = prepared.processor.tokenizer
        assert tokenizer is not None
        tokens = np.asarray(row["tokens"])
        full = prepared.full_length(int(row["example_id"]))
        found |= {"tokens": len(tokens), "full_length": full, "text": tokenizer.decode(tokens)}
        output.say(f"  {len(tokens)} tokens" + (f" of {full}, the rest is cut" if full > len(tokens) else ""))
        if "token_weight" in row:
            found |= tell_targets(output, tokenizer, row)
        else:
            output.say(f"  {printable(found['text'], 600)}")
        output.say(f"  {' | '.join(printable(piece, 30) for piece in tokenizer.pieces(tokens[:16]))} ...")
    else:
        image = np.asarray(row["image"])
        found |= {"shape": list(image.shape), "mean": float(image.mean())}
        output.say(f"  image {' x '.join(map(str, image.shape))}, mean {image.mean():.1f} of 255")
        for line in drawing(image):
            output.say(f"  {line}")
    output.say()
    return found


def tell_targets(output: Output, tokenizer: Tokenizer, row: dict[str, Any]) -> dict[str, Any]:
    """What of a text is learned: in colour on a terminal, else between brackets."""
    found = stretches(tokenizer, pieces(tokenizer, row))
    trained = sum(one.tokens for one in found if one.trained)
    colour = coloured()
    learned = ("\033[1;32m", "\033[0m") if colour else ("⟦", "⟧")
    other = ("\033[2m", "\033[0m") if colour else ("", "")
    output.say(f"  learned: {trained} tokens, {f'{learned[0]}like this{learned[1]}' if colour else 'between ⟦ and ⟧'}")
    said = [(learned if one.trained else other, shortened(one.text)) for one in found]
    output.say("  " + "".join(f"{begin}{text}{end}" for (begin, end), text in said))
    return {"trained_tokens": trained, "stretches": [{"text": one.text, "trained": one.trained, "tokens": one.tokens} for one in found]}


def shortened(text: str, limit: int = 400) -> str:
    """On one line, its beginning and its end: where an answer begins is what one wants to see."""
    text = printable(text.replace("\n", " ⏎ "), len(text) + 4 * text.count("\n") + 1)
    return text if len(text) <= limit else f"{text[: limit // 2]} … {text[-limit // 2 :]}"


def wanted(prepared: Prepared, row: dict[str, Any]) -> Any:
    """What the model is to say, in words."""
    if "label" in row:
        return prepared.names[int(row["label"])]
    target = np.asarray(row["target"])
    if prepared.problem == "regression":
        return float(target[0])
    return [name for name, on in zip(prepared.names, target, strict=True) if on > 0.5]


def drawing(image: np.ndarray, width: int = 32) -> list[str]:
    """An image [Y, X, C] as characters, dark to light."""
    grey = image.astype(np.float32).mean(axis=-1)
    columns = np.linspace(0, grey.shape[1] - 1, min(width, 2 * grey.shape[1])).round().astype(int)
    rows = np.linspace(0, grey.shape[0] - 1, max(1, len(columns) * grey.shape[0] // (2 * grey.shape[1]))).round().astype(int)
    return ["".join(SHADES[int(value) * (len(SHADES) - 1) // 255] for value in grey[row][columns]) for row in rows]
