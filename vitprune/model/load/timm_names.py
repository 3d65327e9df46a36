"""timm's model names, read from its source text: importing timm imports torch, and takes seconds."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

MODEL = re.compile(r"^@register_model\s+def (\w+)\(", re.MULTILINE)
DEPRECATED = re.compile(r"register_model_deprecations\(__name__, \{(.*?)\}\)", re.DOTALL)
OLD_NAME = re.compile(r"""['"](\w+)['"]\s*:""")
OURS = {  # the modules whose families `vitprune models` lists
    "beit", "deit", "eva", "hiera", "naflexvit", "swin_transformer", "swin_transformer_v2", "vision_transformer",
    "vision_transformer_relpos",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Names:
    """Every name that timm has, and those of the modules that are ours."""

    every: frozenset[str]
    ours: frozenset[str]


@cache
def names() -> Names:
    """What timm's source says; nothing where it is not to be found."""
    spec = find_spec("timm")
    every: set[str] = set()
    ours: set[str] = set()
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for file in sorted((Path(folder) / "models").glob("*.py")):
            text = file.read_text(encoding="utf-8")
            found = set(MODEL.findall(text))
            every |= found | {name for block in DEPRECATED.findall(text) for name in OLD_NAME.findall(block)}
            ours |= found if file.stem in OURS else set()
    return Names(frozenset(every), frozenset(ours))


def close(name: str, among: Collection[str], n: int = 3) -> list[str]:
    """The names that a misspelt one may have been meant to be, the likeliest first."""
    wanted = name[:120].lower().replace("-", "_")
    parts = [part for part in wanted.split("_") if part]
    starts = sorted((o for o in among if o.startswith(wanted)), key=lambda o: (len(o), o)) if wanted else []
    holds = sorted((o for o in among if parts and all(p in o for p in parts)), key=lambda o: (len(o), o))
    alike = difflib.get_close_matches(wanted, sorted(among), n=n, cutoff=0.7)
    return list(dict.fromkeys([*starts, *alike, *holds]))[:n]


def refusal(name: str) -> str | None:
    """Why timm has no such name, with what was meant; None where it has it, or its names are not to be found."""
    own, found = name.partition(".")[0], names()
    if not found.every or own in found.every:
        return None
    return unknown(close(own, found.ours))


def unknown(near: list[str]) -> str:
    """What is said of a name that nobody knows, with those it may mean, the likeliest first."""
    also = f" Also close: {', '.join(near[1:])}" if near[1:] else ""
    return "not a timm model, `bundled` or `local-dir:FOLDER`; " + (
        f"did you mean `{near[0]}`?{also}" if near else "see `vitprune models`"
    )
