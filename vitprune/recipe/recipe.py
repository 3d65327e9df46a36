"""The recipe: YAML in, a checked model out; unknown keys are refused with the nearest right one.

`load` takes a path or the name of a bundled recipe. Paths inside a recipe are relative to the working folder or, where
nothing is there, to the recipe's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    PrivateAttr,
    StrictInt,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from vitprune.core.errors import UserError
from vitprune.core.reading import Json, digest
from vitprune.criteria.catalog import covers_attention, whole_criteria
from vitprune.pruning.repair.names import Recovery
from vitprune.recipe import exports
from vitprune.recipe.criterion import Criterion, CriterionName
from vitprune.recipe.experiments import Compare, Paper, PaperProtocol, Track
from vitprune.recipe.exports import Export, sized_by_files
from vitprune.recipe.inputs import Data, Model, SplitSpec
from vitprune.recipe.parts import NAME, OURS, PAGES, RESERVED, TAKEN, Keep, Part, Whole, on_any_disk
from vitprune.recipe.seeing import See


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a recipe was read from; no part of what it says, so all are equal."""

    file: Path | None = field(default=None, compare=False)


_OLD = ("parameters", "flops", "latency")
OldBudget = Annotated[
    Literal["parameters", "flops", "latency"],
    WithJsonSchema({"anyOf": [Whole.model_json_schema(), {"enum": list(_OLD), "type": "string"}]}),
]


class Recipe(Part):
    """One run. `keep`: `25%` or a float up to 1.0 is a share of the hidden units, `25 units` a count per block."""

    version: Literal[1] = Field(1, description="of the recipe's format")
    name: str = Field(description="results go to `<out>/<name>/`: letters, digits, `.`, `_` and `-`, at most 64")
    model: Model = Field(default_factory=lambda: Model(), description="the dense model; without it the bundled one")
    data: Data = Field(
        default_factory=lambda: Data(source="bundled"), description="the images; without it the bundled ones"
    )
    split: SplitSpec = Field(default_factory=lambda: SplitSpec(), description="which images choose and which judge")
    classes: list[str] | None = Field(None, min_length=1, description="prune for these classes only")
    groups: dict[str, list[str]] | None = Field(
        None, min_length=1, description="one slim model per named class set; `auto: k` finds k sets by class similarity"
    )
    clusters: Annotated[StrictInt, Field(ge=2, le=1000)] | None = Field(None, description="k of `groups: {auto: k}`")
    head: Literal["own", "all"] | None = Field(
        None,
        description="own: other classes' outputs are removed (default of `groups` of two or more); all: kept",
    )
    criterion: Criterion = Field(default_factory=lambda: Criterion(), description="what ranks the hidden units")
    whole: Whole | None = Field(None, description="what `budget` says as a mapping")
    prune: list[Literal["ffn", "attention", "depth"]] | None = Field(
        None,
        description="what goes under such a budget; without it `[ffn, attention]` where the model allows; `depth` beside "
        "them: a block may lose its attention altogether",
    )
    attention_dims: Literal["equal", "free"] = Field(
        "equal", description="free: queries and keys may keep other dimensions than values; finer, and slower to run"
    )
    keep: Keep | None = Field(
        None,
        description="budget of the FFNs alone: `25%` or a float up to 1.0 is a share of their hidden units, `25 units` a "
        "count per block. Without `keep` and without a `budget` mapping: `budget: {macs: 0.5}`, but `keep: 25%` in recipes of "
        "FFN units (their criterion, `allocation`, `rounds`, `compare` or the paper's sections say so)",
    )
    allocation: Literal["uniform", "global", "budgeted", "auto"] = Field(
        "auto",
        description="every block the same share, one threshold for all, the best widths, or as the criterion likes",
    )
    budget: OldBudget = Field(
        "flops",
        description="in the place of `keep`, what is left of the whole model: `{macs: 0.25}`, or `params`, `latency`, "
        "`size_mb`, `loss_points`; a word (parameters, flops, latency) under `allocation: budgeted` says what `keep` is a "
        "share of",
    )
    floor: Annotated[StrictInt, Field(ge=1)] = Field(1, description="units each block keeps at least, if not uniform")
    rounds: Annotated[StrictInt, Field(ge=1, le=20)] = Field(
        1, description="score, cut a part, repair, score again; 1: all at once"
    )
    round_to: Annotated[StrictInt, Field(ge=1)] | None = Field(None, description="widths become multiples of this")
    recovery: Recovery | Literal["auto"] = Field(
        "auto",
        description="none, mean, affine, sequential (fc2 block by block), layerwise (qkv and proj too; + head: the "
        "classifier); + distill; auto: layerwise where the blocks allow it, else affine; + head under a `budget` mapping",
    )
    ridge: Annotated[float, Field(gt=0)] | None = Field(
        None, description="strength of the repair's ridge; without it 1e-3, or chosen per layer on probe images"
    )
    refit_images: Annotated[StrictInt, Field(ge=1)] = Field(
        8000, description="probe images at most that a repair looks at, as many of each class"
    )
    distill_epochs: Annotated[StrictInt, Field(ge=1, le=1000)] = Field(
        3, description="passes over the images of `+ distill`"
    )
    precision: Literal["float32", "tf32", "bfloat16"] = Field(
        "float32",
        description="of products in the passes that score and repair; tf32 is for CUDA alone, `criterion.precision: bfloat16` "
        "goes before it. Sums are float64, exam and files float32 whatever it is",
    )
    baselines: list[CriterionName] = Field(
        ["activation", "random"], description="examined at the same budget, with and without the repair"
    )
    random_draws: Annotated[StrictInt, Field(ge=1, le=20)] = Field(3, description="seeds of the baseline `random`")
    paper_protocol: PaperProtocol | None = Field(None, description="also the paper's own, oracle-routed figures")
    compare: Compare | None = Field(None, description="what `vitprune compare` puts side by side")
    paper: Paper | None = Field(None, description="which of the paper's tables `vitprune paper` makes")
    export: Export = Field(default_factory=lambda: Export(), description="what is written for deployment")
    see: See | None = Field(None, description="what the report shows of units, removed and kept; without it nothing")
    engine: Literal["local", "ray"] | None = Field(
        None,
        exclude=True,
        description="who computes, unless `--engine` says it: processes of this machine (local) or a Ray cluster",
    )
    workers: Annotated[StrictInt, Field(ge=1)] | None = Field(
        None,
        exclude=True,
        description="how many of them share the heavy work, unless `--workers` says it; without it one",
    )
    address: str | None = Field(
        None,
        exclude=True,
        min_length=1,
        description="of the Ray cluster, unless `--address` says it; without it a local one",
    )
    track: Track | None = Field(None, description="where a finished run is also told: MLflow, TensorBoard")
    out: Path = Field(Path("exported"), description="folder of the results of all runs; `--out` goes before it")
    _origin: Origin = PrivateAttr(default_factory=lambda: Origin())

    @model_validator(mode="before")
    @classmethod
    def auto_groups(cls, given: Any) -> Any:
        """`groups: {auto: k}` is `clusters: k`."""
        groups = given.get("groups") if isinstance(given, dict) else None
        if isinstance(groups, dict) and list(groups) == ["auto"] and not isinstance(groups["auto"], list):
            return {**given, "groups": None, "clusters": groups["auto"]}
        return given

    @model_validator(mode="before")
    @classmethod
    def budget_of_the_whole(cls, given: Any) -> Any:
        """`budget: {macs: 0.25}` is `whole: {macs: 0.25}`, in the place of `keep`."""
        if not isinstance(given, dict):
            return given
        if isinstance(given.get("budget"), dict):
            if given.get("whole") is not None:
                raise ValueError("give `budget` or `whole`, not both; they are two words for one thing")
            given = {**given, "whole": given["budget"]}
            del given["budget"]
        return given

    @model_validator(mode="after")
    def one_precision(self) -> Recipe:
        """`bfloat16` is also that of the criterion, which has a word for it of its own."""
        if self.precision == "bfloat16":
            self.__dict__["criterion"] = self.criterion.model_copy(update={"precision": "bfloat16"})
        return self

    @model_validator(mode="after")
    def keep_or_whole(self) -> Recipe:
        """One of the two, and what goes with it. Defaults are no `model_fields_set`, so that they may give way to others."""
        if self.whole is None and self.keep is None:
            self.__dict__.update({"keep": 0.25} if self._of_ffns() else {"whole": Whole(macs=0.5)})
        self.__dict__["compare"] = self.compare and self.compare.under(self.whole)
        if self.attention_dims == "free" and not self.prunes_attention:
            raise ValueError("`attention_dims` goes with `prune: attention` and a budget of the whole model")
        if self.attention_dims == "free" and self.whole is not None and self.whole.of == "latency":
            raise ValueError(
                "`attention_dims: free` does not go with a budget in time, which is measured for equal ones"
            )
        if self.whole is None:
            if self.prune not in (None, ["ffn"]):
                raise ValueError("`prune: attention` goes with a budget of the whole model: `budget: {macs: 0.5}`")
            return self
        if self.keep is not None:
            raise ValueError("give `keep` or a mapping such as `budget: {macs: 0.25}`, not both")
        if not covers_attention(self.criterion.name):
            raise ValueError(
                f"a budget of the whole model needs a criterion of heads too: {whole_criteria()}; "
                f"`{self.criterion.name}` scores hidden units alone and goes with `keep`"
            )
        for name, asked in (("rounds", self.rounds > 1), ("allocation", self.allocation != "auto")):
            if asked:
                raise ValueError(f"`{name}` does not go with a budget of the whole model, which is cut at once")
        if self.prune and sorted(self.prune) not in (["ffn"], ["attention", "ffn"], ["attention", "depth", "ffn"]):
            raise ValueError("`prune` is `[ffn]`, `[ffn, attention]` or `[ffn, attention, depth]`")
        if self.prunes_depth and self.whole.of == "latency":
            raise ValueError(
                "`prune: depth` does not go with a budget in time, which is measured with all attentions there"
            )
        self.__dict__["prune"] = self.prune or ["ffn", "attention"]
        return self

    def _of_ffns(self) -> bool:
        """Whether a recipe without `keep` and without a mapping is of FFN units: its criterion knows no others, it scores in
        rounds, says how or of what widths are shared out, or has a section whose figures are of shares of units."""
        shared = self.allocation != "auto" or "budget" in self.model_fields_set
        compared = self.compare is not None and self.compare.budget is None
        of_paper = self.paper is not None or self.paper_protocol is not None
        return not covers_attention(self.criterion.name) or self.rounds > 1 or shared or compared or of_paper

    @property
    def share(self) -> int | float:
        """`keep`. Raises UserError where the budget is another, for what goes by `keep` alone."""
        if self.keep is None:
            raise UserError(
                "keep: this goes by a share of hidden units; give `keep` in the place of a `budget` mapping"
            )
        return self.keep

    @property
    def prunes_attention(self) -> bool:
        """Whether attention is to be pruned; `adapted` says what the model allows."""
        return self.whole is not None and "attention" in (self.prune or ("ffn", "attention"))

    @property
    def prunes_depth(self) -> bool:
        """Whether a block may lose its attention altogether."""
        return self.prunes_attention and "depth" in (self.prune or ())

    @property
    def advice(self) -> list[str]:
        """A line for words that are still read and have better ones."""
        if self.allocation != "budgeted":
            return []
        return [
            f"allocation: budgeted: `budget: {self.budget}` counts the FFNs alone; `budget: {{macs: 0.25}}` in the place of "
            "`keep`, `allocation` and `budget` is a share of the whole model, attention with it."
        ]

    @field_validator("keep")
    @classmethod
    def some_budget(cls, keep: int | float | None, info: ValidationInfo) -> int | float | None:
        if keep is None and "whole" in info.data and info.data["whole"] is None:
            raise ValueError("is neither a share nor a count; write `0.25`, `25%` or `25 units`")
        return keep

    @field_validator("budget", mode="before")
    @classmethod
    def a_mapping_or_an_old_word(cls, given: Any) -> Any:
        if given not in _OLD:
            raise ValueError(
                "is a mapping of one word, such as `{macs: 0.25}`: macs, params, latency, size_mb, loss_points"
            )
        return given

    @field_validator("name")
    @classmethod
    def plain_name(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError("letters, digits, `.`, `_` and `-` only, at most 64, it becomes a folder's name")
        if on_any_disk(name) != name.lower() or RESERVED.fullmatch(name.lower()) or name.lower() in PAGES:
            raise ValueError(
                "cannot be a folder's name everywhere (Windows' devices, a dot at the end, a page of ours)"
            )
        return name

    @field_validator("out")
    @classmethod
    def a_path(cls, out: Path) -> Path:
        if "\0" in str(out):
            raise ValueError("holds a character that no path can have")
        return out

    @field_validator("groups")
    @classmethod
    def plain_groups(cls, groups: dict[str, list[str]] | None) -> dict[str, list[str]] | None:
        taken: dict[str, str] = {}
        for name, members in (groups or {}).items():
            if not NAME.fullmatch(name):
                raise ValueError(
                    f"group `{name[:64]}`: its name becomes a folder's: letters, digits, `.`, `_`, `-` only"
                )
            plain = on_any_disk(name)
            if plain in TAKEN or OURS.fullmatch(plain) or RESERVED.fullmatch(plain) or plain != name.lower():
                raise ValueError(
                    f"group `{name}`: a folder of that name is vitprune's own or the system's; use another"
                )
            if plain in taken:
                raise ValueError(f"groups `{taken[plain]}` and `{name}` are one folder on a disk without upper case")
            taken[plain] = name
            if not members:
                raise ValueError(f"group `{name}` names no class")
        return groups

    @field_validator("baselines")
    @classmethod
    def no_auto(cls, baselines: list[CriterionName]) -> list[CriterionName]:
        if "auto" in baselines:
            raise ValueError("`auto` is a choice, not a baseline")
        return baselines

    @model_validator(mode="after")
    def classes_or_groups(self) -> Recipe:
        if sum(given is not None for given in (self.classes, self.groups, self.clusters)) > 1:
            raise ValueError("give `classes` or `groups`, not both")
        return self

    @model_validator(mode="after")
    def auto_is_for_one_class_set(self) -> Recipe:
        if self.criterion.name == "auto" and (self.groups or self.clusters):
            raise ValueError("`criterion: auto` goes with one class set: use `classes`, or one recipe per group")
        return self

    @model_validator(mode="after")
    def an_address_of_ray(self) -> Recipe:
        if self.address is not None and self.engine != "ray":
            raise ValueError("`address` is of a Ray cluster: add `engine: ray`")
        return self

    @model_validator(mode="after")
    def one_frontier(self) -> Recipe:
        exports.refuse(self.export, self.whole, bool(self.groups or self.clusters))
        return self

    @model_validator(mode="after")
    def rounds_of_one_recipe(self) -> Recipe:
        if self.rounds > 1 and (self.compare or self.criterion.name == "random" or self.criterion.train_weights):
            raise ValueError("`rounds` above 1 goes with one criterion that scores what is left: no compare, no random")
        return self

    @model_validator(mode="after")
    def trained_weights_are_not_repaired(self) -> Recipe:
        names = {self.criterion.name, *self.baselines, *(self.compare.criteria if self.compare else ())}
        names |= set(self.criterion.among) if "auto" in names else set()
        compared = self.compare.recovery if self.compare and "recovery" in self.compare.model_fields_set else ()
        repairs = {self.recovery, *compared} - {"auto"}
        if self.criterion.train_weights and "vit-slim" in names and repairs - {"none"}:
            raise ValueError("vit-slim with `train_weights` brings weights of its own: `recovery: none` goes with it")
        return self

    @property
    def file(self) -> Path | None:
        """The file that the recipe was read from."""
        return self._origin.file

    @property
    def frontier(self) -> tuple[Whole, ...]:
        """The budgets of which each gets a model of its own; none where there is one model."""
        return self.whole.each if self.whole is not None and self.whole.several else ()

    def fingerprint(self) -> str:
        """Digest of what the slim model depends on: not of where it is written or how it is examined."""
        chosen = {
            "model",
            "data",
            "split",
            "classes",
            "groups",
            "clusters",
            "head",
            "criterion",
            "keep",
            "allocation",
            "budget",
            "floor",
            "rounds",
            "round_to",
            "recovery",
            "ridge",
            "refit_images",
            "distill_epochs",
        }
        made = self.model_dump(mode="json", include=chosen) | {"data": self.data.content()} | self._of_whole()
        made["criterion"].setdefault("t", "auto" if self.whole is None else 50)
        made |= {"precision": self.precision} if self.precision != "float32" else {}
        return digest(made)

    def pruning(self) -> dict[str, Any]:
        """What masks and repair depend on beside scores, budget and kind of repair."""
        names = {"round_to", "allocation", "budget", "floor", "ridge", "refit_images", "distill_epochs"}
        return self.model_dump(mode="json", include=names) | self._of_whole()

    def _of_whole(self) -> dict[str, Any]:
        """The budget of the whole model, where there is one: what goes by `keep` is as it was."""
        names = {"whole", "prune", *(["attention_dims"] if self.attention_dims == "free" else [])}
        found = self.model_dump(mode="json", include=names) if self.whole else {}
        return found | sized_by_files(self.whole, self.export)

    def written(self) -> Json:
        """The recipe as a file tells it: every default spelled out, and of the words for the budget those that apply."""
        made = self.model_dump(mode="json")
        if self.compare is not None:
            budgets = self.compare.budget
            if budgets is None:
                del made["compare"]["budget"]
            else:
                del made["compare"]["keep"]
                made["compare"]["budget"] = [one.written for one in budgets]
        if self.whole is not None:
            idle = {"keep", "budget", "allocation", "rounds"}
            made["whole"] = self.whole.written
        else:
            idle = {"whole", "attention_dims"}
            idle |= {"budget"} if self.allocation != "budgeted" and self.budget == "flops" else set()
            idle |= {"prune"} if self.prune is None else set()
        idle |= {name for name in ("see", "track") if getattr(self, name) is None}
        return {"budget" if name == "whole" else name: part for name, part in made.items() if name not in idle}

    @property
    def own_head(self) -> bool:
        """Whether a slim model of a class set has outputs for its classes only."""
        return self.head == "own" if self.head else self.groups is not None

    def class_sets(self) -> dict[str | None, list[str] | None]:
        """Group name → class names; `{None: …}` for a run without groups, `None` classes meaning all."""
        if self.groups is None:
            return {None: self.classes}
        return {name: members for name, members in self.groups.items()}  # noqa: C416 (widens the key type)
