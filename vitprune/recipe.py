"""The recipe: YAML in, a checked model out; unknown keys are refused with the nearest right one.

`load` takes a path or the name of a bundled recipe. Paths inside a recipe are relative to the working folder or, where
nothing is there, to the recipe's own.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    PrivateAttr,
    StrictFloat,
    StrictInt,
    ValidationError,
    WithJsonSchema,
    field_serializer,
    field_validator,
    model_validator,
)

from vitprune import keep as budgets
from vitprune import recipe_paths
from vitprune.errors import UserError
from vitprune.files import digest, read_text
from vitprune.types import Attribution, Recovery

MAX_BYTES = 1_000_000
Seed = Annotated[StrictInt, Field(ge=0, lt=1 << 63)]
Keep = Annotated[
    int | float,
    PlainValidator(budgets.parse),
    PlainSerializer(budgets.spelled),
    WithJsonSchema(budgets.SCHEMA),
]
TAKEN = {"stages", "stage", "all", "onnx", "report-data", "compare", "parts", "rows", "dense"}  # folders, files of ours
OURS = re.compile(r".*\.(json|ya?ml|md|html|svg|csv|onnx|data|safetensors|weights|moments|lock|tmp)")  # more of them
RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|clock\$|com[0-9]|lpt[0-9])(\..*)?")  # devices, to Windows
PAGES = {"comparison.md", "comparison.html"}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


CriterionName = Literal[
    "jas",
    "activation",
    "mean-activation",
    "knowledge-attribution",
    "influence-pattern",
    "influence-gradient",
    "joint-gates",
    "fisher",
    "magnitude-l1",
    "magnitude-l2",
    "taylor",
    "hessian",
    "variance",
    "variance-weight",
    "obs",
    "fisher-obs",
    "class-alignment",
    "class-alignment-normed",
    "vit-slim",
    "random",
    "auto",
]
BY_ORDER = "by-order"
AMONG: list[CriterionName] = [
    "fisher-obs", "obs", "variance", "mean-activation", "fisher", "taylor", "joint-gates", "jas",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a recipe was read from; no part of what it says, so all are equal."""

    file: Path | None = field(default=None, compare=False)


class Part(BaseModel):
    """Base of every section: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Preprocess(Part):
    """How a model's images are prepared: what is left out stays as the weights' own configuration says it."""

    input_size: StrictInt | list[StrictInt] | None = Field(
        None, description="side of the square, [height, width] or [channels, height, width]; must be the model's"
    )
    mean: list[Annotated[float, Field(strict=True, ge=0, le=1)]] | None = Field(
        None, min_length=1, description="one per channel, of pixels from 0 to 1"
    )
    std: list[Annotated[float, Field(strict=True, ge=1e-6, le=1)]] | None = Field(
        None, min_length=1, description="one per channel, of pixels from 0 to 1"
    )
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] | None = Field(
        None, description="of the resize"
    )
    crop_pct: Annotated[float, Field(strict=True, ge=0.1, le=1)] | None = Field(
        None, description="the input's share of the side that images are resized to"
    )

    @field_validator("mean", "std", mode="before")
    @classmethod
    def of_pixels_to_one(cls, given: Any) -> Any:
        numbers = [v for v in given if type(v) in (int, float)] if isinstance(given, list) else []
        if any(v > 1 for v in numbers):
            raise ValueError("is of pixels from 0 to 1: divide what is of pixels to 255 by 255")
        return given

    @field_validator("crop_pct", mode="before")
    @classmethod
    def a_share(cls, given: Any) -> Any:
        if type(given) in (int, float) and given > 1:
            raise ValueError("is a share of at most 1, as 0.875")
        return given

    @field_validator("input_size")
    @classmethod
    def sides(cls, given: int | list[int] | None) -> int | list[int] | None:
        sizes = given if isinstance(given, list) else [1 if given is None else given]
        if len(sizes) not in (1, 2, 3) or (isinstance(given, list) and len(sizes) == 1) or min(sizes) < 1:
            raise ValueError("is one side, [height, width] or [channels, height, width]")
        return given

    def size(self, channels: int) -> tuple[int, ...] | None:
        """(channels, height, width), of a model of so many channels where the recipe leaves them out."""
        given = self.input_size
        if given is None:
            return None
        sides = [given, given] if isinstance(given, int) else given
        return tuple(sides) if len(sides) == 3 else (channels, *sides)


class Model(Part):
    """Which model: `bundled`, a timm name, `local-dir:FOLDER` with config.json and model.safetensors, or another's."""

    name: str = Field(
        "bundled",
        description="`bundled`, a timm model name, `local-dir:FOLDER`, `hf-hub:ID`, `torchvision:vit_b_16`, "
        "`transformers:FOLDER`",
    )
    pretrained: bool = Field(False, description="fetch the name's own weights (needs a network)")
    checkpoint: Path | None = Field(
        None, description="a local .safetensors, .pth or .npz file in the model's own key names, also below a prefix"
    )
    checkpoint_key: str | None = Field(
        None, min_length=1, description="which of the sets of weights in the checkpoint, as `model_ema` or `teacher`"
    )
    args: dict[str, Any] = Field(default_factory=dict, description="extra arguments for timm.create_model")
    preprocess: Preprocess | None = Field(None, description="how images are prepared, where the weights do not say it")

    @model_validator(mode="after")
    def key_of_a_checkpoint(self) -> Model:
        if self.checkpoint_key is not None and self.checkpoint is None:
            raise ValueError("`checkpoint_key` names a set of weights in `checkpoint`, which is not given")
        return self

    def folders(self) -> list[tuple[str, Path | None]]:
        """Where the model is read from on this machine, each with its key."""
        kind, _, place = self.name.partition(":")
        own = Path(place) if kind in ("local-dir", "transformers") and place else None
        return [("model.name", own), ("model.checkpoint", self.checkpoint)]


class Data(Part):
    """Which images: `source: bundled`, `path:`, `dataset:`, or `probe:` and `test:`.

    A path is a folder with one folder of images per class, a .csv or .parquet manifest with the columns path and label,
    a .tar file, or a folder of .tar files.
    """

    source: Literal["bundled"] | None = Field(None, description="the images that come with the package")
    path: Path | None = Field(
        None, description="the images, relative to the working folder; with `dataset`, where its files are"
    )
    dataset: str | None = Field(
        None, description="a name of timm.data.create_dataset: torch/…, or by extras hfds/…, hfids/…, wds/…, tfds/…"
    )
    dataset_split: str = Field("validation", description="which part of the dataset")
    probe: Path | None = Field(None, description="images to choose with, in place of a share of each class")
    test: Path | None = Field(None, description="images to judge with; none of them may be among the probe's")
    labels: Literal["by-order"] | Path | None = Field(
        None,
        description="names of the images' classes against the model's: a .json, .csv or plain text file, or the word "
        "`by-order`: the sorted classes are the outputs (a file of that name is `./by-order`)",
    )
    on_corrupt: Literal["fail", "skip"] = Field(
        "fail", description="an unreadable image: stop, or leave it out and count"
    )
    workers: Annotated[StrictInt, Field(ge=0, le=256)] | None = Field(
        None, description="processes that decode; 0: threads of the run itself; without it as the images are many"
    )
    limit_per_class: Annotated[StrictInt, Field(ge=2)] | None = Field(
        None, description="first this many images of each class (a quick trial)"
    )

    @model_validator(mode="after")
    def one_source(self) -> Data:
        if (self.probe is None) != (self.test is None):
            raise ValueError("`probe` and `test` go together, one to choose with and one to judge with")
        path = self.path if self.dataset is None else None  # a dataset may have both
        if sum(given is not None for given in (self.source, path, self.dataset, self.probe)) != 1:
            raise ValueError(
                "give either `source: bundled` or `path: FOLDER`, or `dataset: NAME`, or `probe` and `test`"
            )
        return self

    @field_serializer("labels", mode="plain")
    def file_or_word(self, labels: Path | str | None) -> str | None:
        """A file that is called as the word is stays a file."""
        return f"./{labels}" if labels == Path(BY_ORDER) else None if labels is None else str(labels)

    def content(self) -> dict[str, Any]:
        """What a result depends on: not how many processes decode."""
        return self.model_dump(mode="json", exclude={"workers"})


class SplitSpec(Part):
    """The per-class split of the images into probe (choose) and test (judge)."""

    seed: Seed = Field(0, description="of the shuffle")
    probe: float = Field(0.8, gt=0, lt=1, description="share of each class that goes to the probe split")


class Criterion(Part):
    """What ranks the hidden units. The settings from `formula` on belong to the criteria that integrate gradients."""

    name: CriterionName = Field(
        "fisher-obs", description="`vitprune criteria` lists what each needs and where it comes from"
    )
    among: list[CriterionName] = Field(AMONG, min_length=2, description="what `auto` chooses among, on a probe fold")
    t: Annotated[StrictInt, Field(ge=1)] = Field(50, description="units per image and block")
    probe_per_class: Annotated[StrictInt, Field(ge=1)] = Field(40, description="probe images per class for discovery")
    exact_per_class: Annotated[StrictInt, Field(ge=1)] | None = Field(
        None, description="knowledge-attribution: fewer probe images per class, as it runs every unit alone"
    )
    formula: Literal["jas", "joint-ig"] = Field(
        "jas", description="the paper's product of sums, or the sum of products"
    )
    candidates: Literal["parallel", "each"] = Field(
        "parallel", description="a block's candidates scaled together, or each alone (slow)"
    )
    shortlist: Annotated[StrictInt, Field(ge=1)] | None = Field(
        None, description="with `candidates: each`: only this many of the parallel pass"
    )
    quadrature: Literal["left", "right", "midpoint", "gauss-legendre"] | None = Field(
        None, description="gauss-legendre, or left with `reference`; the paper's is right with 20 nodes"
    )
    nodes: Annotated[StrictInt, Field(ge=1, le=1000)] | None = Field(
        None, description="integration steps m: 5 under gauss-legendre, else 20"
    )
    tokens: Literal["cls", "patches", "all"] = Field("cls", description="where a path's units are assigned")
    objective: Literal["probability", "logit", "log-probability"] = Field(
        "probability", description="of the true class: what is integrated"
    )
    reference: bool = Field(
        False, description="as the authors' code: clamped class token, lowest-ranked unit in the sums"
    )
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of the engine's matrix products")
    low: float = Field(0.0, ge=0, le=1, description="joint-gates: α runs from here to 1")
    form: Literal["signed", "absolute", "squared"] = Field("signed", description="joint-gates: taken per image")
    labels: Literal["true", "sampled"] = Field("true", description="joint-gates: or drawn from the model's prediction")
    seed: Seed = Field(0, description="for `random`, for sampled labels and for training")
    epochs: Annotated[StrictInt, Field(ge=1, le=1000)] = Field(10, description="vit-slim: passes over the images")
    rate: float = Field(5e-4, gt=0, le=1, description="vit-slim: AdamW's learning rate")
    pressure: float = Field(1e-4, ge=0, description="vit-slim: weight of the gates' L1 norm")
    train_weights: bool = Field(False, description="vit-slim: the weights train along with the gates")

    @model_validator(mode="after")
    def settings_fit(self) -> Criterion:
        if {"auto", "random"} & set(self.among):
            raise ValueError("`among` names criteria that a choice can fall on, not `auto` or `random`")
        alone = self.candidates == "each" or self.name != "jas"
        if self.shortlist is not None and not alone:
            raise ValueError("`shortlist` goes with `candidates: each` or with knowledge-attribution")
        if self.reference and (self.candidates, self.formula) != ("parallel", "jas"):
            raise ValueError("`reference` is the authors' code: `formula: jas` and `candidates: parallel`")
        return self

    def images_per_class(self, name: str) -> int:
        """How many probe images of a class the criterion `name` looks at."""
        exact = self.exact_per_class if name == "knowledge-attribution" else None
        return self.probe_per_class if exact is None else min(exact, self.probe_per_class)

    def attribution(self) -> Attribution:
        """The settings with every default spelled out."""
        rule = self.quadrature or ("left" if self.reference else "gauss-legendre")
        ruled = {"quadrature", "nodes"}
        settings = {f.name: getattr(self, f.name) for f in fields(Attribution) if f.name not in ruled}
        return Attribution(quadrature=rule, nodes=self.nodes or (5 if rule == "gauss-legendre" else 20), **settings)


class PaperProtocol(Part):
    """The paper's own pruning protocol (class token only, mask chosen by the true label): an oracle-routed figure."""

    t: list[Annotated[StrictInt, Field(ge=1)]] = Field([1, 5, 10], min_length=1, description="units kept per block")
    quadrature: Literal["left", "right", "midpoint", "gauss-legendre"] = Field("right", description="of the integral")
    nodes: Annotated[StrictInt, Field(ge=1, le=1000)] = Field(20, description="integration steps m")
    probe_per_class: Annotated[StrictInt, Field(ge=1)] = Field(40, description="probe images per class for discovery")

    def attribution(self) -> Attribution:
        """The paper's formula on the class token under this rule."""
        return Attribution(quadrature=self.quadrature, nodes=self.nodes)


class Compare(Part):
    """What `vitprune compare` puts side by side: every criterion at every budget, with every repair, on every split."""

    criteria: list[CriterionName] = Field(
        ["jas", "activation", "taylor", "variance", "random"], min_length=2, description="side by side"
    )
    among: list[CriterionName] | None = Field(
        None, min_length=2, description="what `auto` chooses among; without it all the criteria but random"
    )
    keep: list[Keep] = Field([0.5, 0.25, 0.125], min_length=1, description="budgets, as `keep`")
    recovery: list[Recovery] = Field(["none", "affine"], min_length=1, description="repairs, as `recovery`")
    seeds: list[Seed] = Field([0, 1, 2], min_length=1, description="seeds of the split; of the draw too for `random`")

    @model_validator(mode="after")
    def nothing_twice(self) -> Compare:
        for name in ("criteria", "among", "keep", "recovery", "seeds"):
            values = getattr(self, name) or []
            if len({(type(v), v) for v in values}) < len(values):
                raise ValueError(f"`{name}` names one of its values twice")
        if self.among is not None and ("auto" not in self.criteria or not set(self.among) <= self.choices()):
            raise ValueError("`among` goes with `auto` and names other criteria of the comparison, not `random`")
        return self

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


def on_any_disk(name: str) -> str:
    """What a name is to a disk that knows neither case nor Unicode forms, nor a dot or a space at the end."""
    return unicodedata.normalize("NFKC", name).casefold().rstrip(". ")


class Export(Part):
    """What is written for deployment, beside the checkpoint."""

    onnx: bool = Field(True, description="write ONNX files and hold them against torch")
    precisions: list[Literal["fp32", "fp16", "int8"]] = Field(
        ["fp32"], description="of the ONNX files; fp32 is always among them, the others are made from it"
    )
    int8_floor_points: float = Field(
        0.5,
        ge=0,
        le=100,
        description="points of top-1 that int8 may cost on the probe split, else products stay in fp32",
    )
    latency_batches: list[Annotated[StrictInt, Field(ge=1, le=4096)]] = Field(
        [1, 8, 32], description="batch sizes at which dense and slim are timed in turn"
    )

    @field_validator("precisions")
    @classmethod
    def fp32_and_nothing_twice(cls, precisions: list[str]) -> list[str]:
        if "fp32" not in precisions or len(set(precisions)) < len(precisions):
            raise ValueError("name fp32, which the others are made from, and nothing twice")
        return precisions


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
    keep: Keep = Field(
        0.25,
        description="the budget: `25%` or a float up to 1.0 is a share of the hidden units, `25 units` a count per block",
    )
    allocation: Literal["uniform", "global", "budgeted", "auto"] = Field(
        "auto",
        description="every block the same share, one threshold for all, the best widths, or as the criterion likes",
    )
    budget: Literal["parameters", "flops", "latency"] = Field(
        "flops", description="allocation budgeted: what `keep` is a share of, counted or measured on the FFNs"
    )
    floor: Annotated[StrictInt, Field(ge=1)] = Field(1, description="units each block keeps at least, if not uniform")
    rounds: Annotated[StrictInt, Field(ge=1, le=20)] = Field(
        1, description="score, cut a part, repair, score again; 1: all at once"
    )
    round_to: Annotated[StrictInt, Field(ge=1)] | None = Field(None, description="widths become multiples of this")
    recovery: Recovery | Literal["auto"] = Field(
        "auto",
        description="none, mean, affine, sequential (fc2 block by block), layerwise (qkv and proj too); + distill; "
        "auto: layerwise where the blocks allow it, else affine",
    )
    ridge: Annotated[float, Field(gt=0)] | None = Field(
        None, description="strength of the repair's ridge; without it 1e-3, or chosen per layer on probe images"
    )
    refit_images: Annotated[StrictInt, Field(ge=1)] = Field(
        8000, description="probe images at most for sequential, layerwise and distill"
    )
    distill_epochs: Annotated[StrictInt, Field(ge=1, le=1000)] = Field(
        3, description="passes over the images of `+ distill`"
    )
    baselines: list[CriterionName] = Field(
        ["activation", "random"], description="examined at the same budget, with and without the repair"
    )
    random_draws: Annotated[StrictInt, Field(ge=1, le=20)] = Field(3, description="seeds of the baseline `random`")
    paper_protocol: PaperProtocol | None = Field(None, description="also the paper's own, oracle-routed figures")
    compare: Compare | None = Field(None, description="what `vitprune compare` puts side by side")
    paper: Paper | None = Field(None, description="which of the paper's tables `vitprune paper` makes")
    export: Export = Field(default_factory=lambda: Export(), description="what is written for deployment")
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
        return digest(self.model_dump(mode="json", include=chosen) | {"data": self.data.content()})

    def pruning(self) -> dict[str, Any]:
        """What masks and repair depend on beside scores, budget and kind of repair."""
        names = {"round_to", "allocation", "budget", "floor", "ridge", "refit_images", "distill_epochs"}
        return self.model_dump(mode="json", include=names)

    @property
    def own_head(self) -> bool:
        """Whether a slim model of a class set has outputs for its classes only."""
        return self.head == "own" if self.head else self.groups is not None

    def class_sets(self) -> dict[str | None, list[str] | None]:
        """Group name → class names; `{None: …}` for a run without groups, `None` classes meaning all."""
        if self.groups is None:
            return {None: self.classes}
        return {name: members for name, members in self.groups.items()}  # noqa: C416 (widens the key type)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name no file can have
        return False


def bundled_folder() -> Path:
    """Where the recipes that come with the package are: in the wheel beside the code, in a checkout above it."""
    here = Path(__file__).parent
    return here / "recipes" if (here / "recipes").is_dir() else here.parent / "recipes"


def file_of(source: str | Path) -> Path:
    """The file that a recipe's path or the name of a bundled one means."""
    path = Path(source)
    if path.suffix == "" and not _is_file(path) and _is_file(bundled_folder() / f"{source}.yaml"):
        path = bundled_folder() / f"{source}.yaml"
    return path


def beside(source: str | Path) -> list[Path]:
    """Where a recipe's paths are looked for beside the working folder: where the recipe is, if it is one's own."""
    path = file_of(source)
    return [path.parent] if path == Path(source) else []


def load(source: str | Path) -> Recipe:
    """Read a recipe file, or a bundled recipe by its name (`demo`); its paths are looked for in the working folder and,
    where they are not there, beside the recipe. Raises UserError, one line."""
    path = file_of(source)
    try:
        if path.is_dir():
            raise UserError(f"{path}: is a folder; a recipe is a YAML file")
        size = path.stat().st_size
    except FileNotFoundError as error:
        names = ", ".join(sorted(p.stem for p in bundled_folder().glob("*.yaml")))
        raise UserError(f"{path}: no such recipe; bundled ones are {names}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if size > MAX_BYTES:
        raise UserError(f"{path}: {size:,} bytes is no recipe; at most {MAX_BYTES:,} are read")
    made = parse(read_text(path, MAX_BYTES), str(path))
    for folder in beside(source):
        made = recipe_paths.located(made, folder)
    made._origin = Origin(path)
    return made


def parse(text: str, where: str = "recipe") -> Recipe:
    """Check YAML text; `where` names it in errors."""
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            refuse_aliases(node, where)
            value = loader.construct_document(node) if node is not None else None
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{where}{line}: not valid YAML ({getattr(error, 'problem', None) or 'unreadable'})") from error
    except (RecursionError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"{where}: not a recipe ({type(error).__name__} while reading it)") from error
    if not isinstance(value, dict):
        raise UserError(f"{where}: a recipe is a mapping of keys; `vitprune recipe new` prints one to start from")
    try:
        return Recipe.model_validate(value)
    except ValidationError as error:
        raise UserError(describe(error, node, where)) from error


def refuse_aliases(node: yaml.Node | None, where: str) -> None:
    """A recipe has no use for anchors, and chains of them are how a small file fills a memory."""
    seen: set[int] = set()
    stack = [node]
    while stack:
        item = stack.pop()
        if item is None or isinstance(item, yaml.ScalarNode):
            continue
        if id(item) in seen:
            raise UserError(f"{where}, line {item.start_mark.line + 1}: YAML anchors are not accepted in recipes")
        seen.add(id(item))
        if isinstance(item, yaml.MappingNode):
            keys: set[str] = set()
            for key, _ in item.value:
                if isinstance(key, yaml.ScalarNode) and key.value in keys:
                    raise UserError(
                        f"{where}, line {key.start_mark.line + 1}: `{key.value[:80]}` is given more than once"
                    )
                if isinstance(key, yaml.ScalarNode):
                    keys.add(key.value)
        pairs = item.value if isinstance(item, yaml.SequenceNode) else [part for pair in item.value for part in pair]
        stack.extend(pairs)


def describe(error: ValidationError, node: yaml.Node | None, where: str) -> str:
    """The first problem as one line: file, line, key, what, and the nearest right key for an unknown one."""
    first = error.errors()[0]
    for candidate in error.errors():
        if candidate["type"] == "extra_forbidden":
            first = candidate
            break
    keys = [str(part) for part in first["loc"] if not str(part).startswith(("function-", "constrained-", "literal["))]
    keys = [k for k in keys if k not in ("int", "float", "str", "list", "is-instance[Path]", "[key]")]
    keys = ["groups", "auto"] if keys == ["clusters"] and not line_of(node, keys) else keys
    found = node_at(node, first["loc"])
    line = line_of(node, keys)
    if isinstance(found, yaml.ScalarNode) and first["type"] != "extra_forbidden":
        line = found.start_mark.line + 1
        keys[-1:] = [found.value] if first["loc"][-1] == "[key]" else keys[-1:]
    place = f"{where}, line {line}" if line else where
    name = ".".join(keys)[:120]
    if first["type"] == "extra_forbidden":
        known = fields_at(keys[:-1])
        close = difflib.get_close_matches(keys[-1], known, n=1, cutoff=0.4)
        advice = f"did you mean `{close[0]}`?" if close else f"known keys here: {', '.join(known)}"
        return f"{place}: unknown key `{name}`; {advice}"
    message = first["msg"].removeprefix("Value error, ")
    given = found.value if isinstance(found, yaml.ScalarNode) else first.get("input")
    shown = f" (given: {str(given)[:60]!r})" if isinstance(given, str | int | float) else ""
    advice = nearest(first, given) or unquoted(first, found)
    return " ".join(f"{place}: `{name or 'recipe'}`: {message}{shown}{advice}".split())


def nearest(error: Any, given: Any) -> str:
    """The one of the values that are allowed which a wrong one was meant to be."""
    if error["type"] != "literal_error" or not isinstance(given, str):
        return ""
    allowed = re.findall(r"'([^']*)'", str((error.get("ctx") or {}).get("expected", "")))
    plain = {re.sub(r"[-_ ]", "", value).lower(): value for value in allowed}
    written = plain.get(re.sub(r"[-_ ]", "", given[:80]).lower())
    close = [written] if written else difflib.get_close_matches(given[:80], allowed, n=1)
    return f"; did you mean `{close[0]}`?" if close else ""


def unquoted(error: Any, node: yaml.Node | None) -> str:
    """A word about quotes where a text is needed and YAML reads something else: `no` is false, `1` a number."""
    if error["type"] not in ("string_type", "list_type", "path_type") or not isinstance(node, yaml.ScalarNode):
        return ""
    kind = node.tag.rsplit(":", 1)[-1]
    if kind == "str" or node.style in ("'", '"'):
        return ""
    read = {"int": "a number", "float": "a number", "null": "nothing", "timestamp": "a date"}.get(kind, kind)
    if kind == "bool":
        read = str(yaml.SafeLoader.bool_values.get(node.value.lower())).lower()
    written = node.value[:60]
    meant = f'"{written}"' if error["type"] != "list_type" else f'["{written}"]'
    return f"; YAML reads `{written}` as {read}: put a name in quotes, {meant}" if written else "; it is empty"


def node_at(node: yaml.Node | None, path: Sequence[Any]) -> yaml.Node | None:
    """The node that an error's path leads to: a value, or a key where the path ends in `[key]`."""
    for i, part in enumerate(path):
        if isinstance(node, yaml.MappingNode):
            pair = next(((key, value) for key, value in node.value if _is_key(key, part)), None)
            if pair is None:
                return None
            if path[i + 1 : i + 2] == ("[key]",):
                return pair[0]
            node = pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
    return node


def _is_key(node: yaml.Node, part: Any) -> bool:
    """Whether a mapping's key is the one that an error names, as it is written or as YAML reads it."""
    if not isinstance(node, yaml.ScalarNode):
        return False
    read = yaml.SafeLoader("").construct_object(node)
    return part == read or str(part) in (str(read), node.value)


def line_of(node: yaml.Node | None, keys: list[str]) -> int | None:
    """1-based line of the deepest key that is found."""
    line = None
    for key in keys:
        if not isinstance(node, yaml.MappingNode):
            break
        for k, v in node.value:
            if k.value == key:
                line, node = k.start_mark.line + 1, v
                break
        else:
            break
    return line


def fields_at(keys: list[str]) -> list[str]:
    """Names of the keys allowed in the section that `keys` lead to."""
    section: type[BaseModel] = Recipe
    for key in keys:
        field = section.model_fields.get(key)
        inner = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        section = next((a for a in inner if isinstance(a, type) and issubclass(a, BaseModel)), section)
    return list(section.model_fields)


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default spelled out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


TEMPLATE = """\
# A recipe for your own model and images. Check it: vitprune recipe check THIS_FILE. Run it: vitprune run THIS_FILE
version: 1
name: my-model                # results go to exported/my-model/
model:
  name: vit_base_patch16_224.augreg_in21k_ft_in1k   # a timm name, `bundled`, or local-dir:FOLDER
  pretrained: true            # timm's weights; without a network use  checkpoint: FILE  instead
data:
  path: path/to/images        # one folder of images per class, named as the model's labels; or a .csv, .parquet, .tar
  # probe: DIR                # in place of `path`: images of your own to choose with,
  # test: DIR                 #   and to judge with
  # labels: classes.txt       # where folders and the model name the classes differently; or the word by-order
  on_corrupt: fail            # or skip: leave unreadable images out and count them in the report
split: {seed: 0, probe: 0.8}  # 80 % of each class to choose with, 20 % for the exam
# classes: [tench, goldfish]  # prune for these classes only; without it for all of them
criterion: {name: fisher-obs, probe_per_class: 40}   # see `vitprune criteria`; jas for the paper's neuron paths
keep: 25%                     # share of the FFNs' hidden units; `400 units` is a count per block
allocation: auto              # one threshold for all blocks; uniform: one width, which plain timm can load too
round_to: 64                  # widths as multiples of this, for the hardware's sake
recovery: auto                # layer by layer, from probe images without labels; or none, mean, affine, sequential
baselines: [activation, random]
export: {onnx: true, latency_batches: [1, 8, 32]}
out: exported
"""
