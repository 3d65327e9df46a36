"""Torch-Pruning's own ViT flow, one-shot, beside ours at the same multiply-adds, and its masks given our repair.

    python benchmarks/torch_pruning_vit.py [--model DIR --data DIR] [--quick] [--json FILE] [--work DIR]

Its flow is that of its timm example: a `MetaPruner` over FFN units and what is inside attention (the stream's width stays),
Taylor with the gradient of the labelled probe images, or the L2 norm of the weights, block by block (`local`) or with one
threshold (`global`), dimensions of heads alone (`dims`) or whole heads too (`heads`, by the same ratio). The ratio is
searched until the multiply-adds lie just above the budget, ours lie at most at it. Its models are timm's own attention of
H' heads and d' dimensions, so each is examined as it is and after our repair (`repaired`: unlabelled probe images,
√(d'/d) into the queries first). Every model is made before the test images are read. The last line is one JSON object.

The file's name is not the library's, which it would hide from everything that runs in this folder.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn
from whole import examined, kl, recipe_for

from vitprune.core.progress import Reporter
from vitprune.exam.metrics import mcnemar
from vitprune.images.split import first_per_class
from vitprune.model import families, size
from vitprune.model.sites import attention, base
from vitprune.model.sites.ffn import bias_of, linear
from vitprune.pruning.plan import Plan
from vitprune.pruning.whole import allocation
from vitprune.pruning.whole.pricing import Macs
from vitprune.runs import pipeline
from vitprune.runs.results.attention import of_file
from vitprune.runs.stages import score
from vitprune.runs.stages.prune import repaired, slimmed
from vitprune.runs.state.run import Run

BUDGETS = (0.5, 0.33)
SETTINGS = ("local dims", "local heads", "global dims", "global heads")
IMPORTANCES = {
    "taylor": lambda: tp.importance.GroupTaylorImportance(),
    "magnitude": lambda: tp.importance.GroupMagnitudeImportance(p=2),
}
OURS, NEAR, TRIES = "vitprune", 1.01, 9
Found = dict[str, Any]


def attend(self: Any, x: Tensor, **_: Any) -> Tensor:
    """timm's attention as Torch-Pruning's example rewrites it: no size is taken from the stream's."""
    n, t, _ = x.shape
    q, k, v = self.qkv(x).reshape(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    mixed = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
    return self.proj(mixed.transpose(1, 2).reshape(n, t, -1))


def gradients(run: Run, per_class: int) -> list[Tensor]:
    """The gradient of the mean cross-entropy of the labelled probe images, at every parameter."""
    model = run.loaded.model
    index = first_per_class(run.split.probe, run.source.class_of, per_class)
    weights = [w.requires_grad_(True) for w in model.parameters()]
    total = [torch.zeros_like(w) for w in weights]
    for x, y in run.images.batches(index, run.batching.batch):
        loss = F.cross_entropy(model(x.to(run.device)), y.to(run.device), reduction="sum")
        for sum_, part in zip(total, torch.autograd.grad(loss, weights), strict=True):
            sum_ += part / len(index)
    for w in weights:
        w.requires_grad_(False)
    return total


def pruned(dense: nn.Module, grads: list[Tensor], importance: str, setting: str, ratio: float) -> nn.Module | None:
    """Torch-Pruning's model at a ratio, by the flow of its example; None where it takes every head of a block."""
    model: Any = copy.deepcopy(dense)
    for w, g in zip(model.parameters(), grads, strict=True):
        w.requires_grad_(True)
        w.grad = g.clone()
    reach, parts = setting.split()
    heads, kept = {}, [model.head]
    for block in model.blocks:
        block.attn.forward = attend.__get__(block.attn)
        heads[block.attn.qkv] = block.attn.num_heads
        kept += [block.attn.proj, block.mlp.fc2]
    example = next(model.parameters()).new_zeros(1, *families.input_shape(dense))
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        pruner = tp.pruner.MetaPruner(
            model, example, importance=IMPORTANCES[importance](), global_pruning=reach == "global", pruning_ratio=ratio,
            ignored_layers=kept, num_heads=heads, prune_num_heads=parts == "heads", prune_head_dims=True,
            head_pruning_ratio=ratio if parts == "heads" else 0.0,
        )  # fmt: skip
        for group in pruner.step(interactive=True):
            group.prune()
    if any(pruner.num_heads[block.attn.qkv] < 1 for block in model.blocks):
        return None
    for block in model.blocks:
        block.attn.num_heads = pruner.num_heads[block.attn.qkv]
        block.attn.head_dim = block.attn.qkv.out_features // (3 * block.attn.num_heads)
    return model.eval().requires_grad_(False)  # type: ignore[no-any-return]


def rows_of(small: Tensor, large: Tensor) -> list[int]:
    """Which rows of `large` the rows of `small` are. Raises ValueError where one is none of them."""
    known = {row.numpy().tobytes(): i for i, row in enumerate(large)}
    found = [known.get(row.numpy().tobytes(), -1) for row in small]
    if -1 in found or len(set(found)) < len(found):
        raise ValueError("its rows cannot be told")
    return found


def read(dense: nn.Module, theirs: Any) -> tuple[nn.Module, Plan]:
    """Torch-Pruning's model in timm's own classes, and what it keeps of the FFNs. Raises ValueError where queries, keys
    and values do not keep the same dimensions."""
    model, keep = copy.deepcopy(dense), {}
    for site in families.ffn_sites(dense):
        units = torch.tensor(rows_of(linear(theirs, site.fc1).weight, linear(dense, site.fc1).weight))
        base.keep_units(model, site, units)
        keep[site.name] = torch.zeros(site.size, dtype=torch.bool)
        keep[site.name][units] = True
    for place in attention.attention_sites(dense):
        small, qkv, proj = theirs.get_submodule(place.path), linear(dense, place.qkv), linear(dense, place.proj)
        rows = torch.tensor(rows_of(small.qkv.weight, qkv.weight)).reshape(3, -1)
        if any(not torch.equal(part, rows[0] + i * place.heads * place.dim) for i, part in enumerate(rows)):
            raise ValueError(f"{place.path}: queries, keys and values keep different dimensions")
        first = qkv.weight[rows.flatten()], bias_of(qkv)[rows.flatten()]
        second = proj.weight[:, rows[0]], bias_of(proj)
        attention.put(model, place, small.num_heads, small.head_dim, first, second)
    return model.requires_grad_(False), Plan(keep)


def scaled(model: nn.Module, dense: nn.Module) -> nn.Module:
    """A copy whose attention divides by √d as the dense one does: √(d'/d) in the queries."""
    made: Any = copy.deepcopy(model)
    for place in attention.attention_sites(dense):
        attn = made.get_submodule(place.path)
        factor, width = (attn.head_dim / place.dim) ** 0.5, attn.num_heads * attn.head_dim
        attn.qkv.weight[:width] *= factor
        if attn.qkv.bias is not None:
            attn.qkv.bias[:width] *= factor
    return made  # type: ignore[no-any-return]


def at_budget(dense: nn.Module, grads: list[Tensor], importance: str, setting: str, budget: float, guess: float) -> Any:
    """Its model whose multiply-adds lie closest above the budget, their share, and the ratio."""
    low, high, ratio, best, whole = 0.0, 0.95, guess, None, size.macs(dense)
    for _ in range(TRIES):
        model = pruned(dense, grads, importance, setting, ratio)
        share = 0.0 if model is None else size.macs(model) / whole
        if share >= budget:
            best, low = (model, share, ratio) if best is None or share <= best[1] else best, ratio
            if share <= NEAR * budget:
                break
        else:
            high = ratio
        ratio = (low + high) / 2
    assert best is not None, f"{importance}, {setting}: nothing above x{budget}"
    return best


def models_of(
    run: Run, args: argparse.Namespace, guesses: dict[tuple[str, float], float]
) -> dict[str, tuple[nn.Module, Found]]:
    """Every model by its name, before any test image is read."""
    dense, targets = run.loaded.model, run.classes.every()
    scores, curves = score.scores_of(run, "fisher-obs", run.recipe.criterion.seed), of_file(run, None)
    made: dict[str, tuple[nn.Module, Found]] = {}
    grads = gradients(run, args.probe)
    example = next(dense.parameters()).new_zeros(2, *families.input_shape(dense)).normal_()
    jobs = [(b, i, s) for b in args.budgets for s in args.settings for i in args.importances]
    for budget in args.budgets:
        plan = allocation.plan(dense, scores, curves, budget, Macs(dense), targets)
        made[f"{budget:g} {OURS}"] = slimmed(run, plan, run.recovery, None, targets), {}
    for budget, importance, setting in run.reporter.track(jobs, "torch-pruning", len(jobs)):
        model, _, ratio = at_budget(dense, grads, importance, setting, budget, guesses.get((setting, budget), 0.5))
        guesses[setting, budget] = ratio
        name = f"{budget:g} torch-pruning {importance} {setting}"
        try:
            plain, plan = read(dense, model)
        except ValueError as error:
            made[name] = model, {"ratio": ratio, "not_repaired": str(error)}
            continue
        torch.testing.assert_close(plain(example), model(example), rtol=1e-3, atol=1e-3)
        sizes = [[a.num_heads, a.head_dim] for a in (m.attn for m in model.blocks)]
        about = {"ratio": ratio, "heads_dims": sizes, "widths": list(plan.widths.values())}
        made[name] = plain, about
        mended = scaled(plain, dense)
        repaired(mended, run, plan, run.recovery, None, targets, dense)
        made[f"{name} repaired"] = mended, {}
    return made


def one_seed(args: argparse.Namespace, seed: int, reporter: Reporter, guesses: dict[tuple[str, float], float]) -> Found:
    """Name → figures of one split."""
    with Run.open(recipe_for(args, seed), "cpu", reporter) as run:
        pipeline.advance(run, "moments")
        targets, dense = run.classes.every(), run.loaded.model
        made, whole = models_of(run, args, guesses), (size.macs(dense), size.parameters(dense))
        before, labels = examined(run, dense, targets)
        hit = before.argmax(1) == labels
        found: Found = {"dense_top1": float(hit.mean())}
        for name, (model, about) in made.items():
            after, _ = examined(run, model, targets)
            right = after.argmax(1) == labels
            row = {"top1": float(right.mean()), "loss_points": 100 * float(hit.mean() - right.mean())}
            row |= {"kl": kl(before, after), "mcnemar_p_dense": mcnemar(hit, right)}
            row |= {"macs_ratio": size.macs(model) / whole[0], "params_ratio": size.parameters(model) / whole[1]}
            found[name] = row | about
        return found


def summary(found: list[Found]) -> Found:
    """Budget → name → means over the seeds, and whether ours is ahead of each."""
    budgets: Found = {}
    for name in found[0]:
        budget, _, short = name.partition(" ")
        if short:
            rows = [one[name] for one in found if name in one]
            keys = ("top1", "loss_points", "kl", "macs_ratio", "params_ratio")
            own = {key: statistics.mean(row[key] for row in rows) for key in keys}
            kept = {key: rows[0][key] for key in ("ratio", "heads_dims", "widths", "not_repaired") if key in rows[0]}
            budgets.setdefault(budget, {})[short] = own | {"kl_of_seeds": [row["kl"] for row in rows]} | kept
    for rows in budgets.values():
        for short, row in rows.items():
            if short != OURS:
                row["ours_ahead_kl"] = rows[OURS]["kl"] < row["kl"]
                row["ours_ahead_points"] = 100 * (rows[OURS]["top1"] - row["top1"])
    return budgets


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", type=Path, help="a timm folder; without it the bundled model")
    parser.add_argument("--data", type=Path, help="a folder of images per class; without it the bundled images")
    parser.add_argument("--quick", action="store_true", help="one seed, Taylor, dimensions of heads alone")
    parser.add_argument("--work", type=Path, default=Path("runs/torch-pruning"))
    parser.add_argument("--probe", type=int, default=400, help="probe images per class for its gradient and our costs")
    parser.add_argument("--refit", type=int, default=4000, help="probe images of the repair")
    parser.add_argument("--seeds", type=int, nargs="*")
    parser.add_argument("--json", type=Path, help="write the last line there too")
    args = parser.parse_args()
    args.budgets = BUDGETS
    args.settings = SETTINGS[:1] if args.quick else SETTINGS
    args.importances = ["taylor"] if args.quick else list(IMPORTANCES)
    args.seeds = args.seeds or ([0] if args.quick else [0, 1, 2])
    reporter, guesses = Reporter(), dict[tuple[str, float], float]()
    found = [one_seed(args, seed, reporter, guesses) for seed in args.seeds]
    budgets = summary(found)
    for budget, rows in budgets.items():
        for name, row in sorted(rows.items(), key=lambda item: item[1]["kl"]):
            told = f"KL {row['kl']:.4f}, loss {row['loss_points']:.2f} points"
            print(f"x{budget} {name}: {told}, MACs x{row['macs_ratio']:.3f}", file=sys.stderr)
    made = {
        "model": str(args.model.name) if args.model else "bundled",
        "command": " ".join(["python benchmarks/torch_pruning_vit.py", *(["--quick"] if args.quick else [])]),
        "torch_pruning": tp.__version__ if hasattr(tp, "__version__") else None,
        "probe_per_class": args.probe,
        "refit_images": args.refit,
        "seeds": args.seeds,
        "dense_top1": statistics.mean(one["dense_top1"] for one in found),
        "budgets": budgets,
    }
    if args.json:
        args.json.write_text(json.dumps(made, indent=1) + "\n")
    print(json.dumps(made))


if __name__ == "__main__":
    main()
