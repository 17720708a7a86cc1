"""Parameter paths ("layers.3.attn.q.kernel") and the patterns that pick them ("layers.{4-5}.*").

One small language serves freezing, rates, decay, adapters and sharding, so a user learns it once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from jaxtune.core.component import nearest
from jaxtune.core.errors import ConfigError

_TOKEN = re.compile(r"\*|\{(\d+)-(\d+)\}|\{([^{}]*)\}|[^*{}]+|[{}]")


@lru_cache(maxsize=4096)
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """`*` any characters (dots too), `{4-7}` a range of whole numbers, `{a,b}` alternatives; everything else is literal.

    Raises:
        ConfigError: an unbalanced brace or an empty range.
    """
    parts = []
    for match in _TOKEN.finditer(pattern):
        token, low, high, names = match.group(0), match.group(1), match.group(2), match.group(3)
        if token == "*":
            parts.append(".*")
        elif low is not None:
            if int(low) > int(high):
                raise ConfigError(f'pattern "{pattern}": the range {token} is empty; write the smaller number first')
            parts.append("(?:" + "|".join(str(n) for n in range(int(low), int(high) + 1)) + ")")
        elif names is not None:
            parts.append("(?:" + "|".join(re.escape(n.strip()) for n in names.split(",")) + ")")
        elif token in "{}":
            raise ConfigError(f'pattern "{pattern}": unbalanced "{token}"; write {{4-7}} for a range or {{a,b}} for alternatives')
        else:
            parts.append(re.escape(token))
    return re.compile("".join(parts) + r"\Z")


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether `path` is picked: the last pattern that matches decides, and one that starts with `!` takes away."""
    picked = False
    for pattern in patterns:
        if compile_pattern(pattern.removeprefix("!")).match(path):
            picked = not pattern.startswith("!")
    return picked


def select(paths: Sequence[str], patterns: Sequence[str], what: str = "pattern") -> tuple[str, ...]:
    """The picked paths, in their order.

    Raises:
        ConfigError: a pattern that matches no path at all (all such patterns are named at once).
    """
    idle = [p for p in patterns if not any(compile_pattern(p.removeprefix("!")).match(path) for path in paths)]
    if idle:
        tops = sorted({path.split(".")[0] + ".*" for path in paths})
        raise ConfigError([f'{what} "{p}" matches no parameter{nearest(p, tops)} (parameters start with: {", ".join(tops)})' for p in idle])
    return tuple(path for path in paths if matches(path, patterns))
