"""The part `exemplars`: the images that move each unit most, some that were drawn without looking, and when it fires."""

from __future__ import annotations

import numpy as np

from vitprune.core.reading import Json
from vitprune.recipe.seeing import Site
from vitprune.runs.seeing import passes
from vitprune.runs.seeing.looking import Looking
from vitprune.see import exemplars as lists
from vitprune.see import firing
from vitprune.see.exemplars import Top
from vitprune.see.seen import Seen


def work(looking: Looking) -> None:
    """Nothing; exemplars.safetensors and what see.json says of it. Images are positions in the source, tokens are counted as
    the model does, those that are no patches first; −1 where a list is shorter."""
    blocks = passes.seen(looking)
    arrays, silent, auroc = tell(looking, blocks)
    looking.save("exemplars", arrays)
    looking.left["silent"], looking.left["exemplars"] = silent, arrays
    looking.told["exemplars"] = about(looking, silent) | {"selectivity": _selectivity(looking, blocks, auroc)}


def about(looking: Looking, silent: list[np.ndarray]) -> Json:
    """How the lists were made, and how many units of each block never fire."""
    how = looking.see.exemplars
    return {
        "k": how.k,
        "random": how.random,
        "quantile": how.quantile,
        "pooled": "the largest activation over an image's patches",
        "read": passes.read_at(looking, looking.see.tokens, "see.tokens"),
        "never_fire": [int(block.sum()) for block in silent],
    }


def tell(
    looking: Looking, blocks: list[Seen], of: Site = "ffn"
) -> tuple[dict[str, np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """The lists as arrays; per block which units never fire [H], and the AUROC of those whose value on every image was kept;
    the columns are made."""
    how = looking.see.exemplars
    arrays: dict[str, np.ndarray] = {}
    silent = []
    for i, block in enumerate(blocks):
        counts = block.histogram
        silent.append(counts.low == counts.high)
        drawn = drawn_of(looking, block)
        for name, one in (("top", block.top), ("random", drawn)):
            arrays |= {f"{name}.values.{i}": one.values, f"{name}.images.{i}": one.images}
            arrays[f"{name}.tokens.{i}"] = one.tokens
        arrays[f"quantile.{i}"] = counts.quantile(how.quantile).astype(np.float32)
        arrays[f"low.{i}"], arrays[f"high.{i}"] = counts.low.astype(np.float32), counts.high.astype(np.float32)
    looking.column("fires", [["no" if quiet else "yes" for quiet in block] for block in silent], of)
    looking.column("quantile", [arrays[f"quantile.{i}"] for i in range(len(blocks))], of)
    looking.column("highest", [arrays[f"high.{i}"] for i in range(len(blocks))], of)
    looking.column("strongest_image", [_names(looking, block.top.images[:, 0].tolist()) for block in blocks], of)
    labels = looking.run.images.labels[looking.index]
    found = [firing.selectivity(np.concatenate(block.sample), labels) for block in blocks]
    columns = [np.full(width, np.nan) for width in looking.widths(of)]
    for column, block, values in zip(columns, blocks, found, strict=True):
        column[block.asked.sampled] = values
    looking.column("auroc", columns, of)
    return arrays, silent, found


def _selectivity(looking: Looking, blocks: list[Seen], found: list[np.ndarray]) -> Json:
    """Per class set the median AUROC of removed and of kept units for the class that they fire for; of those whose value on
    every image was kept, all or a seeded draw, where the head reads (the patches' mean without a class token) unless
    `see.tokens` says where."""
    every, told = np.concatenate(found), {}
    for group, kept in looking.kept.items():
        mask = np.concatenate([one[block.asked.sampled] for one, block in zip(kept, blocks, strict=True)])
        sides = {name: every[side & ~np.isnan(every)] for name, side in (("removed", ~mask), ("kept", mask))}
        row: Json = {name: float(np.median(one)) if len(one) else None for name, one in sides.items()}
        told[group or ""] = row | {"n": {name: len(one) for name, one in sides.items()}, "chance": 0.5}
    return told


def drawn_of(looking: Looking, block: Seen) -> Top:
    """The images that were drawn for each unit, but for those among its strongest."""
    ids = looking.index[block.asked.drawn].astype(np.int32)
    return lists.beside(block.top, Top(block.drawn, ids, block.drawn_tokens), looking.see.exemplars.random)


def _names(looking: Looking, images: list[int]) -> list[str | None]:
    return [looking.image_names[image] if image >= 0 else None for image in images]
