"""Attention, where `see.sites` asks for it: the dimensions of every head's values, as exemplars and alignment see units.

A dimension is a direction, not a unit: a rotation of a head's values may change it, and its sign is nobody's choice, so that
everything here is of its size, in the basis that the model was trained in. What it writes is its column of the projection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from vitprune.core.errors import UserError
from vitprune.core.reading import Json
from vitprune.model.sites.attention import AttentionSite
from vitprune.runs.seeing import passes
from vitprune.runs.seeing.looking import Heads, Looking
from vitprune.runs.seeing.parts import alignment, exemplars
from vitprune.runs.seeing.pictures import Pictures
from vitprune.see import alignment as aligned

DRAW = 3  # of the seed of the directions that the report shows
NULL_SEED = 10_000  # apart from those of the FFNs


def require(looking: Looking) -> None:
    """Raises UserError for a model whose attention is not known, and for a listed direction that it does not have."""
    sites = looking.directions
    for block, head, dimension in looking.see.units.directions:
        require_direction([site.heads for site in sites], [site.dim for site in sites], block, head, dimension)


def require_direction(heads: Sequence[int], dims: Sequence[int], block: int, head: int, dimension: int) -> None:
    """Raises UserError for a direction that attentions of so many heads and dimensions do not have."""
    name = f"see: direction {block}:h{head}.{dimension}"
    if block >= len(heads):
        raise UserError(f"{name}: the model has attentions 0–{len(heads) - 1}")
    if head >= heads[block]:
        raise UserError(f"{name}: attention {block} has heads 0–{heads[block] - 1}")
    if dimension >= dims[block]:
        raise UserError(f"{name}: the values of attention {block} have dimensions 0–{dims[block] - 1}")


def work(looking: Looking, parts: Sequence[str]) -> None:
    """Nothing; the columns of attention.csv, attention.safetensors and what see.json says of attention."""
    _begin(looking)
    sites = looking.directions
    told: Json = {"sites": [site.name for site in sites], "heads": [site.heads for site in sites]}
    told["dims"] = [site.dim for site in sites]
    arrays: dict[str, np.ndarray] = {}
    if "exemplars" in parts:
        lists, silent, _ = exemplars.tell(looking, passes.seen(looking, "attention"), "attention")
        arrays |= lists
        looking.left["silent directions"], looking.left["directions"] = silent, lists
        told["exemplars"] = exemplars.about(looking, silent) | {"pooled": "the largest size over an image's patches"}
    if "alignment" in parts:
        written = _written(looking)
        if isinstance(written, str):
            told["alignment"] = {"blocks": [], "why_not": written}
        else:
            found = alignment.against(written, looking.see.alignment, [True] * len(sites), NULL_SEED)
            arrays |= alignment.saved(found)
            _, blocks = alignment.tell(looking, found, "attention")
            told["alignment"] = {"heads": aligned.HEADS, "enough": aligned.ENOUGH, "blocks": blocks}
    looking.save("attention", arrays)
    looking.told["attention"] = told


def _written(looking: Looking) -> aligned.Written | str:
    """What the directions of every attention write, or why that cannot be said."""
    written = aligned.written(looking.model)
    if written.parts.changed:
        path, why = next(iter(written.parts.changed.items()))
        return f"{path}: {why}"
    values = [written.parts.mixed_columns(site.block).detach() for site in looking.directions]
    return dataclasses.replace(written, values=values)


def _begin(looking: Looking) -> None:
    """Where each direction is, and per class set what became of it: `yes` it is there, `no` its head went, `turned` its head
    is there with fewer dimensions, which are others."""
    sites = looking.directions
    looking.column("block", [[i] * site.heads * site.dim for i, site in enumerate(sites)], "attention")
    looking.column("head", [[h for h in range(s.heads) for _ in range(s.dim)] for s in sites], "attention")
    looking.column("dimension", [list(range(s.dim)) * s.heads for s in sites], "attention")
    for group, heads in looking.heads.items():
        kept = [_kept(site, heads.get(site.name)) for site in sites]
        looking.column(f"kept_{group}" if group else "kept", kept, "attention")


def _kept(site: AttentionSite, left: Heads | None) -> list[str]:
    if left is None:
        return ["yes"] * (site.heads * site.dim)
    there = "yes" if left.dim == site.dim else "turned"
    return [there if h in left.kept else "no" for h in range(site.heads) for _ in range(site.dim)]


def show(looking: Looking, pictures: Pictures) -> None:
    """Nothing; `told["attention"]["shown"]` has the cards of a seeded draw of directions, or of the listed ones."""
    sites, how = looking.directions, looking.see.units
    start = np.cumsum([0, *looking.widths("attention")])
    if how.list is not None:
        chosen = [(i, h * sites[i].dim + d) for i, h, d in how.directions]
    else:
        drawn = np.random.default_rng([how.seed, DRAW]).permutation(int(start[-1]))[: how.kept]
        blocks = np.searchsorted(start, np.sort(drawn), side="right") - 1
        chosen = [(int(i), int(at - start[i])) for i, at in zip(blocks, np.sort(drawn), strict=True)]
    cards = []
    for i, j in chosen:
        head, dimension = divmod(j, sites[i].dim)
        card: Json = {name: column[start[i] + j] for name, column in looking.of_attention.items()}
        strip = _strip(looking, pictures, i, j, f"{i}-h{head}-{dimension}")
        cards.append({**card, "unit": f"{i}:h{head}.{dimension}", "strip": strip})
    looking.told["attention"]["shown"] = cards


def _strip(looking: Looking, pictures: Pictures, i: int, j: int, name: str) -> str | None:
    lists = looking.left.get("directions")
    if lists is None or looking.left["silent directions"][i][j]:
        return None
    return pictures.exemplars(lists, i, j, name)
