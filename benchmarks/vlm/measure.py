"""The small LLaVA of `build.py` examined, its units typed, and pruned for real: figures for docs/vlm.md.

    python benchmarks/vlm/measure.py MODEL --data /usr/share/datasets/fashion-mnist --out benchmarks/results/vlm.json

Right: the most likely of the ten words' first tokens, which differ, behind " a"; over the first `--test` test images. NLL:
nats per text token with the right, another and no image and of the text alone, over the first `--nll` of them. All is chosen
on images of the training part from the 10,000th on, which build.py trains no projector with. Types are of longer texts,
" a boot. It is dark, tall and plain.", with words that follow from the pixels, so that "text" is not just where the answer
stands. A row that is in OUT already, of the same settings, is not measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from build import TEXTS, sample  # beside this file
from torch import Tensor

from vitprune.criteria.curves import Curve
from vitprune.exam import by_modality
from vitprune.images.sources.idx import read_idx
from vitprune.model.vlm import dead, opening, sites, tokens
from vitprune.model.vlm.tokens import Sample
from vitprune.pruning.plan import Plan
from vitprune.pruning.vlm import choosing, costs, repair
from vitprune.see.types import rules, typing

FROM, BATCH = 10_000, 16


def described(pixels: np.ndarray, text: str) -> str:
    """A longer text of which every word follows from the image."""
    on = pixels > 20
    rows, columns = int(on.any(1).sum()), int(on.any(0).sum())
    words = ["dark" if pixels[on].mean() < 110 else "bright" if pixels[on].mean() > 160 else "grey"]
    words.append("tall" if rows > 1.3 * columns else "wide" if columns > 1.3 * rows else "square")
    words.append("plain" if pixels[on].std() < 45 else "patterned")
    return f"{text} It is {words[0]}, {words[1]} and {words[2]}."


def first_words(vlm: opening.Vlm) -> list[int]:
    """The first token of each class's word behind " a"."""
    found = [vlm.preparer.ids_of(text)[1] for text in TEXTS]
    assert len(set(found)) == len(found), "two classes begin with one token"
    return found


@torch.no_grad()
def right(vlm: opening.Vlm, model: Any, samples: Sequence[Sample], labels: np.ndarray) -> float:
    """The share of samples whose class is the most likely of the ten."""
    words, hits = torch.tensor(first_words(vlm)), 0
    for places, batch in tokens.batches(samples, vlm.config, BATCH):
        logits, _ = tokens.text_logits(model, batch)
        lengths = torch.tensor([len(samples[i].ids) - samples[i].start for i in places])
        second = lengths.cumsum(0) - lengths + 1  # behind the token " a"
        said = logits[second][:, words].argmax(1).numpy()
        hits += int((said == labels[places.start : places.stop]).sum())
    return hits / len(samples)


class Measured:
    """The figures so far, written after each."""

    def __init__(self, out: Path, settings: dict[str, int]) -> None:
        self.out, self.settings = out, settings
        known = json.loads(out.read_text()) if out.exists() else {}
        self.content: Any = known if known.get("settings") == settings else {"settings": settings, "rows": {}}

    def row(self, name: str, make: Any) -> None:
        """Measure a row that is not there yet."""
        if name in self.content["rows"]:
            return
        wall, own = time.time(), time.process_time()
        self.content["rows"][name] = make() | {
            "wall_s": round(time.time() - wall, 1), "processor_s": round(time.process_time() - own, 1)
        }  # fmt: skip
        self.out.write_text(json.dumps(self.content, indent=1) + "\n")
        print(name, json.dumps(self.content["rows"][name]), flush=True)


def typed(vlm: opening.Vlm, samples: list[Sample], measured: Measured) -> dict[str, Tensor]:
    """The types by the default rule; shares of every rule are written down."""
    every, own = sites.ffns(vlm.model, "language"), time.process_time()
    found = typing.types_of(vlm.model, every, samples, batch=BATCH)
    blocks = [site.name for site in every]
    measured.content["types"] = {
        rule: {
            "stability": round(found.stability(rule), 4),
            "shares": dict(
                zip(rules.TYPES, np.round(np.mean(list(found.shares(rule).values()), 0), 4).tolist(), strict=True)
            ),
            "by_layer": [np.round(found.shares(rule)[name], 3).tolist() for name in blocks],
        }
        for rule in rules.RULES
    } | {
        "samples": found.samples,
        "at_sink": round(float(torch.cat([v.at_sink for v in found.verdicts.values()]).double().mean()), 4),
        "processor_s": round(time.process_time() - own, 1),
    }
    return found.labels["test"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--nll", type=int, default=100)
    parser.add_argument("--probe", type=int, default=160)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument(
        "--vision", action="store_true", help="also half of the vision units, which costs the curves of these"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    measured = Measured(args.out, {"test": args.test, "nll": args.nll, "probe": args.probe})
    vlm = opening.open_vlm(args.model)
    parts = [
        read_idx(args.data / f"{part}-{kind}.gz")
        for part in ("train", "t10k")
        for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
    ]
    probe, probe_labels = parts[0][FROM : FROM + args.probe], parts[1][FROM : FROM + args.probe]
    test, labels = parts[2][: args.test], parts[3][: args.test]
    make = lambda pixels, text: sample(vlm.preparer, pixels, text)  # noqa: E731
    exam = [make(x, TEXTS[y]) for x, y in zip(test, labels, strict=True)]
    learned = [make(x, described(x, TEXTS[y])) for x, y in zip(probe, probe_labels, strict=True)]
    short = [make(x, TEXTS[y]) for x, y in zip(probe, probe_labels, strict=True)]
    others = [next(j for j in range(i + 1, len(test)) if labels[j] != labels[i]) for i in range(args.nll)]
    image, first = tokens.image_token(vlm.config), min(tokens.first_tokens(vlm.config))
    few = exam[: args.nll]
    ways = {
        "right": few,
        "shuffled": [make(test[j], TEXTS[labels[i]]) for i, j in enumerate(others)],
        "none": [Sample(s.ids[s.ids != image], int((s.ids[: s.start] != image).sum())) for s in few],
        "alone": [Sample(torch.cat([torch.tensor([first]), s.ids[s.start :]]), 1) for s in few],
    }

    def examined(model: Any) -> dict[str, Any]:
        found = by_modality.examine(model, ways, BATCH).mean
        return {"right": round(right(vlm, model, exam, labels), 4), "nll": {k: round(v, 3) for k, v in found.items()}}

    measured.row("intact", lambda: examined(vlm.model))
    batches = [batch for _, batch in tokens.batches(short, vlm.config, BATCH)]
    silent = dead.dead_blocks(vlm.model, batches[0])
    measured.content["dead_vision_blocks"] = silent
    vision = [site for site in sites.ffns(vlm.model, "vision") if site.block not in silent]
    every = [*sites.ffns(vlm.model, "language"), *(vision if args.vision else [])]
    own = time.process_time()
    curves = dict(zip([s.name for s in every], costs.fisher_obs(vlm.model, every, batches), strict=True))
    measured.content["fisher_processor_s"] = round(time.process_time() - own, 1)
    print("costs", measured.content["fisher_processor_s"], flush=True)
    of_vision = {s.name: curves[s.name] for s in vision if s.name in curves}
    of_language = {name: curve for name, curve in curves.items() if name not in of_vision}

    def pruned(plan: Plan, how: str) -> dict[str, Any]:
        model = choosing.cut(vlm.model, plan)
        repair.repair(vlm.model, model, plan, batches, how)  # type: ignore[arg-type]
        return examined(model) | {"parameters": sum(p.numel() for p in model.parameters())}

    def rows(name: str, some: dict[str, Curve], keep: float, draws: int) -> None:
        plan = choosing.by_cost(some, keep)
        measured.row(f"{name}, fisher-obs, layerwise", lambda: pruned(plan, "layerwise"))
        for seed in range(draws):
            measured.row(
                f"{name}, random {seed}, layerwise", lambda s=seed: pruned(choosing.at_random(plan, s), "layerwise")
            )

    rows("language 0.75", of_language, 0.75, min(1, args.draws))
    types = typed(vlm, learned, measured)
    by_type = choosing.by_type(of_language, types, 0.75, ["multimodal", "visual"])
    measured.row("language 0.75, modality-types, layerwise", lambda: pruned(by_type, "layerwise"))
    rows("language 0.5", of_language, 0.5, min(1, args.draws))
    if of_vision:
        rows("vision 0.5", of_vision, 0.5, min(1, args.draws))
    rows("language 0.75", of_language, 0.75, args.draws)
    quarter = choosing.by_cost(of_language, 0.75)
    for how in ("none", "affine"):
        measured.row(f"language 0.75, fisher-obs, {how}", lambda h=how: pruned(quarter, h))
    measured.out.write_text(json.dumps(measured.content, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
