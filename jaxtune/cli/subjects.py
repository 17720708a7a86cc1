"""What `jaxtune describe` explains besides settings: a model family by its weight table, a run by the files in its folder.

A run is told from what it wrote, without its components or its base, so it can be described where only the folder is left.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jaxtune.config.describe import Description

MOST_NUMBERS = 8


def family(thing: str) -> Description | None:
    """A model family by its model_type, or all of them ("families")."""
    from jaxtune.models import FAMILIES

    name = thing.removeprefix("families/")
    if thing != "families" and name not in FAMILIES:
        return None
    from jaxtune.models.family import family_class
    from jaxtune.models.hub import ClassDefaults

    if thing == "families":
        about = "Model families by the model_type of config.json; `jaxtune describe bert` shows a family's parameters."
        return Description("families", about, kinds={each: first_line(family_class(each)) for each in FAMILIES})
    found = family_class(name)({}, ClassDefaults(name))
    text = (
        f"{first_line(type(found))}\n\n"
        f"Reads {found.domain}s; transformers' {found.architecture}. Takes these keys of config.json: {', '.join(sorted(found.handled))}.\n\n"
        "Parameters as the patterns of `train` see them (a number in place of {i} or {s}: the layer, the stage), and the tensors of a checkpoint they come from:"
    )
    return Description(f"families/{name}", text, kinds={path: row.hf for row in found.rows() for path in row.paths})


def first_line(cls: type) -> str:
    return (cls.__doc__ or "").strip().split("\n")[0]


def run_folder(thing: str) -> Description | None:
    """A run by the path of its folder."""
    from jaxtune.run_folder import RunFolder

    folder = RunFolder(Path(thing))
    if not folder.resolved.is_file():
        return None
    from jaxtune.config.document import load_document
    from jaxtune.evaluation.advice_file import read_advice

    experiment, state = load_document(folder.resolved).data, folder.state()
    result: dict[str, Any] = json.loads(folder.result.read_text(encoding="utf-8")) if folder.result.is_file() else {}
    facts = {"status": str(state.get("status", "not begun"))}
    if state.get("reason"):
        facts["because"] = str(state["reason"])
    facts["base"] = base_words(experiment["model"]["base"])
    facts["task"] = f"{experiment['task']['kind']}, best by {experiment['task']['best']}"
    for number, phase in enumerate(experiment["phases"], 1):
        length = f"{phase['steps']} steps" if phase.get("steps") else f"{phase['epochs']:g} epochs"
        facts[f"phase {number}"] = f"{length} of {', '.join(phase['train'])} with {phase['optimizer']['kind']}"
    if "last_durable_step" in state:
        facts["last saved"] = f"step {state['last_durable_step']}"
    if result:
        facts["steps"] = f"{result['steps']}, the best is {result['best_step']}, {result['seconds']:.0f} s"
    for split in ("validation", "test"):
        numbers = [f"{name} {value:.4f}" for name, value in result.get(split, {}).items() if isinstance(value, float)]
        if numbers:
            facts[split] = ", ".join(numbers[:MOST_NUMBERS])
    for number, one in enumerate(read_advice(folder.path), 1):
        facts[f"advice {number}"] = one.line
    facts["holds"] = ", ".join(sorted(path.name for path in folder.path.iterdir()))
    return Description(thing, f'A run of the experiment "{experiment["name"]}".', kinds=facts)


def base_words(base: Any) -> str:
    return base if isinstance(base, str) else f"new {base['family']}"
