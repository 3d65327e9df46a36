"""Every image is decoded once in a run; what is kept are its pixels, and what the model gets are the transform's bits."""

from __future__ import annotations

from collections import Counter, namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simulated
import torch
from PIL import Image
from small import image_folder, model_folder, quicken, recipe_dict

from vitprune.images import batches, kept
from vitprune.images.batches import Images
from vitprune.images.decode_pool import Job, Processes, check
from vitprune.images.preprocess import Preprocessing
from vitprune.images.sources.folder import Folder
from vitprune.model.load.loaded import Transform
from vitprune.recipe.recipe import Recipe
from vitprune.runs import pipeline
from vitprune.runs.stages.exams import examples

GREY = Preprocessing(1, (28, 28), "bilinear", 0.875, "center", (0.2860,), (0.3530,))
COLOUR = Preprocessing(3, (8, 32), "bicubic", 0.9, "center", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def images_of(root: Path, prepare: Preprocessing = GREY, **more: Any) -> Images:
    return Images(Folder(root), Transform(prepare), prepare.channels, np.arange(3), **more)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each image was decoded."""
    found: Counter[str] = Counter()
    plain = Folder.image

    def image(self: Folder, i: int) -> Image.Image:
        found[self.names[i]] += 1
        return plain(self, i)

    monkeypatch.setattr(Folder, "image", image)
    return found


@pytest.mark.parametrize("where", ["memory", "file"])
def test_a_run_decodes_each_image_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: Counter[str], where: str
) -> None:
    """The split's reading, discovery, repair, exam and export together; but for the few that the report shows whole. The
    file is gone at the end, and so is one that a killed run left."""
    quicken(monkeypatch)
    monkeypatch.setattr(examples, "_thumbnail", lambda run, group, rank, position: run.folder.root / "recipe.yaml")
    if where == "file":
        monkeypatch.setattr(batches, "CACHE_BYTES", 0)
    content = recipe_dict(model_folder(tmp_path / "model"), image_folder(tmp_path / "images"), tmp_path / "out")
    root = tmp_path / "out" / content["name"]
    pipeline.run(Recipe.model_validate(content), "split", device="cpu")
    left = root / f"{kept.PREFIX}gone{kept.ENDING}"
    left.write_bytes(b"of a killed run")
    (root / "stages" / "split" / "stage.json").unlink()
    decoded.clear()
    pipeline.run(Recipe.model_validate(content), device="cpu")
    assert set(decoded.values()) == {1} and len(decoded) == len(Folder(tmp_path / "images").names)
    assert not left.exists() and not list(root.rglob(f"*{kept.ENDING}"))


@pytest.mark.parametrize("prepare", [GREY, COLOUR], ids=["grey", "colour"])
def test_what_is_kept_becomes_the_transforms_bits(prepare: Preprocessing) -> None:
    """Every value that a pixel can have, in every channel, normalised by torch where the model is and by numpy."""
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 1, 8, 32).repeat(prepare.channels, 1)
    made = Images(None, Transform(prepare), prepare.channels, np.arange(3))  # type: ignore[arg-type]
    assert torch.equal(made._normalised(torch.from_numpy(pixels)), torch.from_numpy(prepare.normalised(pixels)))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))
    image = image.convert("L") if prepare.channels == 1 else image
    assert np.array_equal(prepare(image), prepare.normalised(prepare.pixels(image)))


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_images_reach_a_device_as_bytes_and_have_the_processors_bits_there(tmp_path: Path, kind: str) -> None:
    root, order = image_folder(tmp_path, 4), np.array([3, 0, 3, 11, 7, 2])
    here = [x for x, _ in images_of(root).batches(order, 4)]
    with simulated.device(kind) as own:
        far = images_of(root, device=own)
        for _ in range(2):  # from the files, then from what is kept
            there = [x for x, _ in far.batches(order, 4)]
            assert {x.device for x in there} == {own}
            assert all(torch.equal(x.cpu(), y) for x, y in zip(there, here, strict=True))
        assert far._cache is not None and far._cache.get(order).dtype == np.uint8


def test_processes_of_one_machine_share_what_is_kept(tmp_path: Path, decoded: Counter[str]) -> None:
    root, folder = image_folder(tmp_path / "images", 4), tmp_path / "run"
    folder.mkdir()
    order = np.arange(12)
    one, other = (images_of(root, folder=folder, shared=True) for _ in range(2))
    first = torch.cat([x for x, _ in one.batches(order[:8], 4)])
    second = torch.cat([x for x, _ in other.batches(order, 5)])
    assert torch.equal(first, second[:8])
    again = torch.cat([x for x, _ in one.batches(order, 6)])
    assert torch.equal(again, second) and set(decoded.values()) == {1}


def test_a_disk_that_is_full_costs_time_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, folder = image_folder(tmp_path / "images", 4), tmp_path / "run"
    folder.mkdir()
    whole = torch.cat([x for x, _ in images_of(root).batches(np.arange(12), 5)])
    write, left = kept.os.pwrite, [7]

    def full(*given: Any) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return write(*given)

    monkeypatch.setattr(kept.os, "pwrite", full)
    made = images_of(root, folder=folder, shared=True)
    for _ in range(2):
        assert torch.equal(torch.cat([x for x, _ in made.batches(np.arange(12), 5)]), whole)


@pytest.mark.parametrize("free", [2 * 12 * 784 - 1, None], ids=["no room", "not to be written"])
def test_where_no_file_can_be_images_are_decoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int | None
) -> None:
    """At most half of the free disk, and no run ends for want of a place."""
    root, folder = image_folder(tmp_path / "images", 4), tmp_path / "run"
    folder.mkdir()
    whole = torch.cat([x for x, _ in images_of(root).batches(np.arange(12), 5)])
    monkeypatch.setattr(batches, "CACHE_BYTES", 0)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(kept.shutil, "disk_usage", lambda _: usage(2 * 12 * 784 if free is None else free))
    if free is None:
        there = kept.on_disk(folder, 12, np.zeros(784, np.uint8))
        assert there is not None
        kept.clear(folder)
        there.path.symlink_to(tmp_path / "elsewhere")
    none = images_of(root, folder=folder)
    for _ in range(2):
        assert torch.equal(torch.cat([x for x, _ in none.batches(np.arange(12), 5)]), whole) and none._cache is None
    assert not (tmp_path / "elsewhere").exists()


def test_what_reads_all_images_hands_their_pixels_over(tmp_path: Path) -> None:
    """Those that are wanted, by threads as by processes; a bad image is told as without."""
    root = image_folder(tmp_path, 4)
    (root / "circle" / "02.png").write_bytes(b"no image")
    source, wanted = Folder(root), np.arange(12) != 5
    crew = Processes(Job(source, GREY, "L"), 1)
    try:
        for processes in (None, crew):
            made = images_of(root, processes=processes)
            keep = made.keep(wanted)
            assert keep and check(source, processes=processes, contents=True, keep=keep) == check(source, contents=True)
            assert made._cache is not None
            assert np.flatnonzero(~made._cache.has(np.arange(12))).tolist() == [2, 5]
    finally:
        crew.close()
