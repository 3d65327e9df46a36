"""Class names: when two of them mean the same, when one is a number, and what an output is called wherever it is named.

Two names are the same class where they are equal but for case, spaces, `_`, `-` or the Unicode form. A number may have
zeros before it (`07`) and none but zeros behind its point (`7.0`, as tables write it).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

NUMBER = re.compile(r"0*([0-9]{1,9})(?:\.0+)?")
PASSED_OVER = {"Pd", "Pc", "Cf"}  # Unicode's dashes, its low lines, and what is not seen


def number_of(name: str) -> int | None:
    """The number that a name is (`7`, `007`, `7.0`), else None."""
    found = NUMBER.fullmatch(name)
    return int(found[1]) if found else None


def numbers_of(names: Iterable[str]) -> list[int] | None:
    """The numbers that all names are, or None where one is none or there are no names."""
    found = [number_of(name) for name in names]
    return [n for n in found if n is not None] if found and None not in found else None


def in_order(names: Iterable[str]) -> list[str]:
    """Names as every source orders its classes: numbers by their size, others by their text."""
    found = sorted(set(names))
    return sorted(found, key=lambda name: number_of(name) or 0) if numbers_of(found) is not None else found


def fold(name: str) -> str:
    """What names of the same class have in common; empty where nothing of a name remains."""
    number = number_of(name)
    if number is not None:
        return str(number)
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return "".join(c for c in plain if not c.isspace() and unicodedata.category(c) not in PASSED_OVER)


class Spellings:
    """Names and what each stands for; a name may stand for several things."""

    def __init__(self, pairs: Iterable[tuple[str, int]]) -> None:
        self._exact: dict[str, set[int]] = {}
        self._alike: dict[str, set[int]] = {}
        for name, meaning in pairs:
            self._exact.setdefault(name, set()).add(meaning)
            self._alike.setdefault(fold(name), set()).add(meaning)
        self._alike.pop("", None)

    def exact(self, name: str) -> set[int]:
        """All that the name stands for as it is written."""
        return set(self._exact.get(name) or ())

    def find(self, name: str) -> set[int]:
        """The same, else all that a name stands for that is equal but for its spelling."""
        return self.exact(name) or set(self._alike.get(fold(name)) or ())


def merged(first: Sequence[str], second: Sequence[str]) -> dict[str, str]:
    """For each name of `second`, the one of `first` that means the same; itself where there is none, or no single one."""
    mine, theirs = Counter(map(fold, first)), Counter(map(fold, second))
    alike = {fold(name): name for name in first if mine[fold(name)] == 1 and fold(name)}
    taken = set(first)
    return {name: name if name in taken or theirs[fold(name)] > 1 else alike.get(fold(name), name) for name in second}


def called(outputs: int, labels: Sequence[str] | None, images: Mapping[int, str]) -> list[str]:
    """What every output is called, each by a name of its own: the model's plain name, else the images', else its number.

    Of two outputs with one plain name (ImageNet's two cranes) the synset tells which.
    """
    whole = labels if labels is not None else [images.get(i, str(i)) for i in range(outputs)]
    plain = [label.split("\t")[-1] for label in whole]
    times = Counter(plain)
    both = [
        f"{p} ({w.split(chr(9))[0]})" if times[p] > 1 and "\t" in w else p for p, w in zip(plain, whole, strict=True)
    ]
    times = Counter(both)
    return [f"{name} (output {i})" if times[name] > 1 else name for i, name in enumerate(both)]


def some(names: Sequence[str], most: int = 12) -> str:
    """The first names of a list, two spellings of one between a slash."""
    shown = ", ".join(name.replace("\t", " / ") for name in names[:most])
    return shown + (f", … ({len(names):,} in all)" if len(names) > most else "")


def printable(text: str) -> str:
    """A name as one can print and write it: what is no character to see becomes `?`."""
    return "".join(c if c.isprintable() else "?" for c in text)
