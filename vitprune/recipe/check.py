"""`vitprune recipe check`: what is wrong with a recipe and its files, without torch and within a second.

Paths, the model's folder against itself, class names, settings that exclude each other, the budget. What only shows once
the model is built is for `--model`; pixels and weights are for the run.
"""

from __future__ import annotations

import difflib
import itertools
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitprune.core.errors import UserError
from vitprune.pruning.budget import words
from vitprune.recipe import paths
from vitprune.recipe.inputs import Data
from vitprune.recipe.model_files import Found, model, shown
from vitprune.recipe.recipe import Recipe

MANY_FILES = 2000  # more images than this are not looked at one by one
MANY_BYTES = {".csv": 4 << 20, ".parquet": 64 << 20, ".tar": 64 << 20}


def check(recipe: Recipe, folders: Sequence[Path] = ()) -> Found:
    """Raises UserError, one line, for the first thing that is wrong; paths are looked for in `folders` too."""
    paths.require(recipe, folders)
    exclusive(recipe)
    found = model(recipe.model)
    budget(recipe, found)
    data(recipe, found)
    return found


OF_BACKBONES = ("fisher-obs", "obs", "variance", "variance-weight", "magnitude-l1", "magnitude-l2", "random")


def of_backbone(recipe: Recipe) -> None:
    """Raises UserError for what needs a classifier, where the model has none."""
    need = "needs a classifier, and this model is a backbone without a head"
    if recipe.model.head is None:
        need += " (model.args: {num_classes: …} and weights that have it give it one)"
    data, whole = recipe.data, recipe.whole
    given = {
        "classes": recipe.classes, "groups": recipe.groups or recipe.clusters, "head": recipe.head, "data.labels": data.labels,
        "paper_protocol": recipe.paper_protocol, "paper": recipe.paper, "compare": recipe.compare, "see": recipe.see,
        "budget: loss_points": whole is not None and any(one.of == "loss_points" for one in whole.each),
        "rounds": recipe.rounds > 1,
    }  # fmt: skip
    for key, asked in given.items():
        if asked:
            raise UserError(f"{key}: {need}; leave it out")
    baselines = recipe.baselines if "baselines" in recipe.model_fields_set else []
    for name in (recipe.criterion.name, *baselines):
        if name not in OF_BACKBONES:
            raise UserError(f"criterion `{name}`: {need}; take one of {', '.join(OF_BACKBONES)}")
    if recipe.recovery.endswith(("head", "distill")):
        raise UserError(f"recovery: {recipe.recovery}: {need}; take layerwise")


def exclusive(recipe: Recipe) -> None:
    """Sections that cannot work together, whatever the model; the verbs refuse them too."""
    if recipe.model.head is not None:
        of_backbone(recipe)
    spec = recipe.compare
    if spec is not None:
        if recipe.groups or recipe.clusters:
            raise UserError("compare: one class set at a time; use `classes`, or one recipe per group")
        if recipe.data.probe is not None and len(spec.seeds) > 1:
            raise UserError("compare: data.probe and data.test are one split, not several; set compare.seeds: [0]")
        if "auto" in spec.criteria and len(spec.criteria) < 3:
            raise UserError("compare: `auto` chooses among the other criteria; name two of them at least")
        spec.first(recipe.criterion.name)
    if recipe.paper is not None and recipe.paper.table in ("table-2", "figure-6") and recipe.paper_protocol is None:
        raise UserError(f"paper: {recipe.paper.table} needs a `paper_protocol` section; see recipes/paper/")
    for first, second in itertools.combinations((recipe.groups or {}).items(), 2):
        if set(first[1]) == set(second[1]):
            raise UserError(f"groups: `{first[0]}` and `{second[0]}` name the same classes; one of them is enough")


def budget(recipe: Recipe, found: Found) -> None:
    """Raises UserError for a budget, or units per path that were asked for, that no block has."""
    if not found.widths:
        return
    least = min(found.widths)
    compared = (recipe.compare.keep if recipe.compare else None) or []
    for name, value in [("keep", recipe.keep), *(("compare.keep", k) for k in compared)]:
        if isinstance(value, int) and value > least:
            raise UserError(f"{name}: {words(value)} per block, but a block has only {least}")
        if isinstance(value, float) and int(value * least + 1e-9) < 1:
            raise UserError(f"{name}: {words(value)} of {least} hidden units leaves none; keep at least one per block")
    protocol = recipe.paper_protocol
    asked = [] if recipe.criterion.t == "auto" else [recipe.criterion.t]
    asked += protocol.t if protocol and "t" in protocol.model_fields_set else []
    if asked and max(asked) > least:
        raise UserError(f"t: {max(asked)} units per block are asked for, but a block has {least}; choose 1 to {least}")


def data(recipe: Recipe, found: Found) -> None:
    """Raises UserError where classes of the images, of the recipe and of the model do not go together."""
    from vitprune.images import class_names
    from vitprune.images.mapping import Mapping

    spec = recipe.data
    mapping = Mapping(spec.labels) if isinstance(spec.labels, Path) else None
    headless = recipe.model.head is not None or found.outputs == 0
    source = images(spec, found, headless)
    if source is None or headless:
        return
    where = str(spec.dataset or spec.path or spec.probe or "bundled images")
    of_class: list[int | None] = [None] * len(source.classes)
    by_order = isinstance(spec.labels, str)  # the word, not a file
    if by_order and found.outputs not in (None, len(source.classes)):
        raise UserError(
            f"{where}: {len(source.classes)} classes cannot go by order to {found.outputs} outputs; see data.labels"
        )
    known_names = found.names or found.outputs != 1000  # ImageNet's names are timm's to know
    if found.outputs is not None and known_names and not by_order:
        placed = class_names.output_indices(source.classes, found.outputs, found.names, where, source.numbers, mapping)
        of_class = [int(i) for i in placed]
    known = {plain(name): name for name in source.classes}
    for output in of_class:
        if output is not None and found.names:
            known |= {plain(name): name for name in found.names[output].split("\t")}
    groups = recipe.groups or {}
    for place, names in [("classes", recipe.classes or []), *((f"groups.{g}", m) for g, m in groups.items())]:
        for name in names:
            entry = mapping.entry(name) if mapping else None
            if plain(name) not in known and not (entry and known.keys() & set(map(plain, entry.names))):
                near = difflib.get_close_matches(plain(name[:200]), sorted(known), n=1)
                hint = f"did you mean `{known[near[0]]}`?" if near else f"they are {shown(source.classes)}"
                raise UserError(f"{place}: `{name}` is not a class of these images; {hint}")
    if recipe.clusters and recipe.clusters > len(source.classes):
        raise UserError(
            f"groups.auto: {recipe.clusters} groups of {len(source.classes)} classes; ask for {len(source.classes)} at most"
        )


def plain(name: str) -> str:
    """A name without what two spellings of it may differ in: Unicode form, case, spaces, `_` and `-`."""
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", name).casefold())


def images(spec: Data, found: Found, unlabelled: bool = False) -> Any:
    """The classes of the images as the run's own source reads them; of too many files to open, by the folders' names.
    `unlabelled`: a folder without class folders is one class."""
    from vitprune.images.sources.folder import ONE_CLASS
    from vitprune.images.sources.found import folders
    from vitprune.images.sources.opening import open_source

    if spec.dataset is not None:
        found.unseen.append("the dataset")
        return None
    places = [path for path in (spec.path, spec.probe, spec.test) if path is not None]
    if all(small(path) for path in places):
        return open_source(spec, lambda: unlabelled)
    if all(path.is_dir() and not any(entry.suffix == ".tar" for entry in path.iterdir()) for path in places):
        found.unseen.append("the image files")
        names = [set(folders(path)) for path in places]
        return _Folders(sorted(set().union(*names)) or [ONE_CLASS] * unlabelled)
    found.unseen.append("the images' classes")
    return None


def small(path: Path) -> bool:
    """Whether a source can be opened in a moment."""
    if path.is_file():
        return path.stat().st_size <= MANY_BYTES.get(path.suffix.lower(), 0)
    tars = [entry for entry in path.iterdir() if entry.suffix.lower() == ".tar"] if path.is_dir() else []
    if tars:
        return sum(entry.stat().st_size for entry in tars) <= MANY_BYTES[".tar"]
    return sum(1 for _ in itertools.islice(files(path), MANY_FILES + 1)) <= MANY_FILES


def files(folder: Path) -> Iterator[str]:
    """Every file below a folder."""
    for _, _, names in os.walk(folder):
        yield from names


class _Folders:
    """The class folders of a large source, without their images."""

    def __init__(self, classes: list[str]) -> None:
        self.classes, self.numbers = classes, None
        self.names: list[str] = []
        self.class_of = np.zeros(0, np.int64)


def ok(recipe: Recipe, where: str, found: Found, built: bool = False) -> str:
    """The line that says so."""
    name = recipe.model.name
    short = Path(name.partition(":")[2]).name if name.startswith(paths.PREFIXES) else name
    outputs = f" of {found.outputs} outputs" if found.outputs else ""
    sets = len(recipe.groups) if recipe.groups else recipe.clusters
    what = f"{sets} groups" if sets else f"{len(recipe.classes)} classes" if recipe.classes else "all classes"
    unseen = [] if built and found.unseen == ["the model's shapes"] else found.unseen
    kept = recipe.whole.words() if recipe.whole else f"keep {words(recipe.share)}"
    left = f"; not looked at: {', '.join(unseen)}" if unseen else ""
    if not built and "the model's shapes" in unseen:
        left += " (--model builds the model)"
    return f"ok: {where}: {short}{outputs}, {what}, {recipe.criterion.name}, {kept}{left}"
