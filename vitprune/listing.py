"""What `vitprune models` says: per family the tested names, which criteria apply, and which repairs."""

from __future__ import annotations

from typing import Any

from vitprune.criteria import CRITERIA, why_not
from vitprune.families import FAMILIES
from vitprune.recovery import RECOVERIES, closed_form

BY_BLOCK = ("sequential", "layerwise")


def families() -> list[dict[str, Any]]:
    """One row per family. `all_tokens_only`: criteria that apply with `tokens: all` or `patches`, not with `cls`."""
    rows = []
    for name, family in FAMILIES.items():
        facts = {"class_token": family.tokens == "class", "halves": family.halves}
        every = [c for c in [*CRITERIA, "random"] if why_not(c, "all", **facts) is None]
        rows.append(
            {
                "family": name,
                "title": family.title,
                "names": list(family.names),
                "tokens": family.tokens,
                "criteria": [c for c in every if why_not(c, "cls", **facts) is None],
                "all_tokens_only": [c for c in every if why_not(c, "cls", **facts) is not None],
                "repairs": [r for r in RECOVERIES if family.halves or closed_form(r) not in BY_BLOCK],
            }
        )
    return rows


def line(row: dict[str, Any]) -> str:
    """A family in one line of a terminal."""
    missing = [c for c in CRITERIA if c not in row["criteria"] + row["all_tokens_only"]]
    but = [f"not {', '.join(missing)}"] if missing else []
    but += [f"with tokens: all {', '.join(row['all_tokens_only'])}"] if row["all_tokens_only"] else []
    return f"{row['family']:<16}{', '.join(row['names'])}\n{'':<16}{row['title']}; " + (
        "; ".join(but) or "every criterion"
    )
