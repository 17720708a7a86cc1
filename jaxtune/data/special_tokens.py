"""The tokens of a checkpoint that mark beginnings and ends, by the files that say so: what a template writes, where an answer ends.

Chat checkpoints end a turn with another token than a document (Llama 3, Gemma); generation_config.json lists them all, so a check
of "does the model learn to stop" that looks at the tokenizer's end-of-sequence token alone would be wrong for them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtune.core.errors import ModelError

if TYPE_CHECKING:
    from jaxtune.data.transforms.tokenize import Tokenizer

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class SpecialTokens:
    """
    Attributes:
        texts: what a chat template knows them as: {"bos_token": "<s>", "eos_token": "</s>", ...}.
        begin: number of the beginning-of-sequence token; None where the checkpoint has none.
        end: number of the end-of-sequence token; None where the checkpoint has none.
        stops: numbers of all tokens at which generation ends, ascending.
    """

    texts: Mapping[str, str]
    begin: int | None
    end: int | None
    stops: tuple[int, ...]

    @classmethod
    def load(cls, tokenizer: Tokenizer) -> SpecialTokens:
        """From tokenizer_config.json, special_tokens_map.json, generation_config.json and config.json, as far as they are there.

        Raises:
            ModelError: a file is not JSON, or names a token that the tokenizer does not know.
        """
        folder, backend = tokenizer.folder, tokenizer.backend
        model, generation = (read_json(folder / name) for name in ("config.json", "generation_config.json"))
        texts = {}
        for file in ("special_tokens_map.json", "tokenizer_config.json"):  # the later one decides
            texts |= {name: token for name, value in read_json(folder / file).items() if name in NAMES and (token := _text(value))}
        for name in ("bos_token", "eos_token", "pad_token"):  # GPT-2's tokenizer files name none: its config.json does, by number
            number = model.get(f"{name}_id")
            if name not in texts and isinstance(number, int) and (token := backend.id_to_token(number)):
                texts[name] = token
        unknown = {name: texts[name] for name in ("bos_token", "eos_token") if name in texts and backend.token_to_id(texts[name]) is None}
        if unknown:
            raise ModelError(
                f"{folder}: {', '.join(f'{name} {text!r}' for name, text in unknown.items())} is no token of tokenizer.json; "
                "the tokenizer's files belong to different models: fetch them again"
            )
        begin, end = (backend.token_to_id(texts[name]) if name in texts else None for name in ("bos_token", "eos_token"))
        listed = generation.get("eos_token_id", model.get("eos_token_id"))
        stops = {number for number in (end, *(listed if isinstance(listed, list) else [listed])) if number is not None}
        return cls(texts, begin, end, tuple(sorted(stops)))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; {} when there is no such file.

    Raises:
        ModelError: it is not one JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not readable as JSON ({error}); fetch the file again") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path}: expected a JSON object, found a {type(found).__name__}; fetch the file again")
    return found


def _text(value: Any) -> str | None:
    """A token is written as text, or as an object with its text as content."""
    found = value.get("content") if isinstance(value, Mapping) else value
    return found if isinstance(found, str) else None
