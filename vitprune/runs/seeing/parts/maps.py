"""The part `maps`: where in its strongest images, and in one drawn at random, each shown unit fires; one scale per unit."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vitprune.core.files import replacing
from vitprune.core.reading import Json
from vitprune.images.preprocess import Preprocessing
from vitprune.model import families
from vitprune.model.tokens import tokens_per_site
from vitprune.runs.engine.base import Columns
from vitprune.runs.seeing import passes, targets
from vitprune.runs.seeing.looking import Looking
from vitprune.runs.state.run import Run
from vitprune.see.pictures import drawing, maps, reading
from vitprune.see.pictures.grid import grid_of

STRONGEST, EDGE, GAP = 5, 112, 6  # images of a strip and one at random; longest side of each; pixels between


def why_not(model: nn.Module) -> str | None:
    """Why the model's tokens are on no known grid, or None."""
    sites = families.ffn_sites(model)
    _, height, width = families.input_shape(model)
    try:
        for site, tokens in zip(sites, tokens_per_site(model, sites), strict=True):
            grid_of(model, site, tokens, (height, width))
    except Exception as error:  # a UserError, or whatever a foreign model has to say
        return str(error).removeprefix("see: maps: ").partition(";")[0]
    return None


def work(looking: Looking) -> None:
    """Nothing; a strip of pictures per shown unit, and its scale, own class and selectivity in see.json."""
    run, by_block = looking.run, _by_block(targets.shown_units(looking, tops_too=True))
    how = looking.see.maps.of
    if not by_block:
        looking.told["maps"] = {"of": how, "quantile": maps.QUANTILE, "images": len(looking.index), "units": []}
        return
    scales, highest = _scales(looking, by_block)
    labels = run.images.labels[looking.index]
    told = []
    for i, units in by_block.items():
        for k, j in enumerate(units):
            own = _own_class(looking, (i, j))
            score = None if own is None else maps.auroc(highest[i][:, k], labels == own)
            row: Json = {"unit": f"{i}:{j}", "scale": float(scales[i][k]), "auroc": score}
            row |= {"own_class": None if own is None else looking.name(own)}
            told.append(row | _strip(looking, i, j, float(scales[i][k]), own))
    looking.told["maps"] = {"of": how, "quantile": maps.QUANTILE, "images": len(looking.index), "units": told}
    looking.told["maps"]["unseen_block"] = targets.unseen_block(looking)


def _by_block(units: Sequence[targets.Unit]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for i, j in units:
        found.setdefault(i, []).append(j)
    return found


def _own_class(looking: Looking, unit: targets.Unit) -> int | None:
    """The class that a unit writes; where nothing may be said of that, the one it fires for most."""
    written = targets.own_class(looking, unit)
    if written is not None or "fires" not in looking.left:
        return written
    return int(looking.left["fires"]["patches"][unit[0]].classes[unit[1], 0])


def _scales(looking: Looking, by_block: dict[int, list[int]]) -> tuple[dict[int, Tensor], dict[int, np.ndarray]]:
    """Per block the scale of each unit over all images, and each unit's highest patch on every image, [N, k]."""
    run, index = looking.run, looking.index
    size = families.input_shape(looking.model)[1:]
    tokens = tokens_per_site(looking.model, looking.sites)
    patches = {}
    for i in by_block:
        grid = grid_of(looking.model, looking.sites[i], tokens[i], size)
        patches[i] = grid.rows * grid.columns
    upper = {i: reading.Upper(len(index) * patches[i], maps.QUANTILE, len(units)) for i, units in by_block.items()}
    highest: dict[int, list[np.ndarray]] = {i: [] for i in by_block}
    batch = passes.batch_of(run)
    most = {i: one.most for i, one in upper.items()}
    job = passes.job(looking, "maps", functools.partial(_largest, run, index, by_block, most, batch), [by_block, most])
    for columns in run.executor.run(job, passes.folder_of(looking, "maps")):
        for i, units in by_block.items():
            upper[i].add(torch.from_numpy(columns[f"{i}.largest"]), len(columns[f"{i}.highest"]) * patches[i])
            highest[i].append(columns[f"{i}.highest"].reshape(-1, len(units)))
    return {i: one.value() for i, one in upper.items()}, {i: np.concatenate(parts) for i, parts in highest.items()}


def _largest(
    run: Run, index: np.ndarray, by_block: dict[int, list[int]], most: dict[int, int], batch: int, item: Sequence[int]
) -> Columns:
    """One part's largest values of every unit, as many as the scale can need, and its highest patch on each image."""
    model, made = run.loaded.model, dict[str, list[Tensor]]()
    for at in range(item[0], item[1], batch):
        x, _ = next(run.images.batches(index[at : min(at + batch, item[1])], batch))
        sites, units = [run.sites[i] for i in by_block], list(by_block.values())
        for i, found in zip(by_block, maps.all_maps(model, sites, units, x.to(run.device)), strict=True):
            made.setdefault(f"{i}.largest", []).append(found.transpose(0, 1).flatten(1).cpu())
            made.setdefault(f"{i}.highest", []).append(found.amax((2, 3)).cpu())
    done = {}
    for i in by_block:
        values = torch.cat(made[f"{i}.largest"], 1)
        done[f"{i}.largest"] = values.topk(min(most[i], values.shape[1]), dim=1).values.numpy()
        done[f"{i}.highest"] = torch.cat(made[f"{i}.highest"]).numpy()
    return done


def _strip(looking: Looking, i: int, j: int, scale: float, own: int | None) -> Json:
    """The unit's pictures side by side as a PNG, image by image, and what is said of each."""
    exemplars = looking.left["exemplars"]
    top = [int(at) for at in exemplars[f"top.images.{i}"][j][:STRONGEST] if at >= 0]
    images = top + [int(at) for at in exemplars[f"random.images.{i}"][j][:1] if at >= 0]
    if looking.left["silent"][i][j] or not images:
        return {"picture": None, "images": [], "note": "never fires on these images"}
    run, outlying = looking.run, []
    found: list[tuple[Tensor, Tensor]] = []
    for position in images:  # one at a time: the same whatever else is shown
        x = run.images.tensor(position)[None].to(run.device)
        values, share = _drawn(looking, i, j, own, x)
        found.append((x[0], values))
        outlying += [] if share is None else [share]
    if looking.see.maps.of == "gradient" and own is not None:
        scale = max(float(values.max()) for _, values in found)
    path = looking.folder / "maps" / f"{i}-{j}.png"
    notes = _write(looking, path, found, scale, len(top))
    names = [looking.image_names[position] for position in images]
    told = [
        {"image": name, "note": note, "random": k >= len(top)}
        for k, (name, note) in enumerate(zip(names, notes, strict=True))
    ]
    on_outlying = float(np.mean(outlying)) if outlying else None
    picture = path.relative_to(run.folder.root).as_posix()
    return {"picture": picture, "images": told, "on_outlying_tokens": on_outlying}


def _drawn(looking: Looking, i: int, j: int, own: int | None, x: Tensor) -> tuple[Tensor, float | None]:
    """What is drawn of the unit over one image, [1, 1, g, g'], and its activation's share on outlying tokens."""
    model, site = looking.model, looking.sites[i]
    values = maps.maps(model, site, [j], x)
    share = maps.outlier_share(model, site, x, values)
    if looking.see.maps.of == "gradient" and own is not None:
        std = Preprocessing.of(looking.run.loaded.data_config).std
        values = maps.gradient_map(model, site, j, own, x, std)[:, None]
    return values, None if share is None else float(share)


def _write(
    looking: Looking, path: Path, found: list[tuple[Tensor, Tensor]], scale: float, before: int
) -> list[str | None]:
    """Write the strip, a gap after the first `before` images; what is to be said of each map."""
    prepared = Preprocessing.of(looking.run.loaded.data_config)
    shown, notes = [], []
    for x, values in found:
        level, note = maps.levels(maps.upsample(values, prepared.size)[0, 0], scale)
        picture = drawing.overlay(drawing.pixels(x, prepared.mean, prepared.std), level)
        shown.append(drawing.at_most(picture, EDGE))
        notes.append(note)
    with replacing(path) as temporary:
        temporary.write_bytes(drawing.png(drawing.side_by_side(shown, before, GAP)))
    looking.files.append(path)
    return notes
