"""The part `stimuli`: images made for the classes' top units and, as the control, for as many random units.

A random unit of the same block is judged for the class that it writes most itself. The model's own verdict, the slim
models' and a judge's stand side by side, with intervals: an image that only its own model recognises shows nothing.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from vitprune.core.files import replacing
from vitprune.core.reading import Json
from vitprune.images.preprocess import Preprocessing
from vitprune.model import classifier, families
from vitprune.model.load import opening
from vitprune.recipe.inputs import Model
from vitprune.runs.engine.base import Columns, Job
from vitprune.runs.seeing import passes, targets
from vitprune.runs.seeing.looking import Looking
from vitprune.runs.stages.image_scores import digest_of
from vitprune.runs.stages.versions import version
from vitprune.runs.state.run import Run
from vitprune.see.pictures import drawing
from vitprune.see.pictures.stimuli import ascent, objective, verdicts
from vitprune.see.pictures.stimuli.ascent import Settings, Stimulus
from vitprune.see.pictures.stimuli.objective import Target
from vitprune.see.pictures.stimuli.space import Space

MOST, LIGHT = 10, 400_000_000  # images of a pass on a processor: so many, of so many multiply-adds together at most
AT_ONCE = 16  # elsewhere
EDGE = 112
Wanted = list[tuple[Target, int]]


def work(looking: Looking) -> None:
    """Nothing; a PNG per unit, and in see.json who gives the images the class of their unit."""
    how = looking.see.stimuli
    outputs = targets.classes(looking, how.classes)
    best = targets.tops(looking, outputs, targets.carrying(looking), how.top)
    top = [
        objective.mixed([(u.block, u.unit) for u in units[: how.top]], [u.value for u in units[: how.top]], how.mix, c)
        for c, units in zip(outputs, best, strict=False)
        if units
    ]
    if not top:
        looking.told["stimuli"] = {"note": "no block carries classes: no unit to make an image for"}
        return
    space = _space(looking)
    made = {name: _made(looking, found, space) for name, found in (("top", top), ("random", _random(looking, top)))}
    told: Json = {
        **how.model_dump(),
        "tokens": looking.see.stimuli_tokens,
        "chance": 1 / looking.run.loaded.outputs,
        "rates": _rates(looking, made, space),
    }
    own = {
        name: verdicts.rate(found, verdicts.own_verdicts(looking.model, found, space)) for name, found in made.items()
    }
    told["top_against_random_p"] = verdicts.apart(own["top"], own["random"])
    told["units"] = [row for name, found in made.items() for row in _rows(looking, name, found, space)]
    looking.told["stimuli"] = told


def _random(looking: Looking, top: list[Target]) -> list[Target]:
    """As many random units, each of the block of a top one, with the class that it writes most."""
    generator = np.random.default_rng([looking.see.units.seed, len(top)])
    found = []
    for target in top:
        block = target.units[0][0]
        alive = np.flatnonzero(looking.left["writes"][block][:, 0] >= 0)
        unit = int(generator.choice(alive))
        found.append(Target(((block, unit),), output=int(looking.left["writes"][block][unit, 0])))
    return found


def _space(looking: Looking) -> Space:
    run, prepared = looking.run, Preprocessing.of(looking.run.loaded.data_config)
    batches = (x for x, _ in run.images.batches(looking.index, passes.batch_of(run)))
    return Space.of(prepared.mean, prepared.std, batches)


def _made(looking: Looking, found: list[Target], space: Space) -> list[Stimulus]:
    """The images, one after the other; those of one unit together where they are kept apart from each other."""
    run, how = looking.run, looking.see.stimuli
    once = max(1, min(MOST, LIGHT // run.dense_macs)) if run.device.type == "cpu" else AT_ONCE
    settings = Settings(how.method, how.steps, how.activation, looking.see.stimuli_tokens, how.diversity, at_once=once)
    wanted: Wanted = [(target, seed) for target in found for seed in range(how.seeds)]
    each = how.seeds if how.diversity else once
    items = [[at, min(at + each, len(wanted))] for at in range(0, len(wanted), each)]
    known: Json = {"model": run.model_digest, "code": version("see"), "device": run.device.type}
    known |= {"how": dataclasses.asdict(settings), "wanted": [[t.name, t.weights, seed] for t, seed in wanted]}
    about = digest_of(looking.index, known | {"data": run.data_digest})
    job = Job("see-stimuli", items, functools.partial(_climbed, run, wanted, space, settings), about)
    made: list[Stimulus] = []
    parts = run.executor.run(job, passes.folder_of(looking, "stimuli"))
    for columns in run.reporter.track(parts, "see stimuli", len(wanted), each):
        for pixels, value, fine in zip(columns["pixels"], columns["value"], columns["fine"], strict=True):
            target, seed = wanted[len(made)]
            whole = Stimulus(target, seed, pixels, float(value))
            made.append(whole if fine else Stimulus(target, seed, None, None, ascent.FAILED))
    return made


def _climbed(run: Run, wanted: Wanted, space: Space, settings: Settings, item: Sequence[int]) -> Columns:
    part = wanted[item[0] : item[1]]
    found = list(ascent.make(run.loaded.model, run.sites, part, space.to(run.device), settings))
    channels, height, width = space.shape
    nothing = np.zeros((height, width, channels), np.uint8)
    return {
        "pixels": np.stack([nothing if one.pixels is None else one.pixels for one in found]),
        "value": np.array([np.nan if one.value is None else one.value for one in found]),
        "fine": np.array([one.failed is None for one in found]),
    }


def _rates(looking: Looking, made: dict[str, list[Stimulus]], space: Space) -> Json:
    """Who gives how many of the images the class of their unit: the model, its slim models, and a judge."""
    rates: Json = {}
    on = space.to(looking.run.device)
    for name, found in made.items():
        rates[name] = {"own": _told(verdicts.rate(found, verdicts.own_verdicts(looking.model, found, on)))}
        for group in looking.kept:
            slim = looking.slim(group)
            if classifier.outputs(slim) == looking.run.loaded.outputs:
                seen = verdicts.own_verdicts(slim, found, on)
                rates[name][f"slim {group}" if group else "slim"] = _told(verdicts.rate(found, seen))
    if looking.see.stimuli.judge is not None:
        judge = opening.open_model(Model(name=looking.see.stimuli.judge), looking.run.device)
        names = judge.labels or []
        own = [looking.name(c) for c in range(looking.run.loaded.outputs)]
        output_of = [names.index(one) if one in names else None for one in own] if names else list(range(len(own)))
        for name, found in made.items():
            seen = verdicts.judged(judge.model, found, judge.transform(), families.input_shape(judge.model)[0])
            rates[name]["judge"] = _told(verdicts.rate(found, seen, output_of))
    return rates


def _told(rate: verdicts.Rate) -> Json:
    return {"share": rate.share, "right": rate.right, "n": rate.n, "ci95": [rate.low, rate.high], "failed": rate.failed}


def _rows(looking: Looking, name: str, found: list[Stimulus], space: Space) -> list[Json]:
    """Per unit its images side by side as a PNG, and what the model says of each."""
    on = space.to(looking.run.device)
    seen = verdicts.own_verdicts(looking.model, found, on)
    rows: list[Json] = []
    for at in range(0, len(found), looking.see.stimuli.seeds):
        part = found[at : at + looking.see.stimuli.seeds]
        target = part[0].target
        shown = [np.repeat(s.pixels, 3 // s.pixels.shape[2], 2) for s in part if s.pixels is not None]
        picture = None
        if shown:
            path = looking.folder / "stimuli" / f"{target.name.replace(':', '-')}-{name}-{target.output}.png"
            with replacing(path) as temporary:
                temporary.write_bytes(drawing.png(drawing.side_by_side([drawing.at_most(one, EDGE) for one in shown])))
            looking.files.append(path)
            picture = path.relative_to(looking.run.folder.root).as_posix()
        verdict = [None if v is None else looking.name(v) for v in seen[at : at + len(part)]]
        row: Json = {"unit": target.name, "kind": name, "picture": picture, "seen_as": verdict}
        row["class"] = None if target.output is None else looking.name(target.output)
        rows.append(row | {"values": [s.value for s in part], "failed": sum(s.failed is not None for s in part)})
    return rows
