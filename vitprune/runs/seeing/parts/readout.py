"""The part `readout`: from block to block, how well the classes can be read off the tokens; whether keys and values agree.

Beside every figure stands what chance gives: classes in a random order, units that have nothing to do with each other, a block
and a head drawn anew. Of attention the units are the dimensions of its mixed values: directions that a rotation within a head
may change, so that their figures are of the basis in which the model was trained.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from vitprune.core.errors import UserError
from vitprune.core.reading import Json
from vitprune.model import families
from vitprune.model.inside import hooks
from vitprune.runs.engine.base import Columns
from vitprune.runs.seeing import passes
from vitprune.runs.seeing.looking import Looking
from vitprune.runs.state.run import Run
from vitprune.see import alignment, readout
from vitprune.see.seen import READS

MEASURES = ("identifiability", "rises", "agrees", "attention_agrees")
Values = dict[str, list[Tensor]]  # `agrees` of the FFNs, `attention_agrees`: per block what each unit writes
LARGEST = 1 << 24  # logits at once
SEED = 0


def why_not(model: nn.Module) -> str | None:
    """Why the stream cannot be read through the model's own norm and head, or None."""
    return alignment.why_not(model)


def work(looking: Looking) -> None:
    """Nothing; what see.json says of every block."""
    written = alignment.written(looking.model)
    reads = READS if looking.layout.class_token else READS[1:]
    values = {"agrees": written.values, "attention_agrees": _attention(written)}
    top = {k: [readout.top_values(v, written.head).cpu() for v in blocks] for k, blocks in values.items()}
    sums = _sums(looking, top, reads)
    n, classes = len(looking.index), len(written.head)
    chance = {"identifiability": readout.identifiability_by_chance(classes), "rises": 0.5}
    told = []
    for i in range(len(written.values)):
        row: Json = {"block": i}
        for name, what in (("class_value", "agrees"), ("attention_class_value", "attention_agrees")):
            if values[what]:
                row[name] = dataclasses.asdict(readout.class_value(values[what][i], written.head, SEED + i))
        for name in MEASURES:
            if name in chance or values[name]:
                row[name] = {read: _mean(sums[f"{i}.{name}.{read}"], n) for read in reads}
                row[name]["chance"] = chance[name] if name in chance else readout.agrees_by_chance(len(values[name][i]))
        told.append(row)
    looking.told["readout"] = {"images": n, "classes": classes, "top": readout.TOP, "blocks": told}


def _attention(written: alignment.Written) -> list[Tensor]:
    """What the dimensions of every block's mixed values write, or nothing where an attention is not what its class says."""
    if written.parts.changed:
        return []
    return [written.parts.mixed_columns(i).detach() for i in range(len(written.values))]


def _mean(sums: np.ndarray, n: int) -> Json:
    """The mean over images and its standard error, from the sum and the sum of squares."""
    mean = float(sums[0]) / n
    spread = max(float(sums[1]) / n - mean**2, 0.0)
    return {"value": mean, "standard_error": (spread / (n - 1)) ** 0.5 if n > 1 else None}


def _sums(looking: Looking, top: Values, reads: Sequence[str]) -> Columns:
    """Per block, measure and place the sum over images and that of squares, [2]."""
    run = looking.run
    work = functools.partial(_looked, run, looking.index, top, reads, passes.batch_of(run))
    job = passes.job(looking, "readout", work, ["readout", readout.TOP, list(reads)])
    total: Columns = {}
    for columns in run.executor.run(job, passes.folder_of(looking, "readout")):
        total = {name: total[name] + column for name, column in columns.items()} if total else dict(columns)
    return total


def _looked(run: Run, index: np.ndarray, top: Values, reads: Sequence[str], batch: int, item: Sequence[int]) -> Columns:
    made: Columns = {}
    prefix = families.token_layout(run.loaded.model).prefix
    for at in range(item[0], item[1], batch):
        ids = index[at : min(at + batch, item[1])]
        x, _ = next(run.images.batches(ids, batch))
        labels = torch.from_numpy(run.images.labels[ids]).to(run.device)
        found = _measured(run, x.to(run.device), top, labels)
        for (i, name), value in found.items():
            for read in reads:
                one = value[:, 0] if read == "class" else value[:, prefix:].mean(1)
                key, more = f"{i}.{name}.{read}", torch.stack([one.sum(), (one**2).sum()]).cpu().numpy()
                made[key] = made[key] + more if key in made else more
    return made


@torch.no_grad()
def _measured(run: Run, x: Tensor, top: Values, labels: Tensor) -> dict[tuple[int, str], Tensor]:
    """(block, measure) → its value at every token, [B, T]."""
    model, blocks = run.loaded.model, [f"blocks.{i}" for i in range(len(run.sites))]
    stream: dict[int, Tensor] = {}
    found: dict[tuple[int, str], Tensor] = {}

    def enters(position: int, z: Tensor) -> None:
        if position == 0:
            stream[0] = z

    def leaves(position: int, z: Tensor) -> None:
        stream[position + 1] = z

    def keys(what: str, position: int, before: Tensor) -> None:
        found[position, what] = readout.agrees(before, top[what][position], labels).double()

    mixed = [f"{block}.attn.proj" for block in blocks] if top["attention_agrees"] else []
    with (
        hooks.layers(model, blocks, read=enters, written=leaves),
        hooks.layers(model, [site.act for site in run.sites], read=functools.partial(keys, "agrees")),
        hooks.layers(model, mixed, read=functools.partial(keys, "attention_agrees")),
    ):
        model(x)
    step = max(1, LARGEST // (stream[0].shape[1] * run.loaded.outputs))
    for at in range(0, len(x), step):
        some = slice(at, at + step)
        before = alignment.read(model, stream[0][some])
        for i in range(len(blocks)):
            if not bool(torch.isfinite(stream[i + 1][some]).all()):
                raise UserError(f"see: block {i} gives values that are not finite; check the model's weights")
            after = alignment.read(model, stream[i + 1][some])
            _join(found, (i, "identifiability"), readout.identifiability(after, labels[some]))
            _join(found, (i, "rises"), readout.rises(before, after, labels[some]).double())
            before = after
    return found


def _join(found: dict[tuple[int, str], Tensor], key: tuple[int, str], more: Tensor) -> None:
    found[key] = torch.cat([found[key], more]) if key in found else more
