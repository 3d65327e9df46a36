"""Defaults that a model does not allow give way to ones that it does, and a note says so.

Only what the recipe does not say adapts. What it says stays, and is refused by name where the model does not allow it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from vitprune.core.errors import UserError
from vitprune.criteria.catalog import CRITERIA, covers_attention, why_not
from vitprune.criteria.signatures import Row
from vitprune.model import families
from vitprune.model.inside import blockwise
from vitprune.model.sites.attention import attention_sites
from vitprune.model.sites.ffn import FfnSite
from vitprune.pruning.repair.repair import chosen
from vitprune.pruning.whole import reach
from vitprune.recipe.criterion import CriterionName
from vitprune.recipe.experiments import Compare, Paper
from vitprune.recipe.exports import of_file
from vitprune.recipe.recipe import Recipe

BASELINES: list[CriterionName] = ["variance", "magnitude-l2", "random"]  # of a backbone
IMAGES = 2000  # that the costs of a backbone are worked out from, where the recipe does not say
INSTEAD: dict[str, CriterionName] = {"activation": "mean-activation"}  # of a default, where only the second applies


@dataclass(frozen=True, slots=True)
class Facts:
    """What a default may not fit: whether the head reads a class token, whether blocks come in halves, the least width."""

    class_token: bool
    halves: bool
    smallest: int
    no_attention: str | None = None  # why the attention cannot be pruned

    @classmethod
    def of(cls, model: nn.Module, sites: Sequence[FfnSite]) -> Facts:
        """Those of a model, which may be on the meta device."""
        layout, parts = families.token_layout(model), blockwise.halves(model)
        why = None
        try:
            attention_sites(model)
        except UserError as error:
            why = str(error)
        return cls(layout.class_token, parts is not None, min(site.size for site in sites), why)

    def why_not(self, criterion: str, tokens: str) -> str | None:
        """Why a criterion cannot look at this model."""
        return why_not(criterion, tokens, class_token=self.class_token, halves=self.halves)

    def tokens(self, recipe: Recipe) -> str:
        """The recipe's `tokens`, or the default that this model allows."""
        asked = self.class_token or "tokens" in recipe.criterion.model_fields_set
        return recipe.criterion.tokens if asked else "all"

    def swapped(self, names: Sequence[CriterionName], tokens: str) -> tuple[list[CriterionName], list[str]]:
        """Default criteria: what applies stays, another takes the place of what does not, and why."""
        kept: list[CriterionName] = []
        notes = []
        for name in names:
            why = self.why_not(name, tokens)
            other = INSTEAD.get(name)
            if why is None:
                kept.append(name)
            elif other is not None and other not in names and self.why_not(other, tokens) is None:
                kept.append(other)
                notes.append(f"`{other}` in the place of `{name}` ({_reason(why)})")
            else:
                notes.append(f"without `{name}` ({_reason(why)})")
        return kept, notes


def adapted(recipe: Recipe, model: nn.Module, sites: Sequence[FfnSite]) -> tuple[Recipe, list[str]]:
    """The recipe with defaults that the model allows, and a note for each that became another."""
    facts, notes = Facts.of(model, sites), list[str]()
    if families.reads(model) is not None:
        recipe, notes = _of_backbone(recipe)
    for step in (_tokens, _criterion, _baselines, _sites, _protocol):
        recipe, more = step(recipe, facts)
        notes += more
    for last in (_budget, _recovery):
        recipe, more = last(recipe, model)
        notes += more
    return recipe, notes


def _of_backbone(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """The baselines that need no classifier."""
    if "baselines" in recipe.model_fields_set:
        return recipe, []
    names = [name for name in BASELINES if name != recipe.criterion.name]
    note = f"baselines: {', '.join(f'`{name}`' for name in names)}, as this model is a backbone without a head."
    return recipe.model_copy(update={"baselines": names}), [note]


def of_images(recipe: Recipe, classes: int) -> tuple[Recipe, list[str]]:
    """The recipe of a backbone with enough probe images for its costs, of however many classes they are."""
    own, said = recipe.criterion, []
    if recipe.model.head is None:
        said.append("model.head: none, as the model has no classifier; model.args: {num_classes: …} gives it one.")
    enough = -(-IMAGES // max(1, classes))
    if "probe_per_class" in own.model_fields_set or enough <= own.probe_per_class:
        return recipe, said
    what = "one class" if classes == 1 else f"{classes:,} classes"
    note = f"criterion.probe_per_class: {enough:,}, for at most {IMAGES:,} images in all; those of a backbone are of {what}."
    return _with(recipe, probe_per_class=enough), [*said, note]


def comparison(spec: Compare, recipe: Recipe, facts: Facts) -> tuple[Compare, list[str]]:
    """The same for what `vitprune compare` puts side by side."""
    notes = []
    if "criteria" not in spec.model_fields_set:
        names, more = facts.swapped(spec.criteria, facts.tokens(recipe))
        spec = spec.model_copy(update={"criteria": names}) if more else spec
        notes += [f"compare.criteria: {note}." for note in more]
    if recipe.criterion.train_weights and "vit-slim" in spec.criteria and "recovery" not in spec.model_fields_set:
        spec = spec.model_copy(update={"recovery": ["none"]})
        notes.append("compare.recovery: none, as vit-slim with `train_weights` brings weights of its own.")
    return spec, notes


def table(spec: Paper, recipe: Recipe, facts: Facts) -> tuple[Paper, list[str]]:
    """The same for the criteria of `vitprune paper`."""
    if "criteria" in spec.model_fields_set:
        return spec, []
    names = [name for name in spec.criteria if facts.why_not(name, recipe.criterion.tokens) is None]
    if not names or names == spec.criteria:
        return spec, []
    why = [(name, facts.why_not(name, recipe.criterion.tokens)) for name in spec.criteria]
    notes = [f"paper.criteria: without `{name}` ({_reason(said)})." for name, said in why if said]
    return spec.model_copy(update={"criteria": names}), notes


def _with(recipe: Recipe, **changed: object) -> Recipe:
    """The recipe with other settings of its criterion."""
    return recipe.model_copy(update={"criterion": recipe.criterion.model_copy(update=changed)})


def _users(recipe: Recipe, wanted: Callable[[Row], bool]) -> list[str]:
    """The criteria that the recipe will use and that have a property, in its order."""
    own = recipe.criterion
    every = [own.name, *(own.among if own.name == "auto" else ()), *recipe.baselines]
    every += ["jas"] if recipe.clusters else []
    every += (recipe.compare.criteria if recipe.compare else []) + (recipe.paper.criteria if recipe.paper else [])
    return [name for name in dict.fromkeys(every) if name in CRITERIA and wanted(CRITERIA[name])]


def _tokens(recipe: Recipe, facts: Facts) -> tuple[Recipe, list[str]]:
    users = _users(recipe, lambda row: "tokens" in row.uses)
    if not users or facts.tokens(recipe) == recipe.criterion.tokens:
        return recipe, []
    names = ", ".join(f"`{name}`" for name in users)
    return _with(recipe, tokens="all"), [
        f"criterion.tokens: all for {names}, as this model's head reads no class token."
    ]


def _criterion(recipe: Recipe, facts: Facts) -> tuple[Recipe, list[str]]:
    own = recipe.criterion
    if own.name == "auto":
        why = [(name, facts.why_not(name, own.tokens)) for name in own.among]
        return recipe, [f"criterion: `auto` does not try `{name}` ({_reason(said)})." for name, said in why if said]
    said = facts.why_not(own.name, own.tokens)
    other = next((name for name in own.among if facts.why_not(name, own.tokens) is None), None)
    if said is None or other is None or "name" in own.model_fields_set:
        return recipe, []
    return _with(recipe, name=other), [f"criterion: `{other}` in the place of `{own.name}` ({_reason(said)})."]


def _baselines(recipe: Recipe, facts: Facts) -> tuple[Recipe, list[str]]:
    if "baselines" in recipe.model_fields_set:
        return recipe, []
    names, notes = facts.swapped(recipe.baselines, recipe.criterion.tokens)
    if not notes:
        return recipe, []
    return recipe.model_copy(update={"baselines": names}), [f"baselines: {note}." for note in notes]


def _sites(recipe: Recipe, facts: Facts) -> tuple[Recipe, list[str]]:
    if not recipe.prunes_attention or "prune" in recipe.model_fields_set or facts.no_attention is None:
        return recipe, []
    note = f"prune: [ffn] and not [ffn, attention] ({_reason(facts.no_attention)})."
    return recipe.model_copy(update={"prune": ["ffn"]}), [note]


def _budget(recipe: Recipe, model: nn.Module) -> tuple[Recipe, list[str]]:
    if recipe.whole is None or "whole" in recipe.model_fields_set:
        return recipe, []
    try:
        if not covers_attention(recipe.criterion.name):
            raise UserError(f"criterion: `{recipe.criterion.name}` has no costs of attention")
        attentions = attention_sites(model) if recipe.prunes_attention else []
        prices = reach.priced(recipe.whole.of, model, of_file(recipe.whole, recipe.export))
        assert prices is not None  # a default is in multiply-adds
        smallest = reach.least(model, attentions, prices, recipe.round_to, recipe.floor, recipe.prunes_depth)
        reach.require(recipe.whole.amount, smallest, prices)
    except UserError as error:
        note = f"keep: 25% and not budget: {{macs: {recipe.whole.amount:g}}} ({_reason(str(error))})."
        return recipe.model_copy(update={"whole": None, "prune": None, "keep": 0.25}), [note]
    return recipe, []


def _protocol(recipe: Recipe, facts: Facts) -> tuple[Recipe, list[str]]:
    spec = recipe.paper_protocol
    if spec is None or "t" in spec.model_fields_set or max(spec.t) <= facts.smallest:
        return recipe, []
    kept = [t for t in spec.t if t <= facts.smallest]
    note = f"paper_protocol.t: {', '.join(map(str, kept))}, as a block of this model has {facts.smallest} hidden units."
    return recipe.model_copy(update={"paper_protocol": spec.model_copy(update={"t": kept})}), [note]


def _recovery(recipe: Recipe, model: nn.Module) -> tuple[Recipe, list[str]]:
    if recipe.recovery != "auto":
        return recipe, []
    if recipe.criterion.train_weights and "vit-slim" in _users(recipe, lambda row: row.trains is not None):
        note = "recovery: none, as vit-slim with `train_weights` brings weights of its own."
        return recipe.model_copy(update={"recovery": "none"}), [note]
    taken = chosen("auto", model)
    if taken == "layerwise":
        return recipe, []
    return recipe, [
        f"recovery: {taken}, as this model's blocks do not come in halves; `auto` is layerwise where they do."
    ]


def _reason(why: str) -> str:
    """The reason alone, without the criterion's name before it and the advice after it."""
    return why.partition(": ")[2].partition(";")[0]
