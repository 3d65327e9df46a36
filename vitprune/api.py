"""The library's verbs on tensors and modules; none of them writes a file but `run` and `export`.

Legend: N images [N, C, H, W] as the model takes them (already normalised), labels [N] output indices.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from vitprune.core.device import device_of
from vitprune.core.errors import UserError
from vitprune.criteria import paths
from vitprune.criteria.attribution.path_scores import PathScores
from vitprune.criteria.attribution.path_scores import path_scores as path_scores_of
from vitprune.criteria.catalog import CRITERIA, allocation_of, applies
from vitprune.criteria.paths import Gathered
from vitprune.criteria.scores import Scores, to_scores
from vitprune.criteria.signatures import WholeScore
from vitprune.criteria.statistics.random import random
from vitprune.exam import metrics
from vitprune.exam.logits import predictor
from vitprune.exam.metrics import Metrics
from vitprune.model import classifier, door, families
from vitprune.model.declared import Foreign
from vitprune.model.inside import blockwise, hooks
from vitprune.model.inside.moments import moments
from vitprune.model.sites.base import TokenLayout, names
from vitprune.model.sites.ffn import FfnSite
from vitprune.pruning import budget as budgets
from vitprune.pruning import masks, prices, surgery
from vitprune.pruning.plan import Plan
from vitprune.pruning.repair.names import Recovery, closed_form, needs_moments
from vitprune.pruning.repair.repair import chosen, repair
from vitprune.recipe import parse, recipe
from vitprune.recipe.criterion import section
from vitprune.runs import pipeline

TRUE_ENOUGH = 1e-3  # largest difference of logits between masked and sliced, as a share of the largest logit


def declare(
    model: nn.Module,
    ffns: Sequence[tuple[str, ...]],
    *,
    input_shape: tuple[int, int, int],
    num_classes: int,
    prefix_tokens: int = 0,
    class_token: bool = False,
) -> nn.Module:
    """A model of one's own, fit for the other verbs, from the paths of its FFNs' layers in the order of the pass.

    An FFN is (fc1, act, fc2), or (fc1, act, fc2, gate) where fc2 reads act(gate(x))·fc1(x). `prefix_tokens` of the
    tokens come before the patches; with `class_token` the head reads the first of them alone. Raises UserError naming
    the FFN for which leaving out hidden units is not the same as setting them to zero.
    """
    net = door.bare("declare", model)
    layout = TokenLayout(prefix_tokens, class_token, 0, 1 if class_token else None)
    made = Foreign(net, ffns, input_shape, num_classes, layout)
    sites = families.ffn_sites(made)
    like = next(net.parameters())
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(2, *input_shape, generator=draw).to(like)
    half = {site.name: torch.arange(site.size) % 2 == 0 for site in sites}
    with door.Inside(made):
        _check_pass(made, sites, images, num_classes)
        if not _sliced_as_masked(made, half, images):
            for site, paths in zip(sites, ffns, strict=True):
                alone = {name: keep if name == site.name else torch.ones_like(keep) for name, keep in half.items()}
                if not _sliced_as_masked(made, alone, images):
                    raise UserError(f"{paths[0]}: its outputs are not the hidden units that {paths[2]} reads")
    return made


@torch.no_grad()
def _check_pass(model: nn.Module, sites: Sequence[FfnSite], images: Tensor, num_classes: int) -> None:
    """A pass gives that many logits and goes through every declared FFN once, in their order."""
    seen: list[int] = []
    try:
        with hooks.hidden_units(model, sites, lambda position, _: seen.append(position)):
            logits = model(images)
    except Exception as error:  # whatever a model may raise
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(
            f"declare: the model cannot run images {list(images.shape)} ({reason}); see input_shape"
        ) from error
    found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != [len(images), num_classes]:
        raise UserError(f"declare: for {len(images)} images the model gives {found}, not logits [N, {num_classes}]")
    if seen != list(range(len(sites))):
        order = ", ".join(sites[i].fc2.partition(".")[2] for i in seen[:12])
        raise UserError(
            f"declare: a pass calls {order or 'none of the FFNs'}; each has to be called once, in the order given"
        )


def _sliced_as_masked(model: nn.Module, keep: dict[str, Tensor], images: Tensor) -> bool:
    """Whether leaving units out is the same as zeroing them; shapes that no longer fit tell that it is not."""
    try:
        return surgery.masked_vs_sliced(model, Plan(keep), images) < TRUE_ENOUGH
    except RuntimeError:
        return False


def discover(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    criterion: str = "fisher-obs",
    t: int = 50,
    batch: int = 8,
    seed: int = 0,
    **settings: Any,
) -> Scores:
    """Score every hidden unit of every FFN, for every class where the criterion tells them apart.

    Returns, per block [C, n], class frequencies of the `t` best units per image (`jas` and its like), ties decided by the
    mean summed scores, or for a criterion that ranks by it the mean score itself; [1, n] for one that looks at all images
    together, like the default. `settings` are those of a recipe's `criterion`: `formula`,
    `nodes`, `quadrature`, `tokens`, … Raises UserError for an unknown criterion or setting, labels out of range, or a model
    that is not supported.
    """
    model = door.bare("discover", model)
    door.check_batch("discover", batch)
    with door.Inside(model):
        sites = families.ffn_sites(model)
        if criterion == "random":
            return random(sites, seed=seed)
        if criterion not in CRITERIA:
            raise UserError(f"criterion `{criterion}`: not known; there are {', '.join([*CRITERIA, 'random'])}")
        row = CRITERIA[criterion]
        if not row.whole:
            masks.check_t(t, sites)
        how = _how(criterion, t, seed, settings)
        applies(criterion, getattr(how, "tokens", "cls"), model)
        outputs = classifier.outputs(model)
        images = door.images_of("discover", model, images)
        labels = door.labels_of("discover", images, labels, outputs)
        if row.whole:
            return _whole(row.whole, criterion, model, sites, images, labels, batch, how)
        assert row.score is not None
        device, parts, kept = device_of(model), [], t if row.ranks_by == "frequency" else 0
        for start in range(0, len(images), batch):
            x, y = images[start : start + batch].to(device), labels[start : start + batch].to(device)
            scores = row.score(model, sites, x, y, ts=[t], how=how)[t]
            parts.append(Gathered.of(scores, y, np.arange(start, start + len(x)), kept))
        return to_scores(paths.merge(parts), criterion, names(sites), outputs, row.ranks_by)


def _whole(
    score: WholeScore,
    criterion: str,
    model: nn.Module,
    sites: Sequence[FfnSite],
    images: Tensor,
    labels: Tensor,
    batch: int,
    how: Any,
) -> Scores:
    device = device_of(model)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in zip(images.split(batch), labels.split(batch), strict=True):
            yield x.to(device), y.to(device)

    blocks = [b.float().cpu() for b in score(model, sites, batches, how=how)]
    return Scores(criterion, dict(zip(names(sites), blocks, strict=True)), None, len(images))


def path_scores(model: nn.Module, images: Tensor, labels: Tensor, units: Tensor, **settings: Any) -> PathScores:
    """JAS, joint integrated gradients and their completeness gap of given paths `units` [N, L, t], per image [N]."""
    model = door.bare("path_scores", model)
    with door.Inside(model):
        sites = families.ffn_sites(model)
        images = door.images_of("path_scores", model, images)
        labels = door.labels_of("path_scores", images, labels, classifier.outputs(model))
        if not isinstance(units, Tensor) or units.is_floating_point() or units.dtype == torch.bool:
            raise UserError("path_scores: units are a tensor of integers [images, blocks, t]")
        if units.ndim != 3 or len(units) != len(images) or not 1 <= units.shape[1] <= len(sites) or not units.shape[2]:
            raise UserError(f"path_scores: units are {tuple(units.shape)}; [images, blocks, t] is needed")
        if int(units.min()) < 0 or any(int(units[:, i].max()) >= sites[i].size for i in range(units.shape[1])):
            raise UserError("path_scores: a unit's index lies outside its block")
        how = _how("jas", units.shape[2], 0, settings)
        device = device_of(model)
        units = units.clone() if units.is_inference() else units
        return path_scores_of(model, sites, images.to(device), labels.to(device), units, how)


def _how(criterion: str, t: int, seed: int, settings: dict[str, Any]) -> Any:
    """The settings as a recipe would check them; a row that was added at run time has its own among them."""
    keys: type[Any] = section()
    try:
        return keys(name=criterion, t=t, seed=seed, **settings).how(criterion)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"discover: `{'.'.join(map(str, first['loc'])) or 'settings'}`: {first['msg']}") from error


def prune(
    model: nn.Module,
    scores: Scores,
    *,
    keep: int | float | str,
    recovery: Recovery | Literal["auto"] = "auto",
    images: Tensor | Iterable[Tensor] | None = None,
    classes: Sequence[int] | None = None,
    round_to: int | None = None,
    allocation: Literal["uniform", "global", "budgeted", "auto"] = "auto",
    budget: prices.Price = "flops",
    floor: int = 1,
    ridge: float | None = None,
    batch: int = 64,
) -> nn.Module:
    """A slim copy of `model`: the best units for `classes` (None: all) stay, the others are gone, what is left is repaired.

    `keep` is a ratio (0.25 or "25%") or a count per block ("25 units"), of every block, of all together, or of their
    price, as `allocation` says (`auto`: one threshold where the scores compare across blocks, else uniform).
    `recovery: auto` is layerwise where the blocks allow it, else affine. `images` are what the repair looks at, no
    labels; needed unless recovery is `none`. The model itself is not changed. Raises UserError for a budget out of range.
    """
    if recovery not in ("auto", *get_args(Recovery)):
        raise UserError(f"recovery `{recovery}`: not known; there are auto, {', '.join(get_args(Recovery))}")
    try:
        kept = budgets.parse(keep)
    except ValueError as error:
        raise UserError(f"prune: keep {keep!r}: {error}") from error
    model = door.bare("prune", model)
    door.check_batch("prune", batch)
    with door.Inside(model):
        sites = families.ffn_sites(model)
        by_name = {site.name: site for site in sites}
        sizes = {name: site.size for name, site in by_name.items()}
        scored = {name: block.shape[-1] for name, block in scores.sites.items()}
        if sizes != scored:
            raise UserError(
                f"prune: the scores are of FFNs of {list(scored.values())} units, the model's have "
                f"{list(sizes.values())}; discover again"
            )
        plan = masks.build(
            scores, kept, classes=classes, round_to=round_to, floor=floor,
            allocation=allocation_of(scores.criterion, allocation),
            prices=lambda name, widths: prices.price(model, by_name[name], widths, budget),
        )  # fmt: skip
        slim = surgery.slim(model, plan)
        asked, recovery = recovery, chosen(recovery, model)
        if recovery != "none":
            if images is None or (isinstance(images, Tensor) and not len(images)):
                raise UserError(f"prune: recovery `{recovery}` needs images; pass images=… or recovery='none'")
            given = door.batches_of("prune", model, images, batch)
            if not given:
                raise UserError(f"prune: recovery `{recovery}` needs images, and the batches given are none")
            _tell(model, asked, recovery)
            stats = moments(model, sites, given) if needs_moments(recovery) else ()
            repair(slim, model, plan, recovery, stats=stats, batches=lambda: given, ridge=ridge)
    return slim


def _tell(model: nn.Module, asked: str, recovery: str) -> None:
    """A warning where a repair passes by what it would have changed, had the model been as timm makes it."""
    parts, note = blockwise.halves(model), None
    if asked == "auto" and parts is None and isinstance(model, families.PLAIN):
        note = f"recovery auto is {recovery}: {blockwise.why_not(model)}"
    elif parts is not None and parts.changed and closed_form(recovery) == "layerwise":
        first, why = next(iter(parts.changed.items()))
        more = f" and {len(parts.changed) - 1} more" if len(parts.changed) > 1 else ""
        note = f"recovery {recovery} leaves {first}{more} as they are: {why}"
    if note is not None:
        warnings.warn(note, UserWarning, stacklevel=3)


def evaluate(
    model: nn.Module, images: Tensor, labels: Tensor, *, head: Sequence[int] | None = None, batch: int = 64
) -> Metrics:
    """Top-1 with its 95 % interval, mean probability of the true class, top-1 per class; `head` masks the rest."""
    model = door.bare("evaluate", model, None)
    door.check_batch("evaluate", batch)
    with door.Inside(model):
        outputs = classifier.outputs(model)
        images = door.images_of("evaluate", model, images)
        labels = door.labels_of("evaluate", images, labels, outputs)
        if head is not None and (not len(head) or not 0 <= min(head) <= max(head) < outputs):
            raise UserError(f"evaluate: head must name at least one of the outputs 0 to {outputs - 1}")
        predict = predictor(model)
        logits = np.concatenate([predict(part).numpy() for part in images.split(batch)])
    if not np.isfinite(logits).all():
        raise UserError("evaluate: the model gave logits that are not finite; check its weights")
    return metrics.metrics(logits, labels.cpu().numpy(), head)


def export(model: nn.Module, path: str | Path, metadata: dict[str, Any] | None = None) -> Path:
    """Write `model` as one checked ONNX file with a dynamic batch."""
    from vitprune.deploy.onnx import exporting

    model = door.bare("export", model, (torch.float32,))
    with door.Inside(model):
        exporting.export(model, Path(path), metadata or {})
    return Path(path)


def run(source: str | Path | recipe.Recipe, **options: Any) -> dict[str, Any]:
    """Run a recipe (a path, a bundled name or a Recipe) as `vitprune run` does; returns report.json's content."""
    made = source if isinstance(source, recipe.Recipe) else parse.load(source)
    return pipeline.run(made, **options)
