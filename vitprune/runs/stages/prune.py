"""Masks, surgery, repair: the slim model of every class set as a checkpoint folder."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from vitprune.core import ledger, places
from vitprune.core.errors import UserError
from vitprune.core.files import replacing, write_json
from vitprune.core.reading import Json, read_json
from vitprune.criteria.scores import Scores
from vitprune.criteria.statistics.attention_curve import AttentionCurve
from vitprune.model import classifier, families
from vitprune.model.load import saving
from vitprune.pruning import masks, prices, surgery
from vitprune.pruning.budget import Budget
from vitprune.pruning.plan import Plan
from vitprune.pruning.repair.names import Recovery, closed_form, needs_moments
from vitprune.pruning.repair.repair import Repairer
from vitprune.pruning.slim_attention import Cut
from vitprune.recipe.parts import Whole
from vitprune.recipe.recipe import Recipe
from vitprune.runs.results import attention, budgets, losses, repairing
from vitprune.runs.stages.moments import from_file
from vitprune.runs.stages.moments import refit_index as refit_index
from vitprune.runs.stages.score import discover, model_of, scores_of
from vitprune.runs.state import lengths, precise
from vitprune.runs.state.run import Run
from vitprune.runs.state.workspace import PARTS


def prune(run: Run) -> list[Path]:
    """The slim model of every class set as a checkpoint folder with its masks."""
    files: list[Path] = []
    for group, targets in run.classes.sets().items():
        recipe = run.recipe
        plan, dense, slim, difference = begun(run, group, targets)
        repaired(slim, run, plan, run.recovery, group, targets, dense, kept=True)
        folder = run.folder.root / (group or "")
        about = {
            "classes": [run.classes.name(i) for i in targets],
            "recipe_hash": recipe.fingerprint(),
            "keep": recipe.keep,
            **({"budget": recipe.whole.spelled | losses.settled(run, group).spelled} if recipe.whole else {}),
            "kept": plan.kept,
            "criterion": recipe.criterion.name,
            "recovery": run.recovery,
            **({"labels_by_order": True} if run.classes.by_order else {}),
        }
        ledger.discard(folder / "README.md")  # the card of what was here before
        _save(run, folder, slim, targets, about)
        kept = {f"keep.{name}": keep for name, keep in plan.keep.items()}
        with replacing(folder / "masks.safetensors") as temporary:
            temporary.write_bytes(to_bytes(kept))
        write_json(folder / "split.json", _split_by_name(run))
        made = ["model.safetensors", "config.json", "masks.safetensors", "split.json"]
        if group:  # the run's own is at its root, and written by every run
            run.write_recipe(folder)
            made.append("recipe.yaml")
        check = run.folder.stage_folder("prune") / f"{group or 'all'}.json"
        sizes = {name: cut.sizes for name, cut in plan.attention.items()}
        told = {"widths": list(plan.widths.values()), "kept": plan.kept, "masked_vs_sliced": difference}
        write_json(check, told | ({"attention": sizes} if sizes else {}))
        files += [folder / name for name in made] + [check]
    run.folder.clear(run.folder.stage_folder("prune") / PARTS, set())
    return files


def begun(run: Run, group: str | None, targets: list[int]) -> tuple[Plan, nn.Module, nn.Module, float]:
    """A class set's plan, the model that it is of, that model without what the plan drops, not repaired yet, and the largest
    difference to it with the units masked. Raises UserError for values that are not finite."""
    plan = main_mask(run, group, targets)
    dense = model_of(run, run.recipe.criterion.name, group)
    slim = surgery.slim(dense, plan)
    difference = masked_against_sliced(run, plan, targets, dense, slim)
    if not math.isfinite(difference):
        raise UserError(f"model `{run.recipe.model.name}`: gives values that are not finite; check its weights")
    return plan, dense, slim, difference


def _save(run: Run, folder: Path, slim: nn.Module, targets: list[int], about: Json) -> None:
    """The checkpoint of a class set, with the outputs that it keeps and their names."""
    if run.classes.keeps_head(targets):
        named = run.classes.names if run.classes.by_order and run.loaded.labels else run.loaded.labels
        saving.save(folder, dataclasses.replace(run.loaded, labels=named), slim, about)
    else:
        classifier.narrow(slim, targets)
        labels = [label(run, i) for i in targets]
        saving.save(folder, dataclasses.replace(run.loaded, model=slim, labels=labels), slim, about)


def main_mask(run: Run, group: str | None, targets: list[int]) -> Plan:
    """The plan that a class set is exported with.

    With `rounds: R` the share keep^(n/R) is left after round n. The scores of a later round are those of the model as
    repaired so far; units already gone stand below all others in them. Every repair starts from the dense weights.
    """
    recipe, name = run.recipe, run.recipe.criterion.name
    if recipe.whole is not None:
        scores, settled = scores_of(run, name, recipe.criterion.seed, group), losses.settled(run, group)
        return whole_plan(run, scores, attention.of_file(run, group), targets, (settled.of, settled.amount))
    scores = scores_of(run, name, recipe.criterion.seed, group)
    dense = model_of(run, name, group)
    share = recipe.share if isinstance(recipe.share, float) else recipe.share / min(s.size for s in run.sites)
    for n in range(1, recipe.rounds):
        so_far = mask_of(run, scores, targets, float(share ** (n / recipe.rounds)))
        run.reporter.say(f"prune: round {n} of {recipe.rounds}, {100 * so_far.kept:.1f} % kept")
        slim = slimmed(run, so_far, run.recovery, group, targets, dense, kept=True)
        scores = _in_dense_numbering(_again(run, slim, n, group, targets), so_far)
    return mask_of(run, scores, targets)


def whole_plan(
    run: Run, scores: Scores, curves: Sequence[AttentionCurve], targets: list[int], budget: tuple[str, float]
) -> Plan:
    """What a criterion that chooses in attention too keeps under a budget of the whole model: its word and its amount."""
    return budgets.plan_of(run, Whole.model_validate({budget[0]: budget[1]}), scores, curves, targets)


def _again(run: Run, slim: nn.Module, n: int, group: str | None, targets: list[int]) -> Scores:
    """The criterion's scores of the model as it is after round n."""
    recipe, folder = run.recipe, run.folder.stage_folder("prune") / f"round-{n}-{group or 'all'}"
    smallest = min(site.size for site in families.ffn_sites(slim))
    t = min(lengths.of(run, recipe.criterion.name, recipe.keep), smallest)
    criterion = recipe.criterion.model_copy(update={"t": t})
    update = {
        "groups": None,
        "classes": [run.classes.name(i) for i in targets],
        "baselines": [],
        "paper_protocol": None,
    }
    made = recipe.model_copy(update={**update, "criterion": criterion})
    inner = _left_to_workers(run, folder, made, slim)
    discover(inner)
    scores = scores_of(inner, criterion.name, criterion.seed).in_memory()
    inner.folder.clear(folder, set())  # nothing reads a round's discovery again
    with contextlib.suppress(FileNotFoundError):
        folder.rmdir()
    return scores


def _left_to_workers(run: Run, folder: Path, recipe: Recipe, slim: nn.Module) -> Run:
    """A run of a slim model inside this one; where others work for it, the model and the split are in its folder for them."""
    place, shared = folder / "model", run.shared and run.executor.workers > 1
    inner = run.inside(folder, recipe, model=slim, shared=shared, slim=place if shared else None)
    if shared:
        saving.save(place, run.loaded, slim, {})
        write_json(inner.folder.stage_folder("split") / "split.json", run.split_record)
    return inner


def _in_dense_numbering(scores: Scores, left: Plan) -> Scores:
    """Scores [C, kept] of what is left as [C, n], units that are gone below all others."""

    def spread(sites: Mapping[str, Tensor]) -> dict[str, Tensor]:
        lowest = min(float(scored.min()) for scored in sites.values()) - 1
        wide = {name: sites[name].new_full((len(sites[name]), len(keep)), lowest) for name, keep in left.keep.items()}
        for name, keep in left.keep.items():
            wide[name][:, keep] = sites[name]
        return wide

    scores = scores.in_memory()
    sites = spread(scores.sites)
    gone = {name: ~keep for name, keep in left.keep.items()}
    curves = {n: curve.behind(gone[n], float(sites[n].min())) for n, curve in (scores.curves or {}).items()}
    ties = spread(scores.ties) if scores.ties else None
    return dataclasses.replace(scores, sites=sites, ties=ties, curves=curves or None)


def exported_mask(run: Run, group: str | None, targets: list[int]) -> Plan:
    """The plan that was exported, as the prune stage wrote it."""
    kept = load_file(run.folder.root / (group or "") / "masks.safetensors")
    told = read_json(run.folder.stage_folder("prune") / f"{group or 'all'}.json").get("attention") or {}
    curves = {curve.site.name: curve for curve in (attention.of_file(run, group) if told else [])}
    cuts = {name: Cut(curves[name], *sizes) for name, sizes in told.items()}
    return Plan({site.name: kept[f"keep.{site.name}"] for site in run.sites}, tuple(targets), cuts)


def same_sizes(ours: Plan, scores: Scores, curves: Sequence[AttentionCurve], targets: list[int]) -> Plan:
    """The plan with other hidden units, as many of each FFN, by `scores`, and other heads and dimensions, as many of each
    attention, by `curves`: what a criterion is worth at the same multiply-adds. Without curves, for a criterion of FFN
    units alone, attention is that of the plan."""
    cuts = {c.site.name: Cut(c, *own.sizes) for c in curves if (own := ours.attention.get(c.site.name))}
    return Plan(masks.best(scores, ours.widths, targets), tuple(targets), ours.attention | cuts)


def mask_of(run: Run, scores: Scores, targets: list[int], keep: int | float | None = None) -> Plan:
    """The plan for a class set at the recipe's budget, or at another one."""
    r = run.recipe
    budget = Budget(r.share if keep is None else keep, r.allocation, r.budget, r.round_to, r.floor)
    of_sites = prices.of_sites(run.loaded.model, run.sites, budget.of)
    return budget.plan(scores, run.sites, of_sites, targets)


def label(run: Run, output: int) -> str:
    """What the model calls an output, or the images where it has no names."""
    mine = None if run.classes.by_order else run.loaded.labels
    return mine[output] if mine else run.classes.name(output)


def _split_by_name(run: Run) -> dict[str, Any]:
    """The split for whoever gets the checkpoint: images by their names in the source."""
    split = run.split
    names = [name.encode(errors="backslashreplace").decode() for name in places.names(run.source.names)]
    return {
        "seed": split.seed,
        "probe_share": split.probe_share,
        "data": run.data_digest,
        "probe": [names[i] for i in split.probe],
        "test": [names[i] for i in split.test],
    }


def slimmed(
    run: Run,
    plan: Plan,
    how: Recovery,
    group: str | None,
    targets: list[int],
    dense: nn.Module | None = None,
    kept: bool = False,
) -> nn.Module:
    """The dense model (or the copy that a criterion trained) without the units the plan drops, repaired from the class
    set's probe images."""
    dense = run.loaded.model if dense is None else dense
    slim = surgery.slim(dense, plan)
    repaired(slim, run, plan, how, group, targets, dense, kept)
    return slim


def repaired(
    slim: nn.Module,
    run: Run,
    plan: Plan,
    how: Recovery,
    group: str | None,
    targets: list[int],
    dense: nn.Module,
    kept: bool = False,
) -> None:
    """Nothing; `slim`, the copy of `dense` without the units the plan drops, is repaired in place, by the run's workers where
    it has any. `kept`: what is solved is left in the folder until the prune stage has finished."""
    r = run.recipe
    index, size = refit_index(run, targets), run.batching.repair_batch

    def batches() -> Iterator[Tensor]:
        return (x for x, _ in run.images.batches(index, size))

    own = dense is not run.loaded.model  # its moments and streams are its own, and not kept
    by_block = closed_form(how) in ("sequential", "layerwise") and not own
    shared = by_block and run.executor.workers > 1
    repairer = Repairer(how, r.ridge, r.distill_epochs, run.folder.root)
    state = repairer.prepare(
        dense,
        batches,
        moments=from_file(run, group) if needs_moments(how) and not own else None,
        streams=run.dense_streams(index, size) if by_block and not shared else None,
        others=functools.partial(repairing.others, run, how, index, size, kept) if by_block else None,
    )
    with precise.passes(run), repairing.spared(run):
        repairer.repair(slim, plan, state)
    if shared or (by_block and kept):
        repairing.clear(run, kept)


def masked_against_sliced(run: Run, plan: Plan, targets: list[int], dense: nn.Module, slim: nn.Module) -> float:
    """Largest difference of logits between masked dense and unrepaired slim model, over the largest logit; 16 images, a
    part at a time."""
    probe = run.split.probe
    index = probe[np.isin(run.images.labels[probe], targets)][:16]
    x, _ = next(run.images.batches(index, 16))
    parts = x.to(run.device).split(run.batching.batch)
    return float(np.max([surgery.masked_vs_sliced(dense, plan, part, slim) for part in parts]))  # NaN stays NaN
