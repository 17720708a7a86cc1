"""What a run with an adapter or a quantized base hands back: a whole merged model, the adapter alone, or both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtune.model_session import ModelSession
from jaxtune.models.adapters import PARTS, forms_of, sizes
from jaxtune.models.merge import Merged, merge
from jaxtune.models.peft_write import write


def merged(session: ModelSession, values: Mapping[str, Any], phase: int) -> Merged:
    """The session's model without adapters and in float.

    Raises:
        ModelError: a merged layer does not compute what it computed before.
    """
    forms = forms_of(session.abstract)
    return merge(session.subject.base, session.table, session.loading, forms, values, session.touched(phase))


def write_adapter(session: ModelSession, folder: Path, values: Mapping[str, Any], phase: int, files: Mapping[str, str]) -> Path:
    """The adapter in PEFT's format, with what was trained beside it.

    Raises:
        ConfigError: the format cannot hold it, or the folder exists and is not empty.
    """
    subject, module = session.subject, session.abstract
    adapter = subject.experiment.model.adapter
    assert adapter is not None
    saved = frozenset(name for name in session.touched(phase) if name.rpartition(".")[2] not in PARTS)
    language = "CAUSAL_LM" if subject.outputs == "language" else "SEQ_CLS"
    return write(
        folder, subject.base, session.table, sizes(module), forms_of(module), values,
        saved=saved, dropout=adapter.dropout_rate, task_type=language if subject.base.family.domain == "text" else None, files=files,
    )  # fmt: skip
