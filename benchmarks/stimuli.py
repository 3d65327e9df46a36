"""Whether a model recognises the images that were made for its units: the bundled model, beside random units and a judge.

    python benchmarks/stimuli.py [--model NAME] [--classes 10] [--seeds 3] [--steps 150] [--judge local-dir:FOLDER]
                                 [--only NAME …] [--json FILE]

For every class its top unit by what the units write (`raw`, `normed`), the image judged by the model itself (chance: one in
as many as it has classes) and by a judge where one is given, whose classes have the same names. `random_last` and
`random_before` are the control: random units of the last block and the one before, each judged for its own most aligned
class. Bars: class token at least 0.45 and above all tokens; top units of the block before the last below 0.35, where the
null test finds no class evidence worth the name. With fewer images than the default, or another model, the bars are printed
and not held. A linear probe on finished features is the negative control: `--model local-dir:FOLDER --only class_token normed
--seeds 1 --steps 80`, whose classes are those of the bundled images.
The last line is one JSON object; exit 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitprune.core import device
from vitprune.criteria.settings import Nothing
from vitprune.criteria.weights.class_alignment import class_alignment
from vitprune.images.batches import Images
from vitprune.images.sources.bundled import Bundled
from vitprune.model import classifier, families
from vitprune.model.load import opening
from vitprune.model.load.loaded import Loaded
from vitprune.recipe import inputs
from vitprune.see.pictures.stimuli import ascent, verdicts
from vitprune.see.pictures.stimuli.ascent import Settings
from vitprune.see.pictures.stimuli.objective import Target
from vitprune.see.pictures.stimuli.space import Space

CLASS_TOKEN, BLOCK_BEFORE, PROBE, RANDOM = 0.45, 0.35, 40, 10
CASES: dict[str, dict[str, Any]] = {
    "class_token": {},
    "all_tokens": {"tokens": "all"},
    "random_last": {"units": "random"},
    "block_before": {"block": -2},
    "random_before": {"units": "random", "block": -2},
    "post": {"activation": "post"},
    "pixel": {"method": "pixel"},
    "maco": {"method": "maco"},
    "normed": {"form": "normed"},
}


def targets(scores: list[torch.Tensor], block: int, units: str, classes: int) -> list[Target]:
    """Top units of the classes, or random ones for the class they write most; scores [C, N] of every block."""
    place, found = block % len(scores), scores[block]
    if units == "random":
        drawn = np.random.default_rng(0).choice(found.shape[1], RANDOM, replace=False).tolist()
        return [Target(((place, j),), output=int(found[:, j].argmax())) for j in drawn]
    return [Target(((place, int(found[c].argmax())),), output=c) for c in range(min(classes, len(found)))]


def probe_images(loaded: Loaded, per_class: int) -> torch.Tensor:
    """The first images of every class of the bundled source, as the model is given them."""
    source = Bundled()
    index = np.concatenate([np.flatnonzero(source.class_of == c)[:per_class] for c in range(len(source.classes))])
    channels = families.input_shape(loaded.model)[0]
    images = Images(source, loaded.transform(), channels, np.arange(len(source.classes)))
    return next(images.batches(index, len(index)))[0]


def short(name: str) -> str:
    """The model's name without the place of its folder."""
    kind, _, place = name.partition(":")
    return Path(place).name if place else kind


def told(rate: verdicts.Rate) -> dict[str, Any]:
    return {"share": rate.share, **dataclasses.asdict(rate)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    for name, value in (("classes", 10), ("seeds", 3), ("steps", 150), ("at-once", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--model", default="bundled", help="by the words of model.name")
    parser.add_argument("--judge")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    args = parser.parse_args()
    loaded = opening.open_model(inputs.Model(name=args.model))
    judge = opening.open_model(inputs.Model(name=args.judge)) if args.judge else None
    sites = families.ffn_sites(loaded.model)
    scores = {form: class_alignment(loaded.model, sites, [], how=Nothing(), form=form) for form in ("raw", "normed")}
    config = loaded.data_config
    space = Space.of(config["mean"], config["std"], [probe_images(loaded, PROBE)])
    found: dict[str, Any] = {}
    rates: dict[str, verdicts.Rate] = {}
    for name in args.only:
        case = dict(CASES[name])
        own = targets(scores[case.pop("form", "raw")], case.pop("block", -1), case.pop("units", "top"), args.classes)
        wanted = [(target, seed) for target in own for seed in range(args.seeds)]
        start = time.perf_counter()
        how = Settings(steps=args.steps, at_once=args.at_once, **case)
        made = list(ascent.make(loaded.model, sites, wanted, space, how))
        rates[name] = verdicts.rate(made, verdicts.own_verdicts(loaded.model, made, space))
        found[name] = {"own": told(rates[name]), "seconds": time.perf_counter() - start}
        if judge is not None:
            names = judge.labels or []
            output_of = [names.index(label) if label in names else None for label in loaded.labels or []]
            seen = verdicts.judged(judge.model, made, judge.transform(), families.input_shape(judge.model)[0])
            found[name]["judge"] = told(verdicts.rate(made, seen, output_of))
        print(f"{name}: {json.dumps(found[name])}", file=sys.stderr, flush=True)
    if {"class_token", "random_last"} <= rates.keys():
        found["top_against_random_p"] = verdicts.apart(rates["class_token"], rates["random_last"])
    missed = held(rates)
    whole = (args.model, args.classes, args.seeds, args.steps) == ("bundled", 10, 3, 150)
    about = {"model": short(args.model), "judge": args.judge and short(args.judge)}
    about |= {"machine": device.machine(torch.device("cpu"))}
    about |= {"classes": args.classes, "seeds": args.seeds, "steps": args.steps, "at_once": args.at_once}
    text = json.dumps({**about, "chance": 1 / classifier.outputs(loaded.model), "cases": found, "missed": missed})
    if args.json:
        args.json.write_text(text + "\n")
    print(text)
    sys.exit(1 if whole and missed else 0)


def held(rates: dict[str, verdicts.Rate]) -> list[str]:
    """The bars that are missed, of those that were measured."""
    share = {name: rate.share or 0.0 for name, rate in rates.items()}
    missed = []
    if share.get("class_token", 1.0) < CLASS_TOKEN:
        missed.append(f"class token {share['class_token']:.2f} < {CLASS_TOKEN}")
    if {"class_token", "all_tokens"} <= share.keys() and share["class_token"] <= share["all_tokens"]:
        missed.append(f"class token {share['class_token']:.2f} <= all tokens {share['all_tokens']:.2f}")
    if share.get("block_before", 0.0) >= BLOCK_BEFORE:
        missed.append(f"block before the last {share['block_before']:.2f} >= {BLOCK_BEFORE}")
    return missed


if __name__ == "__main__":
    main()
