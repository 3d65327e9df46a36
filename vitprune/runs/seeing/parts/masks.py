"""The part `masks`: which pixels the classes' top units are above their thresholds on, and whether they need them.

The control of every figure: the same mask at a random place. Units of the last block are left out under a head that reads
the class token, unless no other block carries classes: what its patches hold reaches no logit.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vitprune.core.files import replacing
from vitprune.core.reading import Json
from vitprune.images.preprocess import Preprocessing
from vitprune.model import families
from vitprune.model.tokens import tokens_per_site
from vitprune.runs.engine.base import Columns
from vitprune.runs.seeing import passes, targets
from vitprune.runs.seeing.looking import Looking
from vitprune.runs.state.run import Run
from vitprune.see.pictures import checks, drawing, maps, masks, reading
from vitprune.see.pictures.grid import grid_of

IMAGES, EDGE = 6, 112  # pictures of a strip, longest side of each
CLASSES = 24  # at most, of more a seeded draw
JUDGED = 40  # images of a class that the deletion is measured on, at most


def work(looking: Looking) -> None:
    """Nothing; per class a strip of its top unit's masks, and what filling them does to the unit, in see.json."""
    outputs = targets.classes(looking, CLASSES)
    best = targets.tops(looking, outputs, targets.seen_blocks(looking))
    top = {c: (units[0].block, units[0].unit) for c, units in zip(outputs, best, strict=False) if units}
    how = looking.see.masks
    thresholds = _thresholds(looking, sorted(set(top.values()))) if how.threshold == "unit" else {}
    rows = [_of_class(looking, c, unit, thresholds.get(unit)) for c, unit in top.items()]
    lower = sum(row["deletion"] > 0 for row in rows)
    told: Json = {"threshold": how.threshold, "percentile": how.percentile, "classes": rows}
    told["unseen"] = any(i == targets.unseen_block(looking) for i, _ in top.values())
    looking.told["masks"] = told | {"needed": lower, "n": len(rows)}


def _thresholds(looking: Looking, units: list[targets.Unit]) -> dict[targets.Unit, float]:
    """Each unit's percentile over the patches of all images."""
    if not units:
        return {}
    run, index, share = looking.run, looking.index, looking.see.masks.percentile / 100
    size, tokens = families.input_shape(looking.model)[1:], tokens_per_site(looking.model, looking.sites)
    upper = {}
    for i, j in units:
        grid = grid_of(looking.model, looking.sites[i], tokens[i], size)
        upper[i, j] = reading.Upper(len(index) * grid.rows * grid.columns, share, 1)
    most = [one.most for one in upper.values()]
    batch = passes.batch_of(run)
    job = passes.job(looking, "masks", functools.partial(_largest, run, index, units, most, batch), [units, most])
    for columns in run.executor.run(job, passes.folder_of(looking, "masks")):
        for i, j in units:
            upper[i, j].add(torch.from_numpy(columns[f"{i}.{j}"])[None], int(columns[f"{i}.{j}.among"][0]))
    return {unit: float(one.value()) for unit, one in upper.items()}


def _largest(
    run: Run, index: np.ndarray, units: list[targets.Unit], most: list[int], batch: int, item: Sequence[int]
) -> Columns:
    by_block: dict[int, list[int]] = {}
    for i, j in units:
        by_block.setdefault(i, []).append(j)
    made: dict[targets.Unit, list[Tensor]] = {}
    for at in range(item[0], item[1], batch):
        x, _ = next(run.images.batches(index[at : min(at + batch, item[1])], batch))
        sites = [run.sites[i] for i in by_block]
        found = maps.all_maps(run.loaded.model, sites, list(by_block.values()), x.to(run.device), "pre")
        for (i, own), block in zip(by_block.items(), found, strict=True):
            for k, j in enumerate(own):
                made.setdefault((i, j), []).append(block[:, k].flatten().cpu())
    done: Columns = {}
    for (i, j), limit in zip(units, most, strict=True):
        values = torch.cat(made[i, j])
        done[f"{i}.{j}"] = values.topk(min(limit, len(values))).values.numpy()
        done[f"{i}.{j}.among"] = np.array([len(values)])
    return done


def _of_class(looking: Looking, output: int, unit: targets.Unit, threshold: float | None) -> Json:
    run, site = looking.run, looking.sites[unit[0]]
    index = looking.index[run.images.labels[looking.index] == output][:JUDGED]
    prepared = Preprocessing.of(run.loaded.data_config)
    images = torch.stack([run.images.tensor(int(i)) for i in index]).to(run.device)
    batch = passes.batch_of(run)

    def value(given: Tensor) -> Tensor:
        """The unit at its highest patch, before its activation: where its mask is."""
        parts = [maps.maps(looking.model, site, [unit[1]], part, "pre").amax((1, 2, 3)) for part in given.split(batch)]
        return torch.cat(parts)

    found = torch.cat([maps.maps(looking.model, site, [unit[1]], part, "pre") for part in images.split(batch)])
    size = families.input_shape(looking.model)[1:]
    if threshold is None:
        mask = masks.image_masks(found, size, looking.see.masks.percentile)[:, 0]
    else:
        mask = masks.unit_masks(found, size, torch.tensor([threshold]))[:, 0]
    black = torch.tensor([-m / s for m, s in zip(prepared.mean, prepared.std, strict=True)], device=run.device)
    fall = checks.deletion(value, images, mask, black, seed=looking.see.units.seed)
    shown = _marked(looking, images[:IMAGES], mask)
    picture = _write(looking, f"{unit[0]}-{unit[1]}-{output}", shown)
    error = float(fall.std(ddof=1) / len(fall) ** 0.5) if len(fall) > 1 else None
    running = _running(looking, output, unit, images[:IMAGES], mask) if looking.see.masks.running else {}
    return {
        "class": looking.name(output),
        "unit": f"{unit[0]}:{unit[1]}",
        "picture": picture,
        "area": float(mask.float().mean()),
        "deletion": float(fall.mean()),
        "standard_error": error,
        "n": len(fall),
        **running,
    }


def _running(looking: Looking, output: int, unit: targets.Unit, images: Tensor, own: Tensor) -> Json:
    """The masks of the running mean over the blocks up to the unit's, of the class's top unit in each of them on the map's own
    scale; each image's own percentile is its threshold, as the authors'. Blocks that carry no classes are among them, as
    there: what their top units are is chance. `iou`: with the unit's own masks."""
    sites = looking.sites[: unit[0] + 1]
    units = [int(first[output]) for first in looking.left["first"][: len(sites) - 1]] + [unit[1]]
    found = maps.all_maps(looking.model, sites, [[j] for j in units], images, "pre")
    mean = masks.running_mean(torch.stack([masks.unit_scaled(one) for one in found]))[-1]
    size = families.input_shape(looking.model)[1:]
    mask = masks.image_masks(mean, size, looking.see.masks.percentile)[:, 0]
    both, either = (mask & own[: len(mask)]).sum(), (mask | own[: len(mask)]).sum()
    name = f"{unit[0]}-{unit[1]}-{output}-running"
    told: Json = {"picture": _write(looking, name, _marked(looking, images, mask)), "area": float(mask.float().mean())}
    told |= {"units": [f"{i}:{j}" for i, j in enumerate(units)], "iou": float(both / either) if either else None}
    return {"running": told}


def _marked(looking: Looking, images: Tensor, mask: Tensor) -> list[np.ndarray]:
    """Pictures of the images with their masks on them."""
    prepared = Preprocessing.of(looking.run.loaded.data_config)
    return [
        drawing.at_most(drawing.marked(drawing.pixels(x, prepared.mean, prepared.std), m.cpu().numpy()), EDGE)
        for x, m in zip(images, mask, strict=False)
    ]


def _write(looking: Looking, name: str, shown: list[np.ndarray]) -> str:
    """Write a strip; its name from the run's folder."""
    path = looking.folder / "masks" / f"{name}.png"
    with replacing(path) as temporary:
        temporary.write_bytes(drawing.png(drawing.side_by_side(shown)))
    looking.files.append(path)
    return path.relative_to(looking.run.folder.root).as_posix()
