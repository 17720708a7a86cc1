"""What a model family is: how its config.json is read, its module, its weight table and its heads.

A family is one file. Everything else (loading, export, sharding, freezing, checks) works from what stands here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import numpy as np
from flax import nnx
from pydantic_core import PydanticCustomError

from jaxtune.core.component import load_class, nearest
from jaxtune.core.errors import ModelError
from jaxtune.layers.stack import StackOptions
from jaxtune.models import FAMILIES
from jaxtune.models.weights import Weight

Domain = Literal["text", "image"]
Outputs = int | Literal["language"]  # what head a task needs: so many logits per example, or the vocabulary at every token


def words(text: str) -> frozenset[str]:
    """The words of a text: how families write their many config keys."""
    return frozenset(text.split())


# Keys of any config.json that do not change an encoder's forward pass.
NEUTRAL_KEYS = words(
    """architectures dtype torch_dtype transformers_version _name_or_path name_or_path return_dict output_hidden_states output_attentions
    use_cache tie_word_embeddings bos_token_id eos_token_id sep_token_id id2label label2id problem_type initializer_range finetuning_task
    _num_labels num_labels gradient_checkpointing output_past model_type jaxtune _attn_implementation_autoset task_specific_params auto_map
    transformers.js_config"""
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Features:
    """What a backbone hands to a head: `pooled` [B, D] and, for token models, `tokens` [B, T, D].

    `imbalance` is the auxiliary loss of a mixture of experts, a scalar.
    """

    pooled: jax.Array
    tokens: jax.Array | None = None
    imbalance: jax.Array | None = None


@dataclass(frozen=True)
class DropoutRates:
    """Rates by place; what the checkpoint was trained with unless the experiment says otherwise."""

    hidden: float = 0.0
    attention: float = 0.0
    head: float = 0.0


class Family(ABC):
    """A family bound to one config.json.

    Attributes:
        raw: config.json as read, plus the defaults of transformers' config class for keys it leaves out.
    """

    model_type: ClassVar[str]
    domain: ClassVar[Domain]
    prefix: ClassVar[str]  # what a task model puts before the backbone's tensor names, "bert."
    handled: ClassVar[frozenset[str]]  # config.json keys that this family reads
    assumed: ClassVar[
        Mapping[str, Any]
    ] = {}  # values of handled keys that config.json leaves out; others are asked of transformers, which is slow
    stacked: ClassVar[bool] = True  # equal blocks run as a stack; without one, scan_layers, remat and attention have nothing to act on
    ignored: ClassVar[frozenset[str]] = frozenset()  # keys known to change nothing that this family computes
    derived: ClassVar[frozenset[str]] = frozenset()  # keys read where they are given; where not, they follow from others
    fixed: ClassVar[Mapping[str, Any]] = {}  # keys understood at one value only
    renewable: ClassVar[tuple[str, ...]] = ("head.*",)  # parameters that a checkpoint may lack: they start fresh
    unused: ClassVar[tuple[str, ...]] = ()  # patterns of tensors that may be left over (old heads, buffers)
    generates: ClassVar[bool] = False  # whether it has a language head, and its module the methods empty_cache and decode

    def __init__(self, config: Mapping[str, Any], defaults: Mapping[str, Any]):
        """`defaults`: what transformers' class assumes; only looked into for keys that nothing here knows.

        Raises:
            ModelError: config.json holds a key the family does not know with a value other than the default (all such keys).
        """
        problems = []
        for key, value in config.items():
            if key in NEUTRAL_KEYS or key in self.handled or key in self.ignored or key in self.derived:
                continue
            if key in self.fixed:
                if value != self.fixed[key]:
                    problems.append(f"config.json: {key}={value!r} is not supported by {self.model_type}; expected {self.fixed[key]!r}")
            elif key not in defaults:
                problems.append(
                    f'config.json: {self.model_type} does not know the key "{key}" (={value!r}){nearest(key, sorted(self.handled))}'
                )
            elif value != defaults[key]:
                problems.append(
                    f"config.json: {key}={value!r} changes {self.model_type} in a way that is not implemented (default {defaults[key]!r})"
                )
        if problems:
            raise ModelError(problems)
        absent = sorted(self.handled - config.keys())
        self.raw: dict[str, Any] = {**{key: self.assumed[key] if key in self.assumed else defaults.get(key) for key in absent}, **config}

    # -- what a family states -------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def width(self) -> int:
        """Size of the pooled features."""

    @property
    @abstractmethod
    def dropout(self) -> DropoutRates:
        """The checkpoint's own rates."""

    @abstractmethod
    def backbone(self, *, options: StackOptions, dtype: Any, rngs: nnx.Rngs) -> nnx.Module:
        """The module: `module(batch, noise=None, training=False) -> Features`, with an attribute `head` set to None."""

    @abstractmethod
    def head(self, outputs: int, *, rngs: nnx.Rngs) -> nnx.Module:
        """The classification head as transformers' class for this architecture has it: `head(features, noise) -> [B, outputs]`."""

    def language_head(self, *, rngs: nnx.Rngs) -> nnx.Module:
        """The head over the vocabulary (`heads.LanguageHead`), for families that generate.

        Raises:
            ModelError: this family has none.
        """
        del rngs
        raise ModelError(f"{self.model_type} has no language-model head; choose a task of another kind, or a base that generates text")

    @property
    def language_architecture(self) -> str:
        """transformers' class for a model with the language head."""
        raise ModelError(f"{self.model_type} has no language-model head")

    @abstractmethod
    def rows(self) -> tuple[Weight, ...]:
        """The weight table: backbone rows without the prefix, head rows (paths that start with "head.") by full name."""

    @property
    @abstractmethod
    def architecture(self) -> str:
        """transformers' class for a model with a classification head."""

    def buffers(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Tensors that transformers expects beside the given exported ones and that no variable of ours holds."""
        del tensors
        return {}

    @property
    def layers(self) -> int:
        """Depth, for layer-wise rates."""
        return 0

    def layer_of(self, name: str) -> int:
        """Depth of a parameter: 0 for embeddings, 1.. for layers, `layers` + 1 for everything after them."""
        parts = name.split(".")
        if parts[0] == "layers":
            return int(parts[1]) + 1
        return 0 if parts[0].startswith(("embeddings", "patches", "stem")) else self.layers + 1

    # -- limits that `check` compares with the data ---------------------------------------------------------------------

    @property
    def max_tokens(self) -> int | None:
        """Longest sequence that positions allow; None where nothing bounds it or there are no tokens."""
        return None

    @property
    def vocabulary(self) -> int | None:
        return None

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """(height, width, channels) that the patch embedding is made for; height and width 0 where any size works."""
        return None


def family_class(model_type: str, *, own: bool = False) -> type[Family]:
    """The family that serves this `model_type`.

    Args:
        own: whether `"module:Class"` is meant to name a class outside the table: only where a person wrote it, because it imports the module,
            never where a checkpoint says so.

    Raises:
        ModelError: none does.
    """
    where = FAMILIES.get(model_type, model_type if own and ":" in model_type else None)
    if where is None:
        raise ModelError(f'model_type "{model_type}" has no family{nearest(model_type, FAMILIES)} (known: {", ".join(sorted(FAMILIES))})')
    try:
        found = load_class(where)
    except PydanticCustomError as error:
        raise ModelError(f"model.base.family: {error.message().removeprefix('kind ')}") from error
    if not (isinstance(found, type) and issubclass(found, Family)):
        raise ModelError(f"model.base.family: {where} is no model family; expected a subclass of jaxtune.Family")
    return found
