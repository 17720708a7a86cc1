"""Lines of an experiment that is written for people: a setting, and beside it why it is as it is."""

from __future__ import annotations

import json
import re
from typing import Any

from jaxtune.cli.look import Look
from jaxtune.config.write import scalar


def line(text: str, comment: str = "") -> str:
    return f"{text:<36} # {comment}" if comment else text


def flow(value: Any) -> str:
    """A value inside { } or [ ]."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{flow(key)}: {flow(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(flow(part) for part in value) + "]"
    text = scalar(value)
    plain = not isinstance(value, str) or (text == value and re.fullmatch(r"[\w./-]+", text))
    return text if plain else json.dumps(value, ensure_ascii=False)


def source_line(seen: Look) -> str:
    return f"  source: {{{', '.join(f'{key}: {flow(value)}' for key, value in seen.source.items())}}}"


def split_lines(seen: Look) -> list[str]:
    if isinstance(seen.source["path"], dict):
        taken = "" if "validation" in seen.source["path"] else ", validation: 0.1"
        return [line(f"  split: {{kind: given{taken}}}", "the folders name the splits")]
    if seen.split_column and seen.split:
        names = ", ".join(f"{flow(word)}: {meaning}" for word, meaning in seen.split.items() if word != meaning)
        return [f"  split: {{kind: column, by: {flow(seen.split_column)}{f', names: {{{names}}}' if names else ''}}}"]
    shares = "validation: 0.1, test: 0.1" if seen.rows >= 1000 else "validation: 0.15, test: 0.15"
    if seen.group:
        by = f"  split: {{kind: grouped, by: {flow(seen.group)}, {shares}}}"
        return [line(by, f"else the model could recognise the {seen.group}")]
    kind = f"stratified, by: {flow(seen.label)}" if seen.problem == "single_label" else "random"
    return [line(f"  split: {{kind: {kind}, {shares}}}", "copies of one content stay in one split")]
