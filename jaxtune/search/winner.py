"""The winner as an experiment file: the experiment it extends, and what is different, so that `jaxtune train` gives its number again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtune.config.write import settings_to_yaml, to_yaml
from jaxtune.core.files import write_whole
from jaxtune.experiment import load_experiment
from jaxtune.search.space import Space, overlay

FILE = "winner.yaml"


def write_winner(folder: Path, space: Space, name: str, settings: Mapping[str, Any], said: str) -> Path:
    """Writes winner.yaml; its path.

    Args:
        name: of the experiment in the file.
        said: how good it was and where that comes from; a comment in the file.
    """
    wanted = {**settings, "name": name}
    experiment = space.experiment(wanted)
    path = folder / FILE
    where = os.path.relpath(space.file.resolve(), folder.resolve())
    write_whole(path, settings_to_yaml({"extends": where, "name": name, **overlay(space, wanted)}, said))
    if load_experiment(path) != experiment:
        # a section that is replaced by one of the same kind cannot be said by extending; then everything is said
        write_whole(path, to_yaml(experiment, said))
    return path
