"""What a config.json says of a model's slim attention, checked for type and size, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitprune.core.errors import UserError

MOST_SITES = 4096
MOST = 1 << 16
Attention = dict[str, tuple[int, int]]  # (heads, dimensions of a head) by path; (0, 0) where a block has none left


def attention(given: Any, config: Path) -> Attention:
    """(heads, dimensions) by the attention's path; nothing where all of it is whole. Raises UserError naming the file."""
    if given is None:
        return {}
    if not isinstance(given, dict) or len(given) > MOST_SITES or not all(map(_is_state, given.values())):
        raise UserError(
            f"{config}: vitprune.attention must be [heads, dimensions of a head] by path, two positive integers each, "
            "or [0, 0] for a block without"
        )
    return {path: (heads, dim) for path, (heads, dim) in given.items()}


def _is_state(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 2 or not all(type(n) is int and 0 <= n <= MOST for n in value):
        return False
    return (value[0] == 0) == (value[1] == 0)
