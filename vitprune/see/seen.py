"""What one pass over images leaves of each unit: its exemplars, its distribution, its mean for each class.

Everything is merged in the order of the images, batch after batch and part after part, so that memory does not grow with
their number: exemplars and histograms are the same whatever the batches were, sums are to the last bits.
Legend: B images, T tokens, H units, K images of a list, R drawn images, C classes of the images at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from vitprune.see import exemplars
from vitprune.see.exemplars import Top
from vitprune.see.histogram import Histogram

Columns = dict[str, np.ndarray]
LOOSE = 1 << 22  # bytes of a block's counts; larger ones are kept packed, as most of their bins are empty
READS = ("class", "patches")  # where class means are taken: the class token; the mean over the patches


@dataclass(frozen=True, slots=True)
class Asked:
    """How one block is looked at: tokens that are no patches, whether the first of them is a class token, K, per unit the
    positions [H, R] of the images that were drawn for it, and of which units every image's value is kept [U],
    `at` which tokens (`class`, `patches`, `all`; empty: the first of `reads`). `sized`: units whose sign is nobody's choice,
    of which the size is looked at."""

    prefix: int
    class_token: bool
    k: int
    drawn: np.ndarray
    sampled: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    at: str = ""
    sized: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        """Where class means are taken."""
        return READS if self.class_token else READS[1:]


@dataclass
class Sums:
    """Sums over a class's images: how many, and the activations [H] per place of `READS`."""

    images: int = 0
    of: dict[str, np.ndarray] = field(default_factory=dict)

    def plus(self, count: int, found: Mapping[str, np.ndarray]) -> None:
        """Add the sums over more images."""
        self.images += count
        for name, value in found.items():
            self.of[name] = self.of[name] + value if name in self.of else value


@dataclass
class Seen:
    """What has been seen of one block's units so far."""

    asked: Asked
    top: Top
    drawn: np.ndarray
    drawn_tokens: np.ndarray
    _histogram: Histogram | Columns | None = None
    classes: dict[int, Sums] = field(default_factory=dict)
    squares: Columns = field(default_factory=dict)
    sample: list[np.ndarray] = field(default_factory=list)

    @classmethod
    def nothing(cls, asked: Asked) -> Seen:
        """Before the first image."""
        shape = asked.drawn.shape
        return cls(
            asked, Top.empty(shape[0], asked.k), np.full(shape, np.nan, np.float32), np.full(shape, -1, np.int32)
        )

    def look(self, hidden_BTH: Tensor, start: int, ids: np.ndarray, labels: np.ndarray) -> None:
        """Take in a batch: the images at positions `start`, … of the whole, their ids and labels [B]."""
        prefix, sized = self.asked.prefix, hidden_BTH.abs() if self.asked.sized else hidden_BTH
        values, tokens = exemplars.pooled(sized, prefix)
        self.top = self.top.joined(exemplars.top_of(values, tokens, ids, self.asked.k))
        unit, place = np.nonzero((self.asked.drawn >= start) & (self.asked.drawn < start + len(ids)))
        row = self.asked.drawn[unit, place] - start
        self.drawn[unit, place], self.drawn_tokens[unit, place] = values[row, unit], tokens[row, unit]
        self._count(Histogram.of(sized[:, prefix:]))
        means = {"patches": hidden_BTH[:, prefix:].mean(1)}
        if self.asked.class_token:
            means["class"] = hidden_BTH[:, 0]
        read = {name: value.double().cpu().numpy() for name, value in means.items()}
        for label in np.unique(labels):
            mine = {name: value[labels == label] for name, value in read.items()}
            found = {name: value.sum(0) for name, value in mine.items()}
            self.classes.setdefault(int(label), Sums()).plus(int((labels == label).sum()), found)
        self._square({name: np.square(value).sum(0) for name, value in read.items()})
        at = self.asked.at or self.asked.reads[0]
        one = sized[:, 0] if at == "class" else sized[:, 0 if at == "all" else prefix :].mean(1)
        self.sample.append(one.float().cpu().numpy()[:, self.asked.sampled])

    def _square(self, more: Mapping[str, np.ndarray]) -> None:
        for name, value in more.items():
            self.squares[name] = self.squares[name] + value if name in self.squares else value

    def _count(self, more: Histogram) -> None:
        made = more if self._histogram is None else self.histogram.joined(more)
        self._histogram = made if made.counts.nbytes <= LOOSE else made.packed()

    @property
    def histogram(self) -> Histogram:
        """The counts of what has been seen; of something, at least."""
        known = self._histogram
        assert known is not None
        return known if isinstance(known, Histogram) else Histogram.unpacked(known)

    def columns(self) -> Columns:
        """As columns of a part."""
        made = {"values": self.top.values, "images": self.top.images, "tokens": self.top.tokens}
        made |= {"drawn": self.drawn, "drawn_tokens": self.drawn_tokens}
        made |= {f"histogram.{name}": column for name, column in self.histogram.packed().items()}
        made["sample"] = np.concatenate(self.sample)
        made["labels"] = np.array(list(self.classes), np.int64)
        made["counts"] = np.array([sums.images for sums in self.classes.values()], np.int64)
        for name in self.asked.reads:
            made[f"sums.{name}"] = np.stack([sums.of[name] for sums in self.classes.values()])
            made[f"squares.{name}"] = self.squares[name]
        return made

    def merge(self, part: Mapping[str, np.ndarray]) -> None:
        """Take in what another pass, over later images and no earlier classes, left as columns."""
        self.top = self.top.joined(Top(part["values"], part["images"], part["tokens"]))
        there = ~np.isnan(part["drawn"])
        self.drawn[there], self.drawn_tokens[there] = part["drawn"][there], part["drawn_tokens"][there]
        self._count(Histogram.unpacked({name: part[f"histogram.{name}"] for name in ("low", "high", "counts")}))
        for row, label in enumerate(part["labels"].tolist()):
            found = {name: part[f"sums.{name}"][row] for name in self.asked.reads}
            self.classes.setdefault(label, Sums()).plus(int(part["counts"][row]), found)
        self._square({name: part[f"squares.{name}"] for name in self.asked.reads})
        self.sample.append(part["sample"])
        for label in self.classes.keys() - set(part["labels"].tolist()):  # whole, and kept small
            sums = self.classes[label]
            sums.of = {name: value.astype(np.float32, copy=False) for name, value in sums.of.items()}
