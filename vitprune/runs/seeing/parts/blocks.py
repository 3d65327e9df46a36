"""The part `blocks`: the classes' units from block to block, each figure with its standard error and its null band.

Files in see/blocks: `top_block.csv` in which block the classes' top units are, beside random heads; `class_means.csv` how
active a class's top units are on its own images; `most_active.csv` which unit is an image's most active; `distances.csv`
and `mean_distances.csv` how far the classes' mean maps lie apart, on each map's own scale and as they are, of one unit and
of three; `block_maps.safetensors` the mean maps and their running means. Labels are permuted for the null bands.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vitprune.core.files import write_text
from vitprune.core.reading import Json
from vitprune.runs.engine.base import Columns, Job
from vitprune.runs.seeing import passes, targets
from vitprune.runs.seeing.looking import Looking
from vitprune.runs.state.run import Run
from vitprune.see import alignment
from vitprune.see.pictures import blocks, maps, tables
from vitprune.see.pictures.blocks import Banded, MostActive, Plan, Sums

CLASSES, UNITS = 20, 3  # classes at most, of more a seeded draw; units of a class
FIELDS = ("own", "null", "count", "null_count")
KINDS = {"scaled_1": (True, 1), "scaled_3": (True, 3), "raw_1": (False, 1), "raw_3": (False, 3)}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a part looks at: the blocks, per block the top units of every class [C, K], and who belongs where."""

    blocks: list[int]
    tops: list[np.ndarray]
    index: np.ndarray
    plan: Plan


def work(looking: Looking) -> None:
    """Nothing; the CSV files, the maps, and what see.json says of every block that carries classes."""
    outputs, carrying = targets.classes(looking, CLASSES), targets.carrying(looking)
    if not carrying or len(outputs) < 2:
        why = "no block carries classes" if not carrying else "fewer than two classes have images"
        looking.told["blocks"] = {"note": f"{why}: nothing to draw"}
        return
    names = [looking.name(c) for c in outputs]
    asked = _asked(looking, outputs, carrying)
    sums, active = _sums(looking, asked)
    counted = _top_blocks(looking, outputs)
    write = functools.partial(_write, looking)
    write("top_block", tables.by_name("block", [str(i) for i in range(len(looking.sites))], counted))
    heights = [sums[i]["raw_1"].figure(blocks.heights) for i in range(len(carrying))]
    write("class_means", _with_blocks(carrying, names, heights))
    write("most_active", _most_active(carrying, active))
    far = {kind: [sums[i][kind].figure(blocks.distances) for i in range(len(carrying))] for kind in KINDS}
    write("distances", _distances(carrying, names, far))
    mean = {kind: [sums[i][kind].figure(blocks.mean_distance) for i in range(len(carrying))] for kind in KINDS}
    write("mean_distances", _mean_distances(carrying, mean))
    _save_maps(looking, carrying, sums)
    looking.told["blocks"] = {
        "classes": names,
        "blocks": carrying,
        "images": len(asked.index),
        "permutations": len(asked.plan.permuted),
        "top_block": _json(counted),
        "class_means": [_json(one) for one in heights],
        "mean_distances": {kind: [_json(one) for one in found] for kind, found in mean.items()},
        "most_active_is_own": [_json(one.share()) for one in active],
    }


def _asked(looking: Looking, outputs: list[int], carrying: list[int]) -> Asked:
    labels = looking.run.images.labels[looking.index]
    index = looking.index[np.isin(labels, outputs)]
    row = {c: k for k, c in enumerate(outputs)}
    label = np.array([row[int(c)] for c in looking.run.images.labels[index]])
    tops = []
    for i in carrying:
        best = targets.tops(looking, outputs, [i])
        tops.append(np.array([[unit.unit for unit in units] for units in best]))
    return Asked(carrying, tops, index, Plan.of(label, len(outputs), seed=looking.see.units.seed))


def _sums(looking: Looking, asked: Asked) -> tuple[list[dict[str, Sums]], list[MostActive]]:
    """Per block the sums of each kind, and the most active units; from one pass."""
    run, batch = looking.run, passes.batch_of(looking.run)
    about = [
        asked.blocks,
        [top.tolist() for top in asked.tops],
        asked.index.tolist(),
        asked.plan.classes,
        looking.see.units.seed,
    ]
    whole = passes.job(looking, "blocks", functools.partial(_looked, run, asked, batch), about)
    job = Job(whole.name, passes.items(len(asked.index), batch), whole.work, whole.about, kept=False)
    sums: list[dict[str, Sums]] = []
    active: list[MostActive] = []
    for columns in run.executor.run(job, passes.folder_of(looking, "blocks")):
        part = [
            {kind: Sums(*(columns[f"{b}.{kind}.{field}"] for field in FIELDS)) for kind in KINDS}
            for b in range(len(asked.blocks))
        ]
        mine = [_active(columns, b) for b in range(len(asked.blocks))]
        sums = [{k: old[k] + new[k] for k in KINDS} for old, new in zip(sums, part, strict=True)] if sums else part
        active = [old + new for old, new in zip(active, mine, strict=True)] if active else mine
    return sums, active


def _active(columns: Columns, b: int) -> MostActive:
    hits, images = columns[f"{b}.hits"].tolist()
    return MostActive(columns[f"{b}.units"], hits, columns[f"{b}.null_hits"], images)


def _looked(run: Run, asked: Asked, batch: int, item: Sequence[int]) -> Columns:
    """One part: its images' maps of every class's units, summed."""
    sites = [run.sites[i] for i in asked.blocks]
    every = [list(range(site.size)) for site in sites]
    found: list[list[Tensor]] = [[] for _ in sites]
    pooled: list[list[Tensor]] = [[] for _ in sites]
    for at in range(item[0], item[1], batch):
        x, _ = next(run.images.batches(asked.index[at : min(at + batch, item[1])], batch))
        for b, block in enumerate(maps.all_maps(run.loaded.model, sites, every, x.to(run.device))):
            found[b].append(block[:, torch.from_numpy(asked.tops[b].ravel()).to(block.device)].flatten(2).cpu())
            pooled[b].append(block.mean((2, 3)).cpu())
    at_all, made = np.arange(item[0], item[1]), dict[str, np.ndarray]()
    for b, top in enumerate(asked.tops):
        values = torch.cat(found[b]).numpy()
        rows = np.arange(top.size).reshape(top.shape)
        for kind, (scaled, units) in KINDS.items():
            part = Sums.of(asked.plan, at_all, blocks.own_maps(values, rows[:, :units], scaled))
            made |= {f"{b}.{kind}.{field}": getattr(part, field) for field in FIELDS}
        active = MostActive.of(asked.plan, at_all, torch.cat(pooled[b]).numpy(), top)
        made |= {f"{b}.units": active.units, f"{b}.null_hits": active.null_hits}
        made[f"{b}.hits"] = np.array([active.hits, active.images])
    return made


def _top_blocks(looking: Looking, outputs: list[int]) -> Banded:
    """In which block each class's top unit is, among all blocks, by the section's form; and with random heads by cosine."""
    written = alignment.written(looking.model)
    with torch.no_grad():
        found = torch.stack(
            [written.aligned(i, looking.see.alignment)[:, outputs].amax(0) for i in range(len(written.values))]
        )
        generator = torch.Generator().manual_seed(looking.see.units.seed)
        null = []
        for _ in range(alignment.HEADS):
            drawn = torch.randn(len(outputs), written.head.shape[1], generator=generator).to(written.head)
            drawn *= written.head[outputs].norm(dim=1, keepdim=True) / drawn.norm(dim=1, keepdim=True)
            other = alignment.Written(written.values, drawn, written.weight, written.centred, written.parts)
            form = "raw" if looking.see.alignment == "normed" else looking.see.alignment
            null.append(torch.stack([other.aligned(i, form).amax(0) for i in range(len(written.values))]).argmax(0))
    return blocks.block_counts(found.argmax(0).cpu().numpy(), len(written.values), torch.stack(null).cpu().numpy())


def _with_blocks(carrying: list[int], names: list[str], found: list[Banded]) -> str:
    rows = [
        (i, name, *tables.at(one, c)) for i, one in zip(carrying, found, strict=True) for c, name in enumerate(names)
    ]
    return tables.text(("block", "class", *tables.FIGURE), rows)


def _most_active(carrying: list[int], active: list[MostActive]) -> str:
    rows = [
        (i, int(j), int(one.units[j]))
        for i, one in zip(carrying, active, strict=True)
        for j in np.flatnonzero(one.units)
    ]
    return tables.text(("block", "unit", "images"), rows)


def _distances(carrying: list[int], names: list[str], far: dict[str, list[Banded]]) -> str:
    rows = [
        (kind, i, names[a], names[b], *tables.at(one, (a, b)))
        for kind, found in far.items()
        for i, one in zip(carrying, found, strict=True)
        for a in range(len(names))
        for b in range(a + 1, len(names))
    ]
    return tables.text(("maps", "block", "class", "other", *tables.FIGURE), rows)


def _mean_distances(carrying: list[int], mean: dict[str, list[Banded]]) -> str:
    rows = [
        (kind, i, *tables.at(one, 0)) for kind, found in mean.items() for i, one in zip(carrying, found, strict=True)
    ]
    return tables.text(("maps", "block", *tables.FIGURE), rows)


def _save_maps(looking: Looking, carrying: list[int], sums: list[dict[str, Sums]]) -> None:
    """Mean maps [C, P] of every block, and where the blocks share a grid their running means from the first such block on."""
    means = [one["scaled_1"].figure(lambda found: found).value for one in sums]
    arrays = {f"mean.{i}": one.astype(np.float32) for i, one in zip(carrying, means, strict=True)}
    if len({one.shape for one in means}) == 1:
        so_far = blocks.running(means).astype(np.float32)
        arrays |= {f"running.{i}": one for i, one in zip(carrying, so_far, strict=True)}
    looking.save("block_maps", arrays)


def _write(looking: Looking, name: str, text: str) -> None:
    path = looking.folder / "blocks" / f"{name}.csv"
    write_text(path, text)
    looking.files.append(path)


def _json(found: Banded) -> Json:
    fields = {"value": found.value, "standard_error": found.error, "null_low": found.low, "null_high": found.high}
    return {name: [float(v) if np.isfinite(v) else None for v in values] for name, values in fields.items()}
