"""The images' class names against the model's outputs, with a mapping file where the two are named differently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vitprune.core.errors import UserError
from vitprune.images.mapping import Mapping
from vitprune.images.names import Spellings, numbers_of, some


@dataclass(frozen=True, slots=True)
class Match:
    """Which of the model's outputs each class of the images is, [C] int64, and by what that was decided.

    `how`: by `name`, by a `number` that is the output's, or by `order`.
    """

    outputs: np.ndarray
    how: Literal["name", "number", "order"]


def match(
    classes: Sequence[str],
    outputs: int,
    names: Sequence[str] | None,
    where: str,
    numbers: Sequence[int] | None = None,
    mapping: Mapping | None = None,
    *,
    by_order: bool = False,
) -> Match:
    """The model's output of each of the images' classes: one rule for every kind of source.

    By a name that is the model's (`names` may hold two spellings per output separated by a tab, ImageNet's synset and
    plain name), else by the `mapping`, else by a number that is an output's. Where the model has no names and there
    are as many classes as outputs, or where the recipe says `by_order`, by the classes' own order. Anything else is
    refused with both lists. `numbers`: the outputs that the classes' names are, where they are known already.
    """
    known, strict = spellings(names or ()), mapping is None and not by_order
    own = [_own(c, known, strict, where) for c in classes]
    numbers = numbers_of(classes) if numbers is None else numbers
    how: Literal["name", "number", "order"] = "name"
    if by_order:
        how, found = "order", _by_order(classes, outputs, names, where)
    elif mapping is not None:
        found = _by_mapping(classes, own, mapping, known, numbers, outputs, names, where)
    elif names and None not in own:
        found = [i for i in own if i is not None]
    elif numbers is not None:
        how, found = "number", _by_number(classes, numbers, outputs, names, where)
    elif not names and len(classes) == outputs:
        how, found = "order", list(range(outputs))
    else:
        stranger = next((c for c, i in zip(classes, own, strict=True) if i is None), None) if names else None
        raise _refusal(where, classes, outputs, names, _strange(stranger, classes, outputs))
    for name, mine, made in zip(classes, own, found, strict=True):
        if mine is not None and mine != made:
            raise _refusal(
                where, classes, outputs, names, f"class `{name}` is output {mine} by its name and {made} by its {how}"
            )
    return Match(_one_each(classes, found, names, where), how)


def output_indices(
    classes: Sequence[str],
    outputs: int,
    names: Sequence[str] | None,
    where: str,
    numbers: Sequence[int] | None = None,
    mapping: Mapping | None = None,
    *,
    by_order: bool = False,
) -> np.ndarray:
    """The outputs of `match`."""
    return match(classes, outputs, names, where, numbers, mapping, by_order=by_order).outputs


def remark(match: Match, classes: Sequence[str], outputs: int, names: Sequence[str] | None) -> str | None:
    """What a reader of names must know of how they were matched; None where they are the model's own."""
    if match.how == "order":
        pairs = [f"{i} is {c}" for i, c in enumerate(classes)]
        why = "as the recipe says (data.labels: by-order)" if names else "for the model has no class names"
        return f"Class names go by the sorted order of the images' classes, {why}: output {some(pairs)}."
    if match.how == "number" and len(classes) < outputs:
        return (
            f"The images' classes are numbers, taken as the model's outputs counted from 0; {len(classes):,} of "
            f"{outputs:,} outputs have images."
        )
    return None


def spellings(names: Sequence[str]) -> Spellings:
    """Every spelling of the model's labels and its output."""
    return Spellings((spelling, i) for i, name in enumerate(names) for spelling in name.split("\t"))


def _own(name: str, known: Spellings, strict: bool, where: str) -> int | None:
    """The output whose name a class has; where nothing else can lead to one, a name of several is refused."""
    found = known.find(name)
    if len(found) > 1 and strict:
        raise UserError(f"{where}: `{name}` names more than one of the model's outputs; use its other name")
    return found.pop() if len(found) == 1 else None


def _by_order(classes: Sequence[str], outputs: int, names: Sequence[str] | None, where: str) -> list[int]:
    if len(classes) != outputs:
        raise _refusal(
            where, classes, outputs, names, f"{len(classes)} classes cannot go by order to {outputs} outputs"
        )
    return list(range(outputs))


def _by_number(
    classes: Sequence[str], numbers: Sequence[int], outputs: int, names: Sequence[str] | None, where: str
) -> list[int]:
    """Numbers as outputs. Those that run from 1 may be counted from 1, which is no guess of ours."""
    for name, number in zip(classes, numbers, strict=True):
        if number >= outputs:
            why = f"class `{name}` is output {number}, but the model's {outputs} outputs are 0 to {outputs - 1}"
            raise _refusal(where, classes, outputs, names, why)
    if len(numbers) > 1 and sorted(numbers) == list(range(1, len(numbers) + 1)):
        why = f"the classes run from 1 to {len(numbers)}, the model's {outputs} outputs from 0 to {outputs - 1}"
        raise _refusal(where, classes, outputs, names, why)
    return list(numbers)


def _by_mapping(
    classes: Sequence[str],
    own: list[int | None],
    mapping: Mapping,
    known: Spellings,
    numbers: Sequence[int] | None,
    outputs: int,
    names: Sequence[str] | None,
    where: str,
) -> list[int]:
    """A class's own name counts first, then the mapping, then a number."""
    found = [_mapped(c, mapping, known, bool(names)) if i is None else i for c, i in zip(classes, own, strict=True)]
    if numbers is not None:
        found = [n if f is None else f for f, n in zip(found, numbers, strict=True)]
    made = []
    for name, output in zip(classes, found, strict=True):
        if output is None:
            why = f"class `{name}` is neither the model's nor, as one of them, in {mapping.where}"
            raise _refusal(where, classes, outputs, names, why)
        if not 0 <= output < outputs:
            raise UserError(
                f"{where}: class `{name}` is output {output}, but the model's {outputs} outputs are 0 to {outputs - 1}"
            )
        made.append(output)
    return made


def _mapped(name: str, mapping: Mapping, known: Spellings, named: bool) -> int | None:
    """The output that the mapping leads a class to. None where nothing does."""
    entry = mapping.entry(name)
    if entry is None:
        return None
    if entry.output is not None and (entry.stated or not named):
        return entry.output
    reached: set[int] = set()
    for other in entry.names:
        found = known.find(other)
        reached |= found if len(found) == 1 else set()
    if len(reached) > 1:
        raise UserError(f"{mapping.where}: the names of `{name}` lead to {len(reached)} of the model's outputs")
    return reached.pop() if reached else None


def _strange(stranger: str | None, classes: Sequence[str], outputs: int) -> str:
    if stranger is not None:
        return f"class folder `{stranger}` is not among the model's labels"
    return f"{len(classes)} class folders, but the model has {outputs} outputs"


def _refusal(where: str, classes: Sequence[str], outputs: int, names: Sequence[str] | None, why: str) -> UserError:
    """One line with both lists and the ways out."""
    theirs = f"labels are {some(names)}" if names else f"outputs are 0 to {outputs - 1}, without names"
    way = "rename the classes, or map them with data.labels: FILE"
    if len(classes) == outputs:
        way += " (data.labels: by-order takes them in the order given here)"
    return UserError(f"{where}: {why}; the images' classes are {some(classes)}; the model's {theirs}; {way}")


def _one_each(classes: Sequence[str], outputs: list[int], names: Sequence[str] | None, where: str) -> np.ndarray:
    first: dict[int, str] = {}
    for name, output in zip(classes, outputs, strict=True):
        if output in first:
            title = some([names[output]]) if names else str(output)
            raise UserError(
                f"{where}: class folders `{first[output]}` and `{name}` are one output ({title}); "
                "merge them, or name them apart"
            )
        first[output] = name
    return np.array(outputs, np.int64)
