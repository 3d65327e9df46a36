"""YAML to a recipe and back, and the recipe to start from."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import (
    ValidationError,
)

from vitprune.core.errors import UserError
from vitprune.core.reading import read_text
from vitprune.model.vlm.recognising import architecture_of
from vitprune.recipe import paths
from vitprune.recipe.mistakes import describe, refuse_aliases
from vitprune.recipe.recipe import Origin, Recipe

MAX_BYTES = 1_000_000


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name no file can have
        return False


def bundled_folder() -> Path:
    """Where the recipes that come with the package are: in the wheel beside the code, in a checkout above it."""
    here = Path(__file__).parents[1]
    return here / "recipes" if (here / "recipes").is_dir() else here.parent / "recipes"


def file_of(source: str | Path) -> Path:
    """The file that a recipe's path or the name of a bundled one means."""
    path = Path(source)
    if path.suffix == "" and not _is_file(path) and _is_file(bundled_folder() / f"{source}.yaml"):
        path = bundled_folder() / f"{source}.yaml"
    return path


def of_vlm(source: str | Path) -> bool:
    """Whether a recipe speaks of a vision-language model: its folder holds one, or `data` has pairs. What cannot be read is
    left to those who read it next."""
    path = file_of(source)
    try:
        value = yaml.safe_load(read_text(path, MAX_BYTES))
        model, data = (value.get(key) if isinstance(value, dict) else None for key in ("model", "data"))
        name = model.get("name") if isinstance(model, dict) else None
        if isinstance(data, dict) and "pairs" in data:
            return True
        if not isinstance(name, str) or not name.startswith("transformers:"):
            return False
        folder = Path(name.removeprefix("transformers:"))
        return any(architecture_of(place) is not None for place in (folder, path.parent / folder))
    except (UserError, yaml.YAMLError, RecursionError, ValueError, OSError):
        return False


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
    if of_vlm(source):
        raise UserError(f"{path}: is of a vision-language model, which `vitprune see` and `vitprune run` take")
    made = parse(read_text(path, MAX_BYTES), str(path))
    for folder in beside(source):
        made = paths.located(made, folder)
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


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default spelled out."""
    return yaml.safe_dump(recipe.written(), sort_keys=False, allow_unicode=True)


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
budget: {macs: 0.5}           # half of the model's multiply-adds are left; or params, latency, size_mb, loss_points
# prune: [ffn]                # leave attention as it is; without it heads and their dimensions go beside FFN units
# keep: 25%                   # in the place of budget, share of the FFNs' hidden units; `400 units` per block
# round_to: 64                # widths of the FFNs as multiples of this, for the hardware's sake
recovery: auto                # layer by layer, from probe images without labels; or none, mean, affine, sequential
baselines: [activation, random]
export: {onnx: true, latency_batches: [1, 8, 32]}
out: exported
"""
