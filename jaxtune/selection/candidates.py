"""Who is compared: base models by reference, the same architectures with random weights, and the filters that let them through.

Filters look at what costs least first: the catalogue before a download, config.json and headers before the data.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from jaxtune.core.errors import ConfigError
from jaxtune.experiment import Experiment
from jaxtune.layers.stack import StackOptions
from jaxtune.models.blueprint import Blueprint
from jaxtune.models.load import Base, maker
from jaxtune.models.settings import NewModel
from jaxtune.selection.catalogue import KnownModel

RANDOM = "random:"
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}


@dataclass(frozen=True)
class Candidate:
    """
    Attributes:
        base: what `model.base` says: a hub id, a folder, package://name/folder, or {family, config}.
        fresh: the architecture and tokenizer of `base` with random weights: what the pre-training is worth on these data.
    """

    base: str | NewModel
    fresh: bool = False

    @classmethod
    def parse(cls, text: str) -> Candidate:
        """`random:ID` means ID with random weights.

        Raises:
            ConfigError: nothing stands behind `random:`.
        """
        reference = text.removeprefix(RANDOM)
        if not reference:
            raise ConfigError(
                f'--base: found "{text}"; expected a hub id, a folder or package://name/folder, such as {RANDOM}bert-base-uncased'
            )
        return cls(reference, text.startswith(RANDOM))

    @property
    def name(self) -> str:
        if isinstance(self.base, NewModel):
            settings = ", ".join(f"{key} {value}" for key, value in self.base.config.items())
            return f"new {self.base.family}" + (f" ({settings})" if settings else "")
        return (RANDOM if self.fresh else "") + self.base

    @property
    def is_random(self) -> bool:
        """Whether nothing of it is trained."""
        return self.fresh or isinstance(self.base, NewModel)

    def experiment(self, experiment: Experiment) -> Experiment:
        """The experiment with this base."""
        return experiment.model_copy(update={"model": experiment.model.model_copy(update={"base": self.base})})


@dataclass(frozen=True)
class Refused:
    """A candidate without a place in the ranking, and why: a filter that the user set, or something that does not work."""

    candidate: Candidate
    why: Literal["filtered", "failed"]
    reason: str


@dataclass(frozen=True)
class Filters:
    """
    Attributes:
        licences: allowed ones, any case; empty: any. A random candidate has no weights that a licence could concern.
        max_parameters: of the encoder without a head.
        min_tokens: length of the texts that it must read.
    """

    licences: tuple[str, ...] = ()
    max_parameters: int | None = None
    min_tokens: int | None = None

    def known(self, candidate: Candidate, known: KnownModel | None) -> str | None:
        """What the catalogue says against it, before anything is downloaded."""
        if known is None:
            return None
        asked = self if known.licence else replace(self, licences=())  # not known is not refused: the model card will say
        return asked._judge(candidate, known.licence, known.parameters, known.context, "in the catalogue")

    def opened(self, candidate: Candidate, base: Base) -> str | None:
        """What config.json and the model card say against it."""
        return self._judge(candidate, base.licence, encoder_parameters(base), base.family.max_tokens, "in its model card")

    def _judge(self, candidate: Candidate, licence: str | None, parameters: int, tokens: int | None, where: str) -> str | None:
        if self.licences and not candidate.is_random and (licence or "").lower() not in {name.lower() for name in self.licences}:
            return f"licence {licence or 'not named'} {where}; wanted: {', '.join(self.licences)}"
        if self.max_parameters is not None and parameters > self.max_parameters:
            return f"{parameters:,} parameters; wanted: at most {self.max_parameters:,}"
        if self.min_tokens is not None and tokens is not None and tokens < self.min_tokens:
            return f"reads {tokens} tokens; wanted: at least {self.min_tokens}"
        return None


def encoder_parameters(base: Base) -> int:
    """Parameters without a head; nothing is loaded."""
    blueprint = Blueprint.of(maker(base.family, None, seed=0, options=StackOptions(), dtype="float32"))
    return sum(math.prod(shape.shape) for shape in blueprint.params.values())


def parse_count(text: str) -> int:
    """ "22M" -> 22,000,000.

    Raises:
        ConfigError: no number.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmbg]?)", text.strip().replace(",", "").replace("_", "").lower())
    if found is None:
        raise ConfigError(f'--max-parameters: found "{text}"; expected a number such as 22000000, 100M or 1.5B')
    return round(float(found[1]) * _UNITS[found[2]])


def check_candidates(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """The candidates, each once.

    Raises:
        ConfigError: there is none.
    """
    if not candidates:
        raise ConfigError(
            "no candidates: name them with --base (a hub id, a folder, package://name/folder, or random: and one of these), "
            "or take well-known ones with --from-catalogue"
        )
    return tuple(dict.fromkeys(candidates))
