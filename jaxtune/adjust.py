"""Changes to a run while it trains: asked for by a small file in the run folder, taken up at an evaluation or save, replayed on resume.

A request is numbered and never changed. The run writes beside it at which step it took it up, on the disk before anything follows from
it; so a run that is killed afterwards and resumed from an earlier checkpoint takes it up at that very step again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxtune.config.document import Document, split_key
from jaxtune.config.read import apply_overrides, build
from jaxtune.config.write import to_yaml
from jaxtune.config.yaml12 import parse
from jaxtune.core.component import Component, nearest
from jaxtune.core.errors import ConfigError, DiskError
from jaxtune.core.files import plain, write_whole
from jaxtune.core.nested import differences
from jaxtune.experiment import Experiment

# What may change, as patterns of dotted keys; "#" is a number. All else needs a new run: `jaxtune branch`.
CHANGEABLE = (
    r"phases\.#\.(train|epochs|steps|skip_limit|stopping)(\..*)?",
    r"phases\.#\.optimizer\.(?!kind$).*",
    r"data\.(batch_size|batch_tokens)",
    r"model\.dropout(\..*)?",
    r"evaluation\.every_steps",
    r"checkpoint\.every_steps",
)
RATE_SCALE, STOP = "rate_scale", "stop"
End = Literal["", "phase", "run"]


@dataclass(frozen=True)
class Change:
    """One request, read: dotted overrides, and the two words that are no settings.

    Attributes:
        rate_scale: factor of the learning rate from here on.
        stop: what ends here: "phase", "run", or nothing.
    """

    overrides: tuple[str, ...]
    rate_scale: float = 1.0
    stop: End = ""

    @classmethod
    def read(cls, words: Sequence[str]) -> Change:
        """Raises:
        ConfigError: there is none, a word is no `key=value`, or `rate_scale` or `stop` have an impossible value.
        """
        problems, overrides, scale = [], [], 1.0
        stop: End = ""
        if not words:
            problems.append("nothing to change; write key=value, such as rate_scale=0.5")
        for word in words:
            key, _, value = word.partition("=")
            if key == RATE_SCALE:
                try:
                    scale = float(value)
                except ValueError:
                    scale = 0.0
                if not 0 < scale < float("inf"):
                    problems.append(f"{word}: expected a factor above 0, such as rate_scale=0.5")
            elif key == STOP:
                if value == "phase" or value == "run":
                    stop = value
                else:
                    problems.append(
                        f"{word}: expected stop=phase (the next phase begins) or stop=run (the run ends with its best checkpoint)"
                    )
            else:
                overrides.append(word)
        if problems:
            raise ConfigError(problems)
        return cls(tuple(overrides), scale, stop)


def overridden[C: Component](settings: C, overrides: Sequence[str]) -> C:
    """An experiment, or one of its parts, with `key=value` overrides.

    Raises:
        ConfigError: every problem of the overrides.
    """
    data, _ = parse(to_yaml(settings), "resolved.yaml")
    return build(apply_overrides(Document(data, {}, "resolved.yaml"), overrides, type(settings)), type(settings))


def adjusted(experiment: Experiment, words: Sequence[str], phase: int) -> Experiment:
    """The experiment after one adjustment in phase `phase` (from 0).

    Raises:
        ConfigError: it is no setting, has an impossible value, changes nothing, or cannot change while the run goes on; all at once.
    """
    change = Change.read(words)
    if not change.overrides:
        return experiment
    after = overridden(experiment, change.overrides)
    found = differences(_plain(experiment), _plain(after))
    problems = [problem for key in found if (problem := refusal(key, phase, len(experiment.phases)))]
    if not found:
        problems.append(f"{', '.join(change.overrides)}: the run has these values already; nothing would change")
    if problems:
        raise ConfigError(problems)
    return after


def refusal(key: str, phase: int, phases: int) -> str | None:
    """Why a setting cannot change now; None when it can."""
    if not any(re.fullmatch(pattern.replace("#", r"\d+"), key) for pattern in CHANGEABLE):
        near = nearest(key, ("rate_scale", "stop", "data.batch_size", "evaluation.every_steps"))
        return f"{key}: cannot change while a run goes on{near}; start a new run from its best checkpoint: jaxtune branch RUN {key}=..."
    parts = split_key(key)
    if parts[0] == "phases" and int(parts[1]) < phase:
        return f"{key}: phase {parts[1]} is over; the run is in phase {phase} of 0 to {phases - 1}"
    return None


def in_force(progress: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The adjustments that a checkpoint's state has; those taken up at its very step are still to come."""
    waiting = progress["step"] if progress["ending"] == "adjust" else None
    return [adjustment for adjustment in progress.get("adjustments", []) if adjustment["step"] != waiting]


def _plain(experiment: Experiment) -> Any:
    return plain(experiment.model_dump(mode="json"))


class Requests:
    """The folder `adjust/` of a run: `0001.json` asks, `0001.taken.json` tells what the run did with it."""

    def __init__(self, run: Path):
        self.folder = run / "adjust"

    def ask(self, words: Sequence[str]) -> int:
        """Adds a request; its number.

        Raises:
            DiskError: it cannot be written.
        """
        try:
            self.folder.mkdir(exist_ok=True)
            for number in range(len(self.numbers()) + 1, 10_000):
                path = self.folder / f"{number:04}.json"
                beside = path.with_suffix(".tmp")
                write_whole(beside, json.dumps({"changes": list(words)}, ensure_ascii=False) + "\n")
                try:
                    path.hardlink_to(beside)  # whole, and never over another one
                except FileExistsError:
                    continue
                finally:
                    beside.unlink()
                return number
        except OSError as error:
            raise DiskError(f"{self.folder}: the change could not be written ({error.strerror})") from error
        raise DiskError(f"{self.folder}: there are too many changes")

    def numbers(self) -> list[int]:
        return sorted(int(path.stem) for path in self.folder.glob("[0-9][0-9][0-9][0-9].json"))

    def words(self, number: int) -> list[str]:
        return json.loads((self.folder / f"{number:04}.json").read_text(encoding="utf-8"))["changes"]

    def taken(self, number: int) -> dict[str, Any] | None:
        """What the run noted about a request; None as long as it has not seen it."""
        try:
            return json.loads((self.folder / f"{number:04}.taken.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def take(self, number: int, step: int, refused: Sequence[str] = ()) -> None:
        """Notes, on the disk before this returns, that the run acts on a request at `step`, or why it does not."""
        note = {"step": step, **({"refused": list(refused)} if refused else {})}
        write_whole(self.folder / f"{number:04}.taken.json", json.dumps(note, ensure_ascii=False) + "\n")

    def wanted(self) -> list[list[str]]:
        """The changes of all requests that were not refused, in order."""
        return [self.words(number) for number in self.numbers() if "refused" not in (self.taken(number) or {})]

    def due(self, step: int) -> list[int]:
        """Requests nobody has seen, and those that an earlier start of the run took up at this very step."""
        found = []
        for number in self.numbers():
            note = self.taken(number)
            if note is None or (note["step"] == step and "refused" not in note):
                found.append(number)
        return found


def standing(experiment: Experiment, requests: Requests) -> Experiment:
    """The experiment with everything that was asked for so far; a request that no longer fits is left to the run, which will refuse it."""
    for words in requests.wanted():
        with suppress(ConfigError):
            experiment = overridden(experiment, Change.read(words).overrides)
    return experiment
