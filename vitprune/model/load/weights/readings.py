"""The sets of weights in a trainer's file, and which of them fit a model.

A set is one dictionary of the file with one beginning of its names: in {"model": {"module.head.bias": …}} the dictionary
`model` and the prefix `module.`. What those are called does not matter: what follows must be the model's own names, all of
them, in the model's shapes. Two sets that fit and differ are never chosen between.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vitprune.core.errors import UserError
from vitprune.model.load.weights.cures import cure
from vitprune.model.load.weights.sets import WRAPPERS, Misfit, Reading, _telling, inner

NO_WEIGHTS = re.compile("optim|sched|scaler|(^|_)rng", re.IGNORECASE)  # moments have the names and shapes of weights
DEPTH, WIDTH = 6, 64


def find(content: Any, model: nn.Module) -> list[Reading]:
    """Every set in a file that has names of the model's: of each dictionary those that have all, else the nearest."""
    names = inner(model).state_dict().keys()
    return [reading for where, tensors in _dictionaries(content) for reading in _of_one(where, tensors, set(names))]


def choose(content: Any, model: nn.Module, key: str | None) -> Reading:
    """The one set in a file that fits, of those that `key` names. Raises UserError, without the file's name."""
    found = find(content, model)
    if not found:
        names = [name for _, tensors in _dictionaries(content) for name in tensors]
        held = f"its names are as `{names[0][:80]}`" if names else "it holds no tensors by name"
        wanted = next(iter(inner(model).state_dict()))
        raise UserError(
            f"does not hold the model's weights: {held}, the model's are as `{wanted}`; give a state_dict with the model's "
            "own names, or another model.name (transformers:FOLDER reads a folder of that library)"
        )
    asked = [r for r in found if key is None or r.name == key] or [r for r in found if r.answers_to(str(key))]
    if key is not None and not asked:
        there = ", ".join(f"`{r.name}`" for r in found[:8])
        raise UserError(f"has no weights under `{key[:80]}` (model.checkpoint_key); there is {there}")
    fitting = [r for r in asked if not Misfit.of(r, model)]
    different: list[Reading] = []
    for reading in fitting:
        if not any(_equal(reading, other) for other in different):
            different.append(reading)
    if len(different) > 1:
        sets = ", ".join(f"`{r.name}`" for r in different[:8])
        raise UserError(
            f"holds {len(different)} sets of weights that fit and differ: {sets}; say which is meant, "
            f"as model.checkpoint_key: {different[0].name}"
        )
    if not different:
        raise UserError(_why_none(asked, model))
    return different[0]


def _dictionaries(content: Any, where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Every dictionary of tensors by name, with the keys that lead to it."""
    if len(where) > DEPTH or any(NO_WEIGHTS.search(key) for key in where[-1:]):
        return
    if isinstance(content, list | tuple):
        content = {str(i): part for i, part in enumerate(content[:WIDTH]) if isinstance(part, Mapping)}
    if not isinstance(content, Mapping):
        return
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if tensors:
        yield where, tensors
    nested = [(key, part) for key, part in content.items() if isinstance(part, Mapping | list | tuple)]
    for key, part in nested[:WIDTH]:
        if isinstance(key, str):
            yield from _dictionaries(part, (*where, key))


def _of_one(where: tuple[str, ...], tensors: dict[str, Tensor], names: set[str]) -> list[Reading]:
    plain = {key: ".".join(part for part in key.split(".") if part not in WRAPPERS) for key in tensors}
    if len(set(plain.values())) < len(plain):
        plain = {key: key for key in tensors}
    counts = Counter(name[:start] for name in plain.values() for start in _starts(name) if name[start:] in names)
    prefixes = [p for p, n in counts.items() if n == len(names)]
    prefixes = prefixes or [p for p, n in counts.most_common(1) if 4 * n >= len(names)]
    found = []
    for prefix in prefixes:
        others = tuple(p for p in prefixes if p != prefix and p.startswith(prefix))
        mine = {
            key for key, name in plain.items() if name.startswith(prefix) and not (others and name.startswith(others))
        }
        spelled = _spelled(next(key for key in mine if plain[key][len(prefix) :] in names), plain, prefix)
        own = {plain[key][len(prefix) :]: tensors[key] for key in tensors if key in mine}
        found.append(Reading(where, prefix, spelled, own, [key for key in tensors if key not in mine]))
    return found


def _starts(name: str) -> list[int]:
    return [0, *(i + 1 for i, character in enumerate(name) if character == ".")]


def _spelled(key: str, plain: dict[str, str], prefix: str) -> str:
    rest = plain[key][len(prefix) :]
    return key.removesuffix(rest) if key.endswith(rest) else prefix


def _equal(one: Reading, other: Reading) -> bool:
    return one.tensors.keys() == other.tensors.keys() and all(
        value.dtype == other.tensors[name].dtype and torch.equal(value, other.tensors[name])
        for name, value in one.tensors.items()
    )


def _why_none(found: list[Reading], model: nn.Module) -> str:
    """The nearest set, what of it differs, and the way out."""
    misfits = [(Misfit.of(reading, model), reading) for reading in found]
    misfit, reading = min(misfits, key=lambda m: (len(m[0].missing), len(m[0].shapes), len(m[0].unexpected)))
    under = f"the set `{'.'.join(reading.where)}`" if reading.where else "its set of weights"
    under += f" (names begin with `{reading.spelled[:60]}`)" if reading.spelled else ""
    return f"{under} does not fit {type(inner(model)).__name__}: {_difference(misfit)}; {cure(misfit, reading, model)}"


def _difference(misfit: Misfit) -> str:
    if misfit.shapes:
        name, (file, own) = min(misfit.shapes.items(), key=lambda item: _telling(item[0]))
        return f"`{name[:80]}` is {file} in the file, {own} in the model{_more(misfit.shapes)}"
    if misfit.kinds:
        name, kind = next(iter(misfit.kinds.items()))
        return f"`{name[:80]}` is {kind} in the file, a float in the model{_more(misfit.kinds)}"
    parts = []
    if misfit.missing:
        name, shape = next(iter(misfit.missing.items()))
        parts.append(f"`{name[:80]}` {shape} is missing{_more(misfit.missing)}")
    if misfit.unexpected:
        name, shape = next(iter(misfit.unexpected.items()))
        parts.append(f"the file has `{name[:80]}` {shape}, the model has not{_more(misfit.unexpected)}")
    return "; ".join(parts)


def _more(of: Mapping[str, Any]) -> str:
    return f" (and {len(of) - 1} more)" if len(of) > 1 else ""
