"""Trial of the whole model in one budget (temporary): KL from dense and loss of top-1 at several budgets.

    python benchmarks/whole_trial.py [--model DIR] [--data DIR] [--calibrate N] [--judge N] [--test] [--seed S]
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from vitprune.criteria.statistics import attention as stats
from vitprune.criteria.statistics import elimination
from vitprune.criteria.statistics.attention_curve import curve
from vitprune.criteria.statistics.fisher_obs import columns, root
from vitprune.criteria.statistics.ranks import ranks
from vitprune.images.batches import Images
from vitprune.images.sources.opening import open_path
from vitprune.images.split import split_per_class
from vitprune.images.sources.bundled import Bundled
from vitprune.model import families
from vitprune.model.inside import pieces
from vitprune.model.load import opening
from vitprune.model.sites.attention import attention_sites
from vitprune.model.sites.base import keep_units
from vitprune.model.sites.ffn import linear
from vitprune.model.tokens import tokens_read
from vitprune.pruning import slim_attention, whole
from vitprune.pruning.repair import layerwise
from vitprune.recipe.parse import parse


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--model")
    p.add_argument("--data")
    p.add_argument("--calibrate", type=int, default=2000)
    p.add_argument("--judge", type=int, default=2000)
    p.add_argument("--test", action="store_true")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--budgets", type=float, nargs="*", default=[0.5, 0.33, 0.25, 0.2, 0.1])
    p.add_argument("--shortcut", action="store_true")
    p.add_argument("--cache")
    args = p.parse_args()
    spec = parse("name: t").model.model_copy(update={"name": f"local-dir:{args.model}" if args.model else "bundled"})
    loaded = opening.open_model(spec, torch.device("cpu"))
    dense = loaded.model
    source = open_path(Path(args.data), "data") if args.data else Bundled()
    names = [source.classes.index(n) for n in loaded.labels] if loaded.labels else range(len(source.classes))
    output = np.empty(len(source.classes), np.int64)
    for i, c in enumerate(names):
        output[c] = i
    images = Images(source, loaded.transform(), families.input_shape(dense)[0], output)
    split = split_per_class(source.class_of, source.classes, seed=args.seed, probe=0.8)
    probe = np.random.default_rng(args.seed).permutation(split.probe)
    calibration = probe[: args.calibrate]
    judge = split.test if args.test else probe[args.calibrate : args.calibrate + args.judge]
    print(len(calibration), "to calibrate,", len(judge), "to judge", flush=True)

    ffns, attns = families.ffn_sites(dense), attention_sites(dense)
    size = pieces.size(pieces.footprint(dense, ffns), torch.device("cpu"))
    t = time.time()
    cache = Path(args.cache) if args.cache else None
    if cache and cache.is_file():
        f, a, r = torch.load(cache, weights_only=False)
    else:
        f, a = stats.statistics(dense, ffns, attns, lambda: images.batches(calibration, size), 0)
        print(f"moments {time.time() - t:.1f} s", flush=True)
        t = time.time()
        r = ranks(dense, attns, a, (x for x, _ in images.batches(calibration, size)))
        print(f"ranks {time.time() - t:.1f} s", flush=True)
        if cache:
            torch.save((f, a, r), cache)
    t = time.time()
    curves = [curve(s, linear(dense, s.proj).weight.double(), m, x) for s, m, x in zip(attns, a, r, strict=True)]
    print(f"attention curves {time.time() - t:.1f} s", flush=True)
    t = time.time()
    orders = [elimination.eliminate(root(m.fisher) @ columns(dense, s), m.covariance) for s, m in zip(ffns, f, strict=True)]
    print(f"ffn curves {time.time() - t:.1f} s", flush=True)

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        dense(torch.zeros(1, *families.input_shape(dense)))
    total, width, tokens = counter.get_total_flops() / 2, dense.embed_dim, a[0].tokens
    reads = [len(range(tokens)[tokens_read(dense)]) if args.shortcut and i == len(ffns) - 1 else tokens for i in range(len(ffns))]
    rest = total - sum(s.macs(width, tokens, tokens, s.heads, s.dim) + 2 * tokens * width * g.size for s, g in zip(attns, ffns))
    options = []
    for c, read in zip(curves, reads):
        table = c.table()
        options.append(whole.Options(list(table), np.array(list(table.values())),
                       np.array([c.site.macs(width, tokens, read, *o) for o in table], float)))
    for s, m, (_, costs), read in zip(ffns, f, orders, reads):
        gone = 0.5 * m.tokens * np.concatenate([[0.0], np.maximum.accumulate(costs.numpy()).cumsum()])
        ks = np.arange(1, s.size + 1)
        options.append(whole.Options(ks.tolist(), gone[s.size - ks], 2.0 * read * width * ks))
    dense_p, labels = logits(dense, images, judge, size)
    kept: Any = {}
    for budget in args.budgets:
        t = time.time()
        picked = [o.sizes[i] for o, i in zip(options, whole.allocate(options, budget * total - rest))]
        predicted = sum(o.costs[list(o.sizes).index(x)] for o, x in zip(options, picked))
        slim = copy.deepcopy(dense)
        for c, (h, d) in zip(curves, picked):
            slim_attention.write(slim, c, h, d)
        for s, (order, _), k in zip(ffns, orders, picked[len(attns):]):
            keep_units(slim, s, order[s.size - k:].sort().values)
        before, _ = logits(slim, images, judge, size)
        layerwise.repair(slim, dense, (x for x, _ in images.batches(calibration, 64)), attention=True, kept=kept)
        after, _ = logits(slim, images, judge, size)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            slim(torch.zeros(1, *families.input_shape(dense)))
        kl = lambda p: float((dense_p.softmax(1) * (dense_p.log_softmax(1) - p.log_softmax(1))).sum(1).mean())
        loss = lambda p: 100 * float((dense_p.argmax(1) == labels).double().mean() - (p.argmax(1) == labels).double().mean())
        print(json.dumps({"macs": budget, "ratio": round(counter.get_total_flops() / 2 / total, 4), "predicted": round(predicted, 5),
              "kl": round(kl(after), 5), "loss": round(loss(after), 2), "unrepaired_kl": round(kl(before), 4),
              "s": round(time.time() - t, 1)}), flush=True)
        print("   ", picked, flush=True)


@torch.no_grad()
def logits(model: Any, images: Images, index: np.ndarray, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    found = [(model(x).double(), y) for x, y in images.batches(index, size)]
    return torch.cat([x for x, _ in found]), torch.cat([y for _, y in found])


main()
