"""The model card of an exported folder: what was trained from what, on what, with which result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtune.models.load import Base


def model_card(base: Base, *, name: str, labels: Sequence[str], test: Mapping[str, Any], configuration: str) -> str:
    """Markdown with the front matter that model hubs read."""
    front = ["---", "library_name: transformers"]
    if base.licence:
        front.append(f"license: {base.licence}")
    if base.checkpoint is not None:
        front.append(f"base_model: {base.checkpoint.config.get('_name_or_path') or base.reference}")
    front += ["tags: [jaxtune]", "---", ""]
    numbers = [f"| {key} | {value:.4f} |" for key, value in test.items() if isinstance(value, float)]
    return "\n".join(
        [
            *front,
            f"# {name}",
            "",
            f"Fine-tuned with jaxtune from {base.reference}; data and settings stand in the experiment below.",
            *([f"Classes: {', '.join(labels)}."] if labels else []),
            "",
            "| test | value |",
            "|---|---|",
            *numbers,
            "",
            "Intended use and limits: to be written by whoever publishes this model.",
            "",
            "## Experiment",
            "",
            "```yaml",
            configuration.rstrip(),
            "```",
            "",
        ]
    )
