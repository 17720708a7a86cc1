"""jaxtune: fine-tune pretrained models on JAX, from the data to a Hugging Face folder.

The names below are the public API; each is loaded when it is first used, so `import jaxtune` costs nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtune.api import evaluate, export_model, load_model, predict
    from jaxtune.core.errors import JaxtuneError
    from jaxtune.core.weighted import Weighted
    from jaxtune.experiment import Experiment, load_experiment
    from jaxtune.generating import generate, stream
    from jaxtune.models.family import Family
    from jaxtune.run import run
    from jaxtune.search.run import search
    from jaxtune.tasks.base import Task
    from jaxtune.training.train import train

_HOMES = {
    "Experiment": "jaxtune.experiment",
    "load_experiment": "jaxtune.experiment",
    "run": "jaxtune.run",
    "search": "jaxtune.search.run",
    "train": "jaxtune.training.train",
    "load_model": "jaxtune.api",
    "export_model": "jaxtune.api",
    "evaluate": "jaxtune.api",
    "predict": "jaxtune.api",
    "generate": "jaxtune.generating",
    "stream": "jaxtune.generating",
    "Task": "jaxtune.tasks.base",
    "Family": "jaxtune.models.family",
    "Weighted": "jaxtune.core.weighted",
    "JaxtuneError": "jaxtune.core.errors",
}

__all__ = [
    "Experiment", "Family", "JaxtuneError", "Task", "Weighted", "evaluate", "export_model", "generate", "load_experiment", "load_model", "predict", "run", "search",
    "stream", "train",
]  # fmt: skip
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxtune' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


class _Package(ModuleType):
    """`jaxtune.run` is the function. Importing the module of that name would put the module in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
