"""A recipe made of flags, and the file that says the same."""

from __future__ import annotations

import difflib
import json
import re
import shlex
from pathlib import Path
from typing import get_args

import yaml
from pydantic import ValidationError

from vitprune.cli.given.groups import Flags
from vitprune.core import places
from vitprune.core.errors import UserError
from vitprune.core.reading import Json
from vitprune.recipe.parts import Word
from vitprune.recipe.recipe import Recipe

WORDS = get_args(Word)
SHARES = ("macs", "params", "latency")
WEIGHTS = {".safetensors", ".pth", ".npz", ".pt", ".bin"}
OWN_WEIGHTS = ("local-dir", "transformers")
DATASETS = re.compile(r"(torch|hfds|hfids|wds|tfds)/.+")
WHICH = {
    "name": "--name",
    "model": "--model",
    "data": "--data",
    "whole": "--budget",
    "budget": "--budget",
    "out": "--out",
}
MORE = """\
# What else can be said, with what holds where it is not; `vitprune recipe schema` has every key:
# split: {seed: 0, probe: 0.8}   # 80 % of each class to choose with, 20 % for the exam
# classes: [tench, goldfish]     # prune for these classes only; without it for all of them
# criterion: {name: fisher-obs}  # see `vitprune criteria`; jas for the paper's neuron paths
# recovery: auto                 # layer by layer, from probe images without labels; or none, mean, affine, sequential
# baselines: [activation, random]
# export: {precisions: [fp32]}   # fp16 and int8 beside it
"""


def recipe(flags: Flags, out: Path | None) -> Recipe:
    """The recipe that the flags ask for. Raises UserError, one line."""
    made = content(flags, out)
    try:
        return Recipe.model_validate(made)
    except ValidationError as error:
        first = error.errors()[0]
        flag = WHICH.get(str(first["loc"][0]) if first["loc"] else "", "the flags")
        if flag == "--budget":
            flag = " ".join([flag, *(flags.budget or ())]) if flags.max_loss is None else "--max-loss"
        given = f" (given: {str(first['input'])[:60]!r})" if isinstance(first["input"], str | int | float) else ""
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(" ".join(f"{flag}: {message}{given}".split())) from error


def text(flags: Flags, out: Path | None, command: str) -> str:
    """The same as a recipe's file; `command` is what it was made by."""
    recipe(flags, out)
    body = yaml.safe_dump(content(flags, out), sort_keys=False, allow_unicode=True, default_flow_style=None, width=1000)
    return f"# Made by: {command}\n{body}{MORE}"


def content(flags: Flags, out: Path | None) -> Json:
    """What the recipe's file says, before it is checked."""
    if flags.model is None or flags.data is None:
        missing = "--model: a folder, a timm name, or bundled" if flags.model is None else "--data: images, or bundled"
        raise UserError(f"{', '.join(flags.given)}: goes with {missing}")
    made: Json = {"version": 1, "name": _name(flags.data) if flags.name is None else flags.name}
    made |= {"model": _model(flags.model, flags.checkpoint), "data": _data(flags.data)}
    made |= {"budget": found} if (found := _budget(flags.budget or [], flags.max_loss)) else {}
    return made | ({"out": str(out)} if out is not None else {})


def words(flags: Flags) -> str:
    """The flags as they may be told: for the record, and the head of a file."""
    found = [("--model", flags.model and _told(flags.model)), ("--data", flags.data and _told(flags.data))]
    found += [("--checkpoint", None if flags.checkpoint is None else places.place(flags.checkpoint))]
    found += [("--budget", one) for one in flags.budget or ()]
    found += [("--max-loss", None if flags.max_loss is None else f"{flags.max_loss:g}"), ("--name", flags.name)]
    return " ".join(f"{flag} {shlex.quote(' '.join(value.split()))}" for flag, value in found if value)


def _told(given: str) -> str:
    kind, colon, place = given.rpartition(":")
    return f"{kind}{colon}{places.place(place)}" if kind in ("", *OWN_WEIGHTS) else given


def _model(given: str, checkpoint: Path | None) -> Json:
    """The section `model`: what a word, a folder or a name stands for."""
    path, kind = Path(given), given.partition(":")[0]
    if given == "bundled" or (":" in given and kind in OWN_WEIGHTS):
        made: Json = {"name": given}
    elif _is(path, "dir"):
        made = {"name": f"{_kind(path)}:{given}"}
    elif _is(path, "file") or path.suffix.lower() in WEIGHTS:
        raise UserError(
            f"--model {given}: is weights alone, and does not say of which model; give --model NAME --checkpoint {given}"
        )
    elif "/" in given and ":" not in given:
        raise UserError(f"--model {given}: no such folder; a model of the Hub is hf-hub:{given.strip('./')}")
    else:
        made = {"name": given} | ({"pretrained": True} if checkpoint is None else {})
    return made | ({"checkpoint": str(checkpoint)} if checkpoint is not None else {})


def _kind(folder: Path) -> str:
    """Whose folder it is: timm's, as vitprune writes them too, or that of transformers, by what its config.json has."""
    try:
        found = json.loads((folder / "config.json").read_bytes()[: 1 << 20])
    except (OSError, ValueError, RecursionError):
        return "local-dir"  # opening it says what is wrong
    return (
        "transformers"
        if isinstance(found, dict) and "model_type" in found and "architecture" not in found
        else "local-dir"
    )


def _data(given: str) -> Json:
    """The section `data`."""
    if given == "bundled":
        return {"source": "bundled"}
    return {"dataset": given} if DATASETS.fullmatch(given) and not _is(Path(given), "exists") else {"path": given}


def _budget(given: list[str], max_loss: float | None) -> Json:
    """The section `budget`, empty where nothing is asked for: one word, with a list where it has several amounts."""
    if max_loss is not None:
        if given:
            raise UserError("--max-loss: is a budget of its own; give --budget or --max-loss, not both")
        return {"loss_points": max_loss}
    found: dict[str, list[float]] = {}
    for one in given:
        word, equals, amount = one.partition("=")
        if not equals or word not in WORDS:
            close = difflib.get_close_matches(word, WORDS, n=1)
            advice = (
                f"did you mean {close[0]}=…?" if close and word not in WORDS else f"WORD=AMOUNT, of {', '.join(WORDS)}"
            )
            raise UserError(f"--budget {one[:60]}: {advice}")
        found.setdefault(word, []).append(_amount(one, word, amount))
    if len(found) > 1:
        raise UserError(
            f"--budget: {' and '.join(found)} are two budgets; give one word, with several amounts if you like"
        )
    return {word: amounts if len(amounts) > 1 else amounts[0] for word, amounts in found.items()}


def _amount(one: str, word: str, amount: str) -> float:
    percent = amount.endswith("%") and word in SHARES
    try:
        found = float(amount.removesuffix("%")) / 100 if percent else float(amount)
    except ValueError as error:
        raise UserError(f"--budget {one[:60]}: the amount is no number") from error
    if word in SHARES and not 0 < found <= 1:
        raise UserError(
            f"--budget {one[:60]}: is the share that is left, above 0 and up to 1, as {word}=0.25 or {word}=25%"
        )
    return found


def _name(data: str) -> str:
    """The name of a run by its images: what a folder may be called of the last part of their place."""
    last = Path(data).name if _is(Path(data), "dir") else Path(data).stem
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-._")[:64]
    return plain or "images"


def _is(path: Path, what: str) -> bool:
    try:
        return {"dir": path.is_dir, "file": path.is_file, "exists": path.exists}[what]()
    except (OSError, ValueError):  # a name that no file can have
        return False
