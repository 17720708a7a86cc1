"""Takes secrets out of text before it is written anywhere: log, environment.json, trackers, model card, crash report.

Three nets, because each alone lets something through: the values of secret-looking environment variables (exact), the
shapes of well-known tokens, and whatever stands behind a word such as `--token` or `password=`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

HIDDEN = "[hidden]"

_SECRET_NAME = re.compile(r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|PRIVATE_KEY)(?:_|$)", re.IGNORECASE)
_TOKEN_SHAPES = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"hf_[A-Za-z0-9]{8,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_[A-Za-z0-9_]{16,}|glpat-[A-Za-z0-9_-]{16,}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[0-9A-Za-z_-]{30,}|ya29\.[0-9A-Za-z_-]{16,}|xox[abprs]-[0-9A-Za-z-]{10,}|npm_[A-Za-z0-9]{30,}"
    r"|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,})"
)
_URL_USER = re.compile(r"(?<=://)[^/\s@:]*:[^/\s@]+(?=@)")
_WORD = r"(?:(?:[a-z]+[_-])?(?:api[_-]?key|access[_-]?key|secret[_-]?key|auth[_-]?token|access[_-]?token|token|password|passwd|secret))"
_NAMED = re.compile(rf"(?i)(?<![a-z_-])({_WORD}[\"']?\s*[=:]\s*[\"']?|bearer\s+)([^\s\"',;&]{{6,}})")
_FLAG = re.compile(rf"(?i)^--?{_WORD}$")


def redact(text: str) -> str:
    """`text` with every secret replaced by `[hidden]`."""
    for name, value in os.environ.items():
        if len(value) >= 8 and value in text and _SECRET_NAME.search(name):
            text = text.replace(value, HIDDEN)
    text = _TOKEN_SHAPES.sub(HIDDEN, text)
    text = _URL_USER.sub(HIDDEN, text)
    return _NAMED.sub(lambda match: match.group(1) + HIDDEN, text)


def redact_command(words: Sequence[str]) -> list[str]:
    """A command line, word by word; the word after a flag such as `--token` is hidden whatever it looks like."""
    return [HIDDEN if i and _FLAG.match(words[i - 1]) else redact(word) for i, word in enumerate(words)]
