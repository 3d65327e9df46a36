"""What a config.json says of a model's slim attention, checked for type and size, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitprune.core.errors import UserError

MOST_SITES = 4096
MOST = 1 << 16
Attention = dict[str, tuple[int, ...]]  # (heads, dimensions of a head) by path, (0, 0) where a block has none left;
# (heads, dimensions of queries and keys, dimensions of values) where these are others


def attention(given: Any, config: Path) -> Attention:
    """(heads, dimensions) by the attention's path; nothing where all of it is whole. Raises UserError naming the file."""
    if given is None:
        return {}
    if not isinstance(given, dict) or len(given) > MOST_SITES or not all(map(_is_state, given.values())):
        raise UserError(
            f"{config}: vitprune.attention must be [heads, dimensions of a head] by path, two positive integers each, "
            "[heads, dimensions of queries, other dimensions of values], or [0, 0] for a block without"
        )
    return {path: tuple(state) for path, state in given.items()}


def rows(state: tuple[int, ...]) -> int:
    """Rows of queries, keys and values together."""
    heads, queries, values = state if len(state) == 3 else (*state, state[1])
    return heads * (2 * queries + values)


def _is_state(value: Any) -> bool:
    if not isinstance(value, list) or not all(type(n) is int and 0 <= n <= MOST for n in value):
        return False
    if len(value) == 3:  # what is the same is said once
        return 0 not in value and value[1] != value[2]
    return len(value) == 2 and (value[0] == 0) == (value[1] == 0)
