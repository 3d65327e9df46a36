"""The small LLaVA of `build.py` examined, its units typed, and pruned for real: figures for docs/vlm.md.

    python benchmarks/vlm/measure.py MODEL --data /usr/share/datasets/fashion-mnist --work WORK --out OUT.json

Right: the most likely of the ten words' first tokens, which differ, behind " a"; over the first `--test` test images. NLL:
nats per text token with the right, another and no image and of the text alone, over the first `--nll` of them. All is chosen
on images of the training part from the 10,000th on, which build.py trains no projector with. Types are of longer texts,
" a boot. It is dark, tall and plain.", with words that follow from the pixels, so that "text" is not just where the answer
stands. A row that is in OUT already, of the same settings, is not measured again.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from build import TEXTS, sample  # beside this file
from safetensors.torch import load_file, save_file
from torch import Tensor

from vitprune.api.vlm import tables
from vitprune.api.vlm.recipe import See, Units
from vitprune.api.vlm.units import explaining
from vitprune.api.vlm.units.looked import Looked
from vitprune.core.progress import Reporter
from vitprune.criteria.curves import Curve
from vitprune.exam import by_modality
from vitprune.images.sources.idx import read_idx
from vitprune.model.sites.ffn import FfnSite
from vitprune.model.vlm import dead, opening, sites, tokens
from vitprune.model.vlm.pairs import Pair
from vitprune.model.vlm.tokens import Batch, Sample
from vitprune.pruning.plan import Plan
from vitprune.pruning.vlm import choosing, costs, repair
from vitprune.see.types import rules, shown, typing, watching

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
    """The figures so far, written after each; several processes may each add rows of their own (`--only`)."""

    def __init__(self, out: Path, lock: Path, settings: dict[str, int], only: str) -> None:
        self.out, self.lock, self.settings, self.only = out, lock, settings, only

    @property
    def content(self) -> Any:
        """What is there, of the same settings."""
        known = json.loads(self.out.read_text()) if self.out.exists() else {}
        return known if known.get("settings") == self.settings else {"settings": self.settings, "rows": {}}

    def put(self, **more: Any) -> None:
        """Add to what is there; rows join those that are there."""
        with self.lock.open("w") as one:
            fcntl.flock(one, fcntl.LOCK_EX)
            known = self.content
            more["rows"] = known["rows"] | more.get("rows", {})
            self.out.write_text(json.dumps(known | more, indent=1) + "\n")

    def row(self, name: str, make: Any) -> None:
        """Measure a row that is asked for and not there yet."""
        if name in self.content["rows"] or not re.search(self.only, name):
            return
        own = time.process_time()
        made = make() | {"processor_s": round(time.process_time() - own, 1)}
        self.put(rows={name: made})
        print(name, json.dumps(made), flush=True)


def kept(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors from a file of the work folder, made when they are not there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(make(), path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)
    return load_file(path)


def typed(vlm: opening.Vlm, samples: list[Sample], measured: Measured, key: str) -> dict[str, Tensor]:
    """The types by the default rule; shares of every rule are written down under `key`."""
    every, own = sites.ffns(vlm.model, "language"), time.process_time()
    found = typing.types_of(vlm.model, every, samples, batch=BATCH)
    blocks = [site.name for site in every]
    content: Any = {
        rule: {
            "stability": round(found.stability(rule), 4),
            "shares": dict(
                zip(rules.TYPES, np.round(np.mean(list(found.shares(rule).values()), 0), 4).tolist(), strict=True)
            ),
            "by_layer": [np.round(found.shares(rule)[name], 3).tolist() for name in blocks],
        }
        for rule in rules.RULES
    }
    content["samples"] = found.samples
    content["at_sink"] = round(float(torch.cat([v.at_sink for v in found.verdicts.values()]).double().mean()), 4)
    measured.put(**{key: content | {"processor_s": round(time.process_time() - own, 1)}})
    print(key, json.dumps({r: content[r]["shares"] for r in rules.RULES}), flush=True)
    return found.labels["test"]


def explained_units(vlm: opening.Vlm, samples: list[Sample], texts: Sequence[str], work: Path) -> dict[str, Any]:
    """How well words and tokens tell what 20 units of each type do on pairs that they were not made from, beside other units'
    explanations."""
    every = sites.ffns(vlm.model, "language")
    types = tables.units(typing.types_of(vlm.model, every, samples, batch=BATCH), every, "test")
    see = See(units=Units(per_type=20))
    units = shown.shown(shown.rows_of(types), see.units.per_type, see.units.seed)
    found = watching.watched(vlm.model, every, units, samples, "gate", BATCH)
    pairs = [Pair(Path(f"{n}.png"), text, None, str(n)) for n, text in enumerate(texts)]
    made = explaining.explained(Looked(vlm, see, pairs, samples, units, found), work / "see", Reporter(quiet=True))
    told = made["simulator"]["words"]
    each = {row["unit"]: row["score"] for kind in told.values() for row in kind["units"]}
    names = [[row["unit"], row["type"], row["chosen"], row["name"], each.get(row["unit"])] for row in made["units"]]
    medians = {kind: {key: rounded(one[key]) for key in ("median", "control", "n")} for kind, one in told.items()}
    return {"pairs": made["pairs"], **medians, "named": sum(bool(row[3]) for row in names), "units": names}


def rounded(value: float | None) -> float | None:
    """Four digits, which are more than enough."""
    return None if value is None else round(value, 4)


def costed(
    vlm: opening.Vlm, of: Sequence[FfnSite], batches: Sequence[Batch], measured: Measured, tower: str
) -> dict[str, Tensor]:
    """Order and costs of every site."""
    own = time.process_time()
    curves = costs.fisher_obs(vlm.model, of, batches)
    took = round(time.process_time() - own, 1)
    measured.put(**{f"costs_{tower}_processor_s": took})
    print("costs", tower, took, flush=True)
    parts = {f"order.{site.name}": curve.order for site, curve in zip(of, curves, strict=True)}
    return parts | {f"costs.{site.name}": curve.costs for site, curve in zip(of, curves, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--nll", type=int, default=100)
    parser.add_argument("--probe", type=int, default=160)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--work", type=Path, required=True, help="where costs and types are kept")
    parser.add_argument(
        "--only", default="", help="rows whose names this expression finds; several processes may share OUT"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    measured = Measured(
        args.out, args.work / "lock", {"test": args.test, "nll": args.nll, "probe": args.probe}, args.only
    )
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
    measured.put(dead_vision_blocks=silent)
    of_language = sites.ffns(vlm.model, "language")
    of_vision = [site for site in sites.ffns(vlm.model, "vision") if site.block not in silent]

    def curves(of: Sequence[FfnSite], name: str) -> dict[str, Curve]:
        parts = kept(args.work / f"{name}-{args.probe}.safetensors", lambda: costed(vlm, of, batches, measured, name))
        return {s.name: Curve(parts[f"order.{s.name}"], parts[f"costs.{s.name}"], "nats per image") for s in of}

    def pruned(make: Callable[[], Plan], how: str = "layerwise") -> dict[str, Any]:
        plan = make()
        model = choosing.cut(vlm.model, plan)
        repair.repair(vlm.model, model, plan, batches, how)  # type: ignore[arg-type]
        return examined(model) | {"parameters": sum(p.numel() for p in model.parameters())}

    def at_random(of: Sequence[FfnSite], keep: float, seed: int) -> Plan:
        whole = {site.name: torch.arange(site.size) < keep * site.size for site in of}
        return choosing.at_random(Plan(whole), seed)

    def types(name: str, of: list[Sample]) -> dict[str, Tensor]:
        return kept(args.work / f"{name}-{args.probe}.safetensors", lambda: typed(vlm, of, measured, name))

    def by_type() -> Plan:
        long, brief = types("types", learned), types("types_of_short_texts", short)
        same = torch.cat([long[name] == brief[name] for name in long]).double().mean()
        measured.put(types_same_by_short_texts=round(float(same), 4))
        return choosing.by_type(curves(of_language, "language"), long, 0.75, ["multimodal", "visual"])

    def of_draw(draw: int) -> None:
        for name, of, keep in (
            ("language 0.75", of_language, 0.75), ("language 0.5", of_language, 0.5), ("vision 0.5", of_vision, 0.5)
        ):  # fmt: skip
            tower = name.split()[0]
            if draw == 0:
                plan = lambda o=of, k=keep, t=tower: choosing.by_cost(curves(o, t), k)  # noqa: E731
                measured.row(f"{name}, fisher-obs", lambda p=plan: pruned(p))
            measured.row(f"{name}, random {draw}", lambda o=of, k=keep, d=draw: pruned(lambda: at_random(o, k, d)))

    of_draw(0)  # draw by draw, so that a run that is cut short has one of each
    texts = [described(x, TEXTS[y]) for x, y in zip(probe, probe_labels, strict=True)]
    measured.row("units explained", lambda: explained_units(vlm, learned, texts, args.work))
    measured.row("language 0.75, modality-types", lambda: pruned(by_type))
    for how in ("none", "affine"):
        plan = lambda: choosing.by_cost(curves(of_language, "language"), 0.75)  # noqa: E731
        measured.row(f"language 0.75, fisher-obs, {how}", lambda h=how, p=plan: pruned(p, h))
    measured.row("language 0.75, random 0, none", lambda: pruned(lambda: at_random(of_language, 0.75, 0), "none"))
    for draw in range(1, args.draws):
        of_draw(draw)


if __name__ == "__main__":
    sys.exit(main())
