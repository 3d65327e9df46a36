"""Passes over the probe images as jobs: fixed parts of whole batches, merged in their order.

What a part is made of is said by the model, the images and the kind of device, never by free memory or workers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vitprune.core.errors import UserError
from vitprune.model.inside import hooks
from vitprune.model.sites.attention import attention_sites
from vitprune.model.sites.ffn import FfnSite
from vitprune.recipe.seeing import Site, Tokens
from vitprune.runs.engine.base import Columns, Job
from vitprune.runs.seeing.looking import Looking
from vitprune.runs.stages.image_scores import digest_of
from vitprune.runs.stages.versions import version
from vitprune.runs.state.run import Run
from vitprune.runs.state.workspace import PARTS
from vitprune.see import exemplars
from vitprune.see.pictures import reading
from vitprune.see.seen import READS, Asked, Seen

SHARD = 64  # images of a part, at least
MOST = 64  # parts, so that what lies on disk stays bounded
BATCH = 32
SAMPLED, FEWEST, VALUES = 2048, 128, 1 << 22  # units whose value on every image is kept; so many values in all, about


def batch_of(run: Run) -> int:
    """Images of one forward pass."""
    return min(BATCH, run.batching.repair_batch)


def items(count: int, batch: int) -> list[list[int]]:
    """Where the parts start and end: whole batches, `SHARD` images or more."""
    size = max(SHARD, -(-count // MOST))
    step = -(-size // batch) * batch
    return [[at, min(at + step, count)] for at in range(0, count, step)]


def job(looking: Looking, name: str, work: functools.partial[Columns], about: object) -> Job:
    """Work on the images that are looked at, part by part; `work` is given where a part starts and ends."""
    run, batch = looking.run, batch_of(looking.run)
    known = {"model": run.model_digest, "data": run.data_digest, "code": version("see"), "device": run.device.type}
    of = digest_of(looking.index, known | {"about": about, "batch": batch})
    return Job(f"see-{name}", items(len(looking.index), batch), work, of)


def folder_of(looking: Looking, name: str) -> Path:
    """Where a job's parts are."""
    return looking.run.folder.stage_folder("see") / PARTS / name


def seen(looking: Looking, of: Site = "ffn") -> list[Seen]:
    """What the pass over the dense model leaves of every FFN's units, or of every attention's directions; made once."""
    word = "units" if of == "ffn" else "attention"
    if f"seen {word}" not in looking.left:
        run, see = looking.run, looking.see
        how = asked(looking, of)
        about = see.exemplars.model_dump(exclude={"quantile"}) | {"seed": see.units.seed, "read": how[0].at}
        made = job(looking, word, functools.partial(_looked, run, looking.index, how, batch_of(run), of), about)
        found = [Seen.nothing(one) for one in how]
        parts = run.executor.run(made, folder_of(looking, word))
        step = made.items[0][1]
        for columns in run.reporter.track(parts, f"see {word}", len(looking.index), step):
            for i, block in enumerate(found):
                start = f"{i}."
                block.merge({k.removeprefix(start): v for k, v in columns.items() if k.startswith(start)})
        looking.left[f"seen {word}"] = found
    made_before: list[Seen] = looking.left[f"seen {word}"]
    return made_before


def asked(looking: Looking, of: Site = "ffn") -> list[Asked]:
    """How every block is looked at."""
    how, layout, seed = looking.see.exemplars, looking.layout, looking.see.units.seed
    most = how.random + how.k  # so that as many as are asked for are none of the strongest
    widths = looking.widths(of)
    sampled = sample(looking, of)
    at = read_at(looking, looking.see.tokens, "see.tokens")
    return [
        Asked(
            layout.prefix,
            layout.class_token,
            how.k,
            exemplars.draws(len(looking.index), width, most, [seed, i] if of == "ffn" else [seed, i, 1]),
            sampled[i],
            at,
            of == "attention" or reading.gated(looking.sites[i]),
        )
        for i, width in enumerate(widths)
    ]


def read_at(looking: Looking, choice: Tokens, key: str) -> str:
    """Where a unit's one figure an image is read: `class`, `patches` or `all`. Raises UserError, naming the recipe's key, for
    a class token that the head does not read."""
    if choice == "cls" and not looking.layout.class_token:
        raise UserError(f"{key}: cls: this model's head reads no class token; take `auto`, `patches` or `all`")
    if choice in ("auto", "cls"):
        return READS[0] if looking.layout.class_token else READS[1]
    return choice


def sample(looking: Looking, of: Site = "ffn") -> list[np.ndarray]:
    """Per block the units whose value on every image is kept: of small models nearly all, else a seeded draw of the whole
    model's, the fewer the more images there are, so that what is held stays bounded."""
    widths = looking.widths(of)
    count = min(max(VALUES // len(looking.index), FEWEST), SAMPLED, sum(widths))
    seed = [looking.see.units.seed, 1 if of == "ffn" else 2]
    drawn = np.sort(np.random.default_rng(seed).permutation(sum(widths))[:count])
    ends = np.cumsum(widths)
    parts = np.split(drawn, np.searchsorted(drawn, ends))[:-1]
    return [part - end + width for part, end, width in zip(parts, ends, widths, strict=True)]


def hooked(
    model: nn.Module, sites: Sequence[FfnSite], attention: bool, look: Callable[[int, Tensor], None]
) -> AbstractContextManager[None]:
    """`look(position, values [B, T, H])` is called on every pass inside, with the units of every FFN, or with what every
    attention gives to its projection."""
    if attention:
        return hooks.layers(model, [site.proj for site in attention_sites(model)], read=look)
    return hooks.hidden_units(model, sites, look)


def _looked(run: Run, index: np.ndarray, how: Sequence[Asked], batch: int, of: Site, item: Sequence[int]) -> Columns:
    found = [Seen.nothing(one) for one in how]
    at = 0

    def look(position: int, hidden_BTH: Tensor) -> None:
        if not bool(torch.isfinite(hidden_BTH).all()):
            raise UserError(f"see: block {position} gives values that are not finite; check the model's weights")
        ids = index[at : at + len(hidden_BTH)]
        found[position].look(hidden_BTH, at, ids, run.images.labels[ids])

    model = run.loaded.model
    with torch.no_grad(), hooked(model, run.sites, of == "attention", look):
        for at in range(item[0], item[1], batch):
            x, _ = next(run.images.batches(index[at : min(at + batch, item[1])], batch))
            model(x.to(run.device))
    return {f"{i}.{name}": column for i, block in enumerate(found) for name, column in block.columns().items()}
