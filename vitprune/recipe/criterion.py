"""The section `criterion`: its own keys, and the settings of every criterion in the table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

from pydantic import (
    Field,
    PlainValidator,
    SerializerFunctionWrapHandler,
    StrictInt,
    WithJsonSchema,
    create_model,
    model_serializer,
    model_validator,
)

from vitprune.criteria import catalog
from vitprune.criteria.settings import About
from vitprune.recipe.parts import Part

AMONG = ["fisher-obs", "obs", "variance", "mean-activation", "fisher", "taylor", "joint-gates", "jas"]
FIRST = frozenset({  # the settings of version 0.1.0, which stand in the digests of every run
    "formula", "candidates", "shortlist", "quadrature", "nodes", "tokens", "objective", "reference", "precision", "low",
    "form", "labels", "seed", "epochs", "rate", "pressure", "train_weights",
})  # fmt: skip


def _length(given: Any) -> Any:
    """Units per block of a path. Raises ValueError for what is neither a count nor `auto`."""
    if given != "auto" and (isinstance(given, bool) or not isinstance(given, int) or given < 1):
        raise ValueError("is a count of hidden units from 1 on, or `auto`")
    return given


Length = Annotated[
    int | Literal["auto"],
    PlainValidator(_length),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"const": "auto"}]}),
]


class Section(Part):
    """What ranks the hidden units. The settings from `formula` on belong to the criteria that integrate gradients."""

    name: str = Field("fisher-obs", description="`vitprune criteria` lists what each needs and where it comes from")
    among: list[str] = Field(AMONG, min_length=2, description="what `auto` chooses among, on a probe fold")
    t: Length = Field(
        "auto", description="units per image and block; auto: `keep` of a block's, 50 where the budget is no `keep`"
    )
    probe_per_class: Annotated[StrictInt, Field(ge=1)] = Field(40, description="probe images per class for discovery")
    exact_per_class: Annotated[StrictInt, Field(ge=1)] | None = Field(
        None, description="knowledge-attribution: fewer probe images per class, as it runs every unit alone"
    )

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """A setting of one of the table's criteria."""

    @model_validator(mode="after")
    def settings_fit(self) -> Section:
        if {"auto", "random"} & set(self.among):
            raise ValueError("`among` names criteria that a choice can fall on, not `auto` or `random`")
        alone = self.candidates == "each" or self.name != "jas"
        if self.shortlist is not None and not alone:
            raise ValueError("`shortlist` goes with `candidates: each` or with knowledge-attribution")
        if self.reference and (self.candidates, self.formula) != ("parallel", "jas"):
            raise ValueError("`reference` is the authors' code: `formula: jas` and `candidates: parallel`")
        if self.name in catalog.CRITERIA:
            self.how(self.name)  # which may have something to say of settings that do not go together
        return self

    @model_serializer(mode="wrap")
    def as_before(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The section without the settings of others at their defaults: a new row makes no finished run another one.

        Those in FIRST always stand there; `t: auto` does not, what it comes to is the budget's and the model's to say.
        """
        own = catalog.CRITERIA[self.name].uses if self.name in catalog.CRITERIA else ()
        fields = type(self).model_fields
        idle = {
            name for name in catalog.settings()
            if name in fields and name not in (*FIRST, *own) and getattr(self, name) == fields[name].default
        }  # fmt: skip
        idle |= {"t"} if self.t == "auto" else set()
        return {name: value for name, value in plain(self).items() if name not in idle}

    def images_per_class(self, name: str) -> int:
        """How many probe images of a class the criterion `name` looks at."""
        exact = self.exact_per_class if name == "knowledge-attribution" else None
        return self.probe_per_class if exact is None else min(exact, self.probe_per_class)

    def how(self, criterion: str) -> Any:
        """The settings of a criterion with every default spelled out."""
        rule = self.quadrature or ("left" if self.reference else "gauss-legendre")
        ruled = {"quadrature": rule, "nodes": self.nodes or (5 if rule == "gauss-legendre" else 20)}
        return catalog.how_of(
            criterion, **{name: getattr(self, name) for name in catalog.CRITERIA[criterion].uses} | ruled
        )


def section() -> type[Section]:
    """The class of the section for the table as it is now, so also with rows that were added at run time."""
    names: Any = Literal[(*catalog.CRITERIA, "random", "auto")]
    keys: dict[str, Any] = {"name": (names, Section.model_fields["name"])}
    keys["among"] = (list[names], Section.model_fields["among"])
    for name, (told, default) in catalog.settings().items():
        if name in Section.model_fields:
            raise ValueError(f"a criterion's setting `{name}` has the name of a key that `criterion` has already")
        about = next((one for one in getattr(told, "__metadata__", ()) if isinstance(one, About)), About(""))
        kind, value = (Optional[told], None) if about.left_open else (told, default)  # noqa: UP045
        keys[name] = (kind, Field(value, description=about.words or None))
    return create_model("Criterion", __base__=Section, __module__=__name__, __doc__=Section.__doc__, **keys)


if TYPE_CHECKING:
    CriterionName = str

    class Criterion(Section):
        """The section for the table as it is in its file."""

else:
    CriterionName = Literal[(*catalog.CRITERIA, "random", "auto")]
    Criterion = section()
