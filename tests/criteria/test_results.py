"""What a discovery leaves on disk: small, the same scores to the bit, and read no further than asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from vitprune.core.errors import UserError
from vitprune.criteria import paths, results
from vitprune.criteria.paths import Gathered
from vitprune.criteria.results import RanksBy
from vitprune.criteria.scores import Scores, to_scores
from vitprune.pruning import masks

WIDTHS, CLASSES, SITES = (6, 9, 33), 7, ["one", "two", "three"]


def gathered(seed: int, images: int = 40) -> Gathered:
    """Several parts added up, of some of the classes."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for _ in range(3):
        labels = torch.randint(0, CLASSES - 2, (images,), generator=generator)
        blocks = [torch.randn(images, width, generator=generator).mul(1e3) for width in WIDTHS]
        parts.append(Gathered.of(blocks, labels, np.arange(images), 3))
    return paths.total(parts, np.unique(np.concatenate([part.classes for part in parts])))


def written(path: Path, found: Gathered, ranks_by: RanksBy = "frequency") -> Path:
    with path.open("wb") as file:
        results.write(file, found, ranks_by)
    return path


def read(path: Path, ranks_by: RanksBy = "frequency") -> Scores:
    return results.read(path, "some", SITES, CLASSES, ranks_by)


def same(one: Scores, other: Scores) -> None:
    assert one.images == other.images and list(one.sites) == list(other.sites) == SITES
    assert all(torch.equal(one.sites[name], other.sites[name]) for name in SITES)
    assert (one.ties is None) == (other.ties is None)
    for name in SITES if one.ties is not None and other.ties is not None else []:
        assert torch.equal(one.ties[name], other.ties[name])


@pytest.mark.parametrize("ranks_by", ["frequency", "mean"])
@pytest.mark.parametrize("seed", range(20))
def test_what_is_read_is_what_the_whole_sums_give_to_the_bit(seed: int, ranks_by: RanksBy, tmp_path: Path) -> None:
    """Scores, ties, masks of class sets; a class that was not met is zero."""
    found = gathered(seed)
    whole, back = (
        to_scores(found, "some", SITES, CLASSES, ranks_by),
        read(written(tmp_path / "f", found, ranks_by), ranks_by),
    )
    same(whole, back)
    same(whole, back.in_memory())
    assert not back.sites["two"][CLASSES - 1].any()
    for classes in ([0], [1, 3], None):
        one, other = (masks.build(scores, 0.5, classes=classes) for scores in (whole, back))
        assert all(torch.equal(one.keep[name], other.keep[name]) for name in SITES)
    assert all(map(torch.equal, masks.per_class(whole, 4), masks.per_class(back, 4)))


def test_one_mask_per_class_is_that_of_the_class_alone() -> None:
    scores = to_scores(gathered(3), "some", SITES, CLASSES)
    every = masks.per_class(scores, 4)
    for c in range(CLASSES):
        alone = masks.build(scores, 4, classes=[c]).masks
        assert all(torch.equal(block[c], mask) for block, mask in zip(every, alone, strict=True))


@pytest.mark.parametrize("counted", [np.int64, np.uint32])
def test_a_file_of_an_earlier_version_is_read_as_before(counted: type, tmp_path: Path) -> None:
    """Its sums are float64 and its counts int64, under another checksum."""
    found = gathered(0)
    old = Gathered(found.classes, [c.astype(counted) for c in found.counts], found.sums, found.images, found.paths)
    (tmp_path / "old").write_bytes(old.to_bytes())
    for ranks_by in ("frequency", "mean"):
        same(read(tmp_path / "old", ranks_by), to_scores(old, "some", SITES, CLASSES, ranks_by))
    content = bytearray((tmp_path / "old").read_bytes())
    content[-1] ^= 1
    (tmp_path / "old").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        read(tmp_path / "old")


def test_parts_of_an_earlier_version_are_added_up(tmp_path: Path) -> None:
    part = gathered(1)
    old = Gathered(part.classes, [c.astype(np.int64) for c in part.counts], part.sums, part.images, part.paths)
    mixed, new = paths.total([old, part], part.classes), paths.total([part, part], part.classes)
    assert all(map(np.array_equal, mixed.counts, new.counts)) and all(map(np.array_equal, mixed.sums, new.sums))


@pytest.mark.parametrize(("images", "kind"), [(65_535, np.uint16), (65_536, np.uint32), (1 << 31, np.uint32)])
def test_counts_are_as_small_as_the_images_allow(images: int, kind: type, tmp_path: Path) -> None:
    found = gathered(2)
    found.images[:] = images
    found.counts[0][0, 0] = images
    path = written(tmp_path / "f", found)
    assert load_file(path)["counts.0"].dtype == kind and int(load_file(path)["counts.0"][0, 0]) == images
    same(read(path), to_scores(found, "some", SITES, CLASSES))


def test_a_file_is_a_few_bytes_per_class_and_unit_and_the_same_every_time(tmp_path: Path) -> None:
    found = gathered(4)
    path = written(tmp_path / "f", found)
    assert path.read_bytes() == written(tmp_path / "g", found).read_bytes()
    assert path.stat().st_size < 6 * len(found.classes) * sum(WIDTHS) + 2000
    assert {column.dtype.name for column in load_file(path).values()} == {"int64", "uint8", "uint16", "float32"}
    assert not [name for name in load_file(written(tmp_path / "h", found, "mean")) if name.startswith("counts")]


def test_only_what_is_asked_for_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block at a time, and none of it kept; nothing but the numbers of images before one is asked for."""
    path, asked = written(tmp_path / "f", gathered(5)), list[str]()

    class Watched:
        def __init__(self, *args: Any) -> None:
            self.file = safe_open(*args)

        def __enter__(self) -> Watched:
            self.open = self.file.__enter__()
            return self

        def __exit__(self, *args: Any) -> None:
            self.file.__exit__(*args)

        def keys(self) -> list[str]:
            return list(self.open.keys())

        def get_slice(self, name: str) -> Any:
            return self.open.get_slice(name)

        def get_tensor(self, name: str) -> Any:
            asked.append(name)
            return self.open.get_tensor(name)

    monkeypatch.setattr(results, "safe_open", Watched)
    scores = read(path)
    assert asked == ["images"]
    for _ in range(2):
        asked.clear()
        assert scores.sites["two"].shape == (CLASSES, 9)
        assert sorted(asked) == ["classes", "counts.1", "images"]


@pytest.mark.sample(12)
@pytest.mark.parametrize("seed", range(60))
def test_a_byte_that_changed_is_seen_when_it_is_read(seed: int, tmp_path: Path) -> None:
    """One line, whatever was hit; never other scores."""
    path = written(tmp_path / "f", gathered(6))
    whole, content = read(path).in_memory(), bytearray(path.read_bytes())
    generator = np.random.default_rng(seed)
    content[generator.integers(len(content))] ^= 1 << generator.integers(8)
    path.write_bytes(content if seed % 4 else content[: generator.integers(len(content))])

    def answer() -> str:
        try:
            same(read(path).in_memory(), whole)  # a blank of the header that became another
        except UserError as error:
            return str(error)
        return "damaged"

    assert "damaged" in answer() and "\n" not in answer()
