"""The part `drift`: what the repair made of the kept units, and which kept unit stands in for each removed one."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vitprune.core.reading import Json, sha256
from vitprune.criteria.settings import Nothing
from vitprune.model import families
from vitprune.model.inside import blockwise, hooks
from vitprune.model.inside import moments as inside_moments
from vitprune.model.load import opening
from vitprune.model.sites import ffn
from vitprune.model.sites.ffn import FfnSite
from vitprune.runs.engine.base import Columns
from vitprune.runs.seeing import passes
from vitprune.runs.seeing.looking import Looking
from vitprune.runs.stages import sums
from vitprune.runs.stages.sums import FFN, Asked
from vitprune.runs.state.run import Run
from vitprune.see import alignment
from vitprune.see import drift as measures
from vitprune.see.drift import NAMES, Pairs, Twins

CHANGED = 0.5  # cosine or correlation below which a kept unit is said to have become another
_slim: dict[str, nn.Module] = {}  # of this process: the slim model that its parts are about


def work(looking: Looking) -> None:
    """Nothing; the columns and what see.json says of every class set."""
    told = {}
    twins = _all_twins(looking)
    for group in looking.kept:
        end = f"_{group}" if group else ""
        told[group or ""] = _kept(looking, group, end) | {"twins": _twins(looking, group, end, twins.get(group))}
    looking.told["drift"] = told


def _kept(looking: Looking, group: str | None, end: str) -> Json:
    slim, kept = looking.slim(group), looking.kept[group]
    sites = families.ffn_sites(slim)
    pairs = _pairs(looking, group)
    cosine, same = [], []
    for i, (site, mask) in enumerate(zip(sites, kept, strict=True)):
        before = _written(looking.model, looking.sites[i])[torch.from_numpy(mask)]
        cosine.append(_spread(measures.turned(before, _written(slim, site)), mask))
        same.append(_spread(pairs[i].correlation, mask))
    looking.column(f"drift_cos{end}", cosine)
    looking.column(f"drift_corr{end}", same)
    every = {name: np.concatenate(blocks) for name, blocks in (("cos", cosine), ("corr", same))}
    looking.left[f"drift{end}"] = every
    found: Json = {"tokens": pairs[0].tokens, "kept": int(sum(mask.sum() for mask in kept)), "below": CHANGED}
    for name, values in every.items():
        known = values[~np.isnan(values)]
        found[name] = {
            "median": float(np.median(known)) if len(known) else None,
            "least": float(known.min()) if len(known) else None,
            "changed": int((known < CHANGED).sum()),
            "n": len(known),
        }
    return found | {"other_class": _other_class(looking, slim, kept)}


def _spread(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Values of the kept units in the dense numbering, NaN for the others."""
    wide = np.full(len(mask), np.nan)
    wide[mask] = values
    return wide


def _written(model: nn.Module, site: FfnSite) -> Tensor:
    """What each unit of an FFN writes, [H, D]; without γ, where the blocks are not in halves that tell of one."""
    parts = blockwise.halves(model)
    weight = ffn.linear(model, site.fc2).weight.detach()
    if parts is None or len(parts.blocks) <= site.block:
        return weight.T
    return parts.ffn_columns(site.block).detach()


def _other_class(looking: Looking, slim: nn.Module, kept: Sequence[np.ndarray]) -> Json | None:
    """Kept units whose most aligned class is another after the repair, in blocks that carry classes; None where the part
    alignment was not done, or the slim model has other outputs."""
    before = looking.left.get("aligned")
    if before is None or alignment.why_not(slim) is not None:
        return None
    written = alignment.written(slim)
    if len(written.head) != looking.run.loaded.outputs:
        return None
    units, n = [], 0
    for i, mask in enumerate(kept):
        if before[i] is None or not mask.any():
            continue
        first = before[i][torch.from_numpy(mask)].argmax(1)
        now = written.aligned(i, looking.see.alignment).argmax(1).cpu()
        n += len(now)
        numbers = np.flatnonzero(mask)
        for j in torch.nonzero(first != now).flatten().tolist():
            names = [looking.name(int(one[j])) for one in (first, now)]
            units.append({"unit": f"{i}:{numbers[j]}", "before": names[0], "after": names[1]})
    return {"n": n, "units": units}


def _pairs(looking: Looking, group: str | None) -> list[Pairs]:
    """Per block the kept units' activations in both models, over all tokens of the images."""
    run, name = looking.run, f"drift-{group or 'all'}"
    path = run.folder.root / (group or "") / "model.safetensors"
    kept = looking.kept[group]
    work = functools.partial(_compared, run, looking.index, kept, path, passes.batch_of(run))
    made = passes.job(looking, name, work, {"slim": sha256(path), "kept": [np.packbits(k).tolist() for k in kept]})
    found: list[Pairs] | None = None
    parts = run.executor.run(made, passes.folder_of(looking, name))
    for columns in run.reporter.track(parts, "see drift", len(looking.index), made.items[0][1]):
        part = [
            Pairs(int(columns[f"{i}.tokens"][0]), {n: columns[f"{i}.{n}"] for n in NAMES}) for i in range(len(kept))
        ]
        found = part if found is None else [one.plus(more) for one, more in zip(found, part, strict=True)]
    assert found is not None
    return found


def _compared(
    run: Run, index: np.ndarray, kept: Sequence[np.ndarray], path: Path, batch: int, item: Sequence[int]
) -> Columns:
    slim = _slim_of(run, path)
    masks = [torch.from_numpy(mask) for mask in kept]
    found: list[Pairs | None] = [None] * len(kept)
    dense_of: dict[int, Tensor] = {}

    def keep(position: int, hidden_BTH: Tensor) -> None:
        dense_of[position] = hidden_BTH.flatten(0, 1)[:, masks[position].to(hidden_BTH.device)]

    def compare(position: int, hidden_BTK: Tensor) -> None:
        more, known = Pairs.of(dense_of.pop(position), hidden_BTK.flatten(0, 1)), found[position]
        found[position] = more if known is None else known.plus(more)

    with torch.no_grad():
        for at in range(item[0], item[1], batch):
            x = next(run.images.batches(index[at : min(at + batch, item[1])], batch))[0].to(run.device)
            with hooks.hidden_units(run.loaded.model, run.sites, keep):
                run.loaded.model(x)
            with hooks.hidden_units(slim, families.ffn_sites(slim), compare):
                slim(x)
    columns: Columns = {}
    for i, pairs in enumerate(found):
        assert pairs is not None
        columns[f"{i}.tokens"] = np.array([pairs.tokens], np.int64)
        columns |= {f"{i}.{name}": pairs.sums[name] for name in NAMES}
    return columns


def _slim_of(run: Run, path: Path) -> nn.Module:
    """The slim model in this process, read once for all parts that are about it."""
    key = sha256(path)
    if key not in _slim:
        _slim.clear()
        _slim[key] = opening.load(path.parent, run.device)
    return _slim[key]


def _all_twins(looking: Looking) -> dict[str | None, list[Twins]]:
    """Per class set that lost units and per block the stand-ins of the removed ones, by the covariance of the dense model's
    activations over the images, in the last block at the tokens that the head reads. One block's [H, H] is in memory at a
    time, for all class sets."""
    run, cut = looking.run, {group: kept for group, kept in looking.kept.items() if not all(k.all() for k in kept)}
    found: dict[str | None, list[Twins]] = {group: [] for group in cut}
    if cut:
        totals = sums.totals(run, Asked("see", "obs", Nothing(), looking.index, run.batching.batch), "see twins")
        for i in range(len(run.sites)):
            (one,) = inside_moments.of_sums(totals.of(FFN, i), run.sites[i : i + 1])
            for group, kept in cut.items():
                found[group].append(measures.twins(one.covariance.numpy(), kept[i]))
    return found


def _twins(looking: Looking, group: str | None, end: str, found: list[Twins] | None) -> Json | None:
    """What is told of the stand-ins of the removed units; None where nothing was removed."""
    if found is None:
        return None
    kept = looking.kept[group]
    looking.column(
        f"twin{end}", [_named(i, len(mask), one) for i, (mask, one) in enumerate(zip(kept, found, strict=True))]
    )
    correlations = []
    for mask, one in zip(kept, found, strict=True):
        wide = np.full(len(mask), np.nan)
        wide[one.removed] = one.correlation
        correlations.append(wide)
    looking.column(f"twin_corr{end}", correlations)
    sizes = np.abs(np.concatenate(correlations))
    known = sizes[~np.isnan(sizes)]
    widest = max(int(mask.sum()) for mask in kept)
    chance = measures.by_chance(widest, len(looking.index))
    return {
        "median": float(np.median(known)) if len(known) else None,
        "near": float((known >= 0.9).mean()) if len(known) else None,
        "n": len(known),
        "chance": chance,
        "blocks": [_median(one) for one in found],
    }


def _named(i: int, units: int, twins: Twins) -> list[str | None]:
    found: list[str | None] = [None] * units
    for unit, twin in zip(twins.removed.tolist(), twins.twin.tolist(), strict=True):
        found[unit] = f"{i}:{twin}" if twin >= 0 else None
    return found


def _median(twins: Twins) -> float | None:
    known = np.abs(twins.correlation[~np.isnan(twins.correlation)])
    return float(np.median(known)) if len(known) else None
