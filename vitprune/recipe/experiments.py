"""The sections `paper_protocol`, `compare`, `paper` and `track`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    StrictFloat,
    StrictInt,
    field_validator,
    model_validator,
)

from vitprune.core.errors import UserError
from vitprune.criteria.catalog import covers_attention, how_of, whole_criteria
from vitprune.pruning.repair.names import Recovery
from vitprune.recipe.criterion import CriterionName
from vitprune.recipe.parts import Keep, Part, Seed, Whole


class PaperProtocol(Part):
    """The paper's own pruning protocol (class token only, mask chosen by the true label): an oracle-routed figure."""

    t: list[Annotated[StrictInt, Field(ge=1)]] = Field([1, 5, 10], min_length=1, description="units kept per block")
    quadrature: Literal["left", "right", "midpoint", "gauss-legendre"] = Field("right", description="of the integral")
    nodes: Annotated[StrictInt, Field(ge=1, le=1000)] = Field(20, description="integration steps m")
    probe_per_class: Annotated[StrictInt, Field(ge=1)] = Field(40, description="probe images per class for discovery")

    def how(self, criterion: str) -> Any:
        """The settings of a criterion under this rule: the paper's formula on the class token."""
        return how_of(criterion, quadrature=self.quadrature, nodes=self.nodes)


class Compare(Part):
    """What `vitprune compare` puts side by side: every criterion at every budget, with every repair, on every split."""

    criteria: list[CriterionName] = Field(
        ["jas", "activation", "taylor", "variance", "random"], min_length=2, description="side by side"
    )
    among: list[CriterionName] | None = Field(
        None, min_length=2, description="what `auto` chooses among; without it all the criteria but random"
    )
    keep: list[Keep] | None = Field([0.5, 0.25, 0.125], min_length=1, description="budgets, as `keep`")
    budget: list[Whole] | None = Field(
        None,
        min_length=1,
        description="in the place of `keep`, budgets of the whole model, as `budget`; without either, and where the recipe "
        "itself has such a budget, `[{macs: 0.5}, {macs: 0.25}]`",
    )
    recovery: list[Recovery] = Field(["none", "affine"], min_length=1, description="repairs, as `recovery`")
    seeds: list[Seed] = Field([0, 1, 2], min_length=1, description="seeds of the split; of the draw too for `random`")

    @model_validator(mode="after")
    def keep_or_budget(self) -> Compare:
        if self.budget is None:
            if self.keep is None:
                raise ValueError("give `keep` or `budget`, a list of one or the other")
            return self
        if self.keep is not None and "keep" in self.model_fields_set:
            raise ValueError("give `keep` or `budget`, not both")
        if any(budget.of == "loss_points" or isinstance(getattr(budget, budget.of), list) for budget in self.budget):
            raise ValueError("`budget` is a list of mappings of one amount each, such as `[{macs: 0.5}, {macs: 0.25}]`")
        if "auto" in self.criteria:
            raise ValueError("`auto` chooses by shares of FFN units; it goes with `keep`, not with `budget`")
        self.__dict__["keep"] = None
        return self

    @model_validator(mode="after")
    def nothing_twice(self) -> Compare:
        for name in ("criteria", "among", "keep", "budget", "recovery", "seeds"):
            values = getattr(self, name) or []
            if len({(type(v), v) for v in values}) < len(values):
                raise ValueError(f"`{name}` names one of its values twice")
        if self.among is not None and ("auto" not in self.criteria or not set(self.among) <= self.choices()):
            raise ValueError("`among` goes with `auto` and names other criteria of the comparison, not `random`")
        return self

    def under(self, whole: Whole | None) -> Compare:
        """This section in a recipe with that budget of the whole model: where neither list was given, it is of such."""
        if whole is None or {"keep", "budget"} & self.model_fields_set or "auto" in self.criteria:
            return self
        return self.model_copy(update={"keep": None, "budget": [Whole(macs=0.5), Whole(macs=0.25)]})

    def first(self, own: str) -> str:
        """The criterion of every split's own run. Under a budget of the whole model the others get its sizes: the recipe's,
        or the first of the comparison that prices attention; raises UserError where none does."""
        named = [str(name) for name in self.criteria if name != "auto"]
        found = named if self.budget is None else [name for name in (own, *named) if covers_attention(name)]
        if not found:
            raise UserError(f"compare: budgets of the whole model need one of {whole_criteria()} among the criteria")
        return found[0]

    def choices(self) -> set[str]:
        """What `auto` may choose among."""
        return {str(name) for name in self.criteria} - {"auto", "random"}


class Paper(Part):
    """The paper's tables. `table-1`, with Figure 3: each test image's own path, removed and enhanced. `table-2`: ViT-Slim
    against JAS. `figure-4`: how often each unit is on a class's paths. `figure-5`, with D.2: which classes use the same
    units. `figure-6`, with Table 3: the paper's protocol over its t, the share p of the other units, and the first blocks."""

    table: Literal["table-1", "table-2", "figure-4", "figure-5", "figure-6"] = Field("table-1", description="which")
    units: list[Literal["image", "frequency", "mode-per-rank"]] | None = Field(
        None,
        min_length=1,
        description="whose units: each image's own path (table-1 alone, and there the default), the class's most frequent "
        "ones (the paper), or the most frequent one of every rank (the authors' code)",
    )
    p: list[Annotated[StrictFloat, Field(ge=0, le=1)]] = Field([1.0], min_length=1, description="figure-6")
    depth: list[Annotated[StrictInt, Field(ge=1)]] | None = Field(
        None, min_length=1, description="figure-6: prune this many first blocks only; without it all"
    )
    criteria: list[CriterionName] = Field(
        ["activation", "influence-pattern", "influence-gradient", "jas"], min_length=1, description="table-1"
    )
    classes: list[str] | None = Field(
        None, min_length=1, description="figure-4 and -5: the classes drawn; without it the first four or three"
    )
    images_per_class: Annotated[StrictInt, Field(ge=1)] | None = Field(None, description="test images; without it all")

    @model_validator(mode="after")
    def own_paths(self) -> Paper:
        if self.table != "table-1" and "image" in (self.units or ()):
            raise ValueError(f"`units: image` is for table-1; {self.table} is about classes")
        return self

    @property
    def rules(self) -> list[Literal["image", "frequency", "mode-per-rank"]]:
        """`units` with its default spelled out."""
        return self.units or (["image"] if self.table == "table-1" else ["frequency"])


class Track(Part):
    """Where a finished run is also told, beside its report: figures, settings, and the report's files."""

    mlflow: str | None = Field(
        None,
        min_length=1,
        description="a tracking server's address, a sqlite:/// file, a folder; `default`: MLflow's own",
    )
    experiment: str = Field("vitprune", min_length=1, description="MLflow's name for runs that belong together")
    tensorboard: Path | None = Field(None, description="folder of event files, one folder for each run below it")

    @field_validator("mlflow")
    @classmethod
    def no_password(cls, given: str | None) -> str | None:
        if given is not None and "@" in given.partition("://")[2].partition("/")[0]:
            raise ValueError(
                "holds a name or password; MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD are for that"
            )
        return given
