"""Images: order, decoding, mapping to the model's outputs, the model's own transform, and a split that is one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small import FOLDERS, LABELS, image_folder, model_folder, picture, tiny_model
from timm.data import create_transform, resolve_model_data_config

from vitprune.core.errors import UserError
from vitprune.images import batches, split
from vitprune.images.batches import Images
from vitprune.images.class_names import output_indices
from vitprune.images.decode import as_mode
from vitprune.images.decode_pool import check
from vitprune.images.sources.bundled import Bundled
from vitprune.images.sources.folder import Folder
from vitprune.images.sources.opening import open_source
from vitprune.images.split import first_per_class, split_per_class
from vitprune.model.load import opening
from vitprune.recipe import inputs


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- the folder


def test_order_is_by_name_and_independent_of_the_disk(tmp_path: Path) -> None:
    for name in ("b", "a", "C"):
        (tmp_path / name / "deep").mkdir(parents=True)
        for file in ("2.png", "10.png", "deep/1.PNG"):
            picture(0, 0).save(tmp_path / name / file)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "loose.png").write_bytes(b"")
    made = Folder(tmp_path)
    assert made.classes == ["C", "a", "b"]
    assert made.names == [f"{c}/{f}" for c in ("C", "a", "b") for f in ("10.png", "2.png", "deep/1.PNG")]
    assert made.class_of.tolist() == [0] * 3 + [1] * 3 + [2] * 3


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder") as missing:
        Folder(tmp_path / "none")
    assert str(tmp_path / "none") in one_line(missing)
    with pytest.raises(UserError, match="holds no class folders"):
        Folder(tmp_path)
    (tmp_path / "file.png").write_bytes(b"x")
    with pytest.raises(UserError, match="no such folder"):
        Folder(tmp_path / "file.png")
    image_folder(tmp_path / "set", 2)
    (tmp_path / "set" / "empty").mkdir()
    with pytest.raises(UserError, match="empty: the class folder holds no images") as empty:
        Folder(tmp_path / "set")
    assert str(tmp_path / "set" / "empty") in one_line(empty)


def test_the_fingerprint_follows_the_files(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "set", 3)
    first = Folder(root).fingerprint()
    assert Folder(root).fingerprint() == first
    os.utime(root / "cross" / "01.png", (1, 1))
    assert Folder(root).fingerprint() == first  # a time is no content
    picture(2, 99).save(root / "cross" / "01.png")
    second = Folder(root).fingerprint()
    (root / "cross" / "01.png").rename(root / "circle" / "09.png")
    third = Folder(root).fingerprint()
    assert len({first, second, third}) == 3


# ---- decoding


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_scaled_not_cut(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "c").mkdir()
    pixels = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(pixels).save(tmp_path / "c" / f"a{suffix}")
    made = np.asarray(as_mode(Folder(tmp_path).image(0), "L"))
    assert made.dtype == np.uint8 and np.array_equal(made, (pixels >> 8).astype(np.uint8))
    colour = np.asarray(as_mode(Folder(tmp_path).image(0), "RGB"))
    assert np.array_equal(colour[..., 2], made)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_a_rotated_photograph_is_set_upright(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "c").mkdir()
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    Image.fromarray(pixels).save(tmp_path / "c" / f"a{suffix}", exif=exif)
    made = np.asarray(as_mode(Folder(tmp_path).image(0), "L"))
    assert made.shape == (32, 16)
    assert made[:12].mean() > 240 and made[-12:].mean() < 15


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    root = image_folder(tmp_path, 3)
    whole = (root / "cross" / "01.png").read_bytes()
    for broken in (b"", b"no image", whole[:60], whole[: len(whole) // 2]):
        (root / "cross" / "01.png").write_bytes(broken)
        made = Folder(root)
        i = made.names.index("cross/01.png")
        with pytest.raises(UserError, match="not a readable image") as caught:
            made.image(i)
        assert "01.png" in one_line(caught) and "on_corrupt: skip" in str(caught.value)
        assert [bad for bad, _ in check(made).bad] == [i]


def test_the_name_of_a_bad_image_cannot_break_the_line(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "two\nlines.png").write_bytes(b"no image")
    with pytest.raises(UserError) as caught:
        Folder(tmp_path).image(0)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif", ".bmp", ".webp", ".tif", ".ppm"])
def test_flipped_bytes_give_an_image_or_one_line(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "c").mkdir()
    path = tmp_path / "c" / f"a{suffix}"
    exif = Image.Exif()
    exif[0x0112] = 3
    picture(1, 1, "RGB").save(path, **({"exif": exif} if suffix in (".jpg", ".png", ".webp", ".tif") else {}))
    whole = path.read_bytes()
    made = Folder(tmp_path)
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(120):
        broken = bytearray(whole)
        for place in generator.integers(0, min(len(whole), 400), 3):
            broken[place] = generator.integers(0, 256)
        path.write_bytes(broken[: generator.integers(1, len(broken) + 1)] if generator.random() < 0.3 else broken)
        bad = check(made).bad
        refused += len(bad)
        if not bad:
            assert as_mode(made.image(0), "RGB").mode == "RGB"
    assert refused


# ---- names


def test_classes_are_matched_to_outputs_by_name() -> None:
    assert output_indices(FOLDERS, 3, LABELS, "here").tolist() == [1, 2, 0]
    assert output_indices(("cross",), 3, LABELS, "here").tolist() == [2]
    for spelling in ("n02", "goldfish"):
        assert output_indices((spelling,), 3, ("n01\ttench", "n02\tgoldfish", "n03\tshark"), "here").tolist() == [1]


def test_two_folders_cannot_be_one_output() -> None:
    with pytest.raises(UserError, match=r"goldfish|n02"):
        output_indices(("goldfish", "n02"), 3, ("n01\ttench", "n02\tgoldfish", "n03\tshark"), "here")


def test_a_name_of_two_outputs_is_refused_not_guessed() -> None:
    names = ("n1\tcrane", "n2\tcrane", "n3\tbag")
    assert output_indices(("n1", "n3"), 3, names, "here").tolist() == [0, 2]
    with pytest.raises(UserError, match="crane"):
        output_indices(("bag", "crane"), 3, names, "here")


def test_without_names_the_order_counts() -> None:
    assert output_indices(FOLDERS, 3, None, "here").tolist() == [0, 1, 2]
    assert output_indices(("x", "y", "z"), 3, LABELS, "here", by_order=True).tolist() == [0, 1, 2]
    with pytest.raises(UserError, match="by-order"):
        output_indices(("x", "y", "z"), 3, LABELS, "here")


@pytest.mark.parametrize(
    ("classes", "outputs", "names", "said"),
    [
        (("circle", "star"), 3, LABELS, "star"),
        (("circle", "cross", "star"), 3, LABELS, "star"),
        (("star", "moon"), 3, LABELS, "star"),
        (("a", "b"), 3, None, "2 class folders"),
        (("a", "b", "c", "d"), 3, None, "4 class folders"),
    ],
)
def test_folders_that_do_not_fit_the_model(
    classes: tuple[str, ...], outputs: int, names: tuple[str, ...] | None, said: str
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        output_indices(classes, outputs, names, "some/where")
    assert one_line(caught).startswith("some/where")


# ---- the split


def tangled(counts: tuple[int, ...] = (10, 20, 5)) -> np.ndarray:
    return np.random.default_rng(3).permutation(np.repeat(np.arange(len(counts)), counts))


def test_the_split_is_per_class_and_disjoint_and_complete() -> None:
    class_of = tangled()
    made = split_per_class(class_of, FOLDERS, seed=0, probe=0.8)
    assert np.bincount(class_of[made.probe]).tolist() == [8, 16, 4]
    assert np.bincount(class_of[made.test]).tolist() == [2, 4, 1]
    assert sorted([*made.probe, *made.test]) == list(range(35))
    assert (made.seed, made.probe_share) == (0, 0.8)


def test_the_split_depends_on_the_seed_alone() -> None:
    first, again, other = (split_per_class(tangled(), FOLDERS, seed=s, probe=0.8) for s in (1, 1, 2))
    assert np.array_equal(first.probe, again.probe) and np.array_equal(first.test, again.test)
    assert set(first.test) != set(other.test)
    np.random.seed(5)  # the global generator plays no part
    assert np.array_equal(split_per_class(tangled(), FOLDERS, seed=1, probe=0.8).probe, first.probe)


def test_the_split_is_shuffled_and_the_classes_are_shuffled_apart() -> None:
    class_of = np.repeat([0, 1], 100)
    made = split_per_class(class_of, ("a", "b"), seed=0, probe=0.8)
    first, second = made.test[class_of[made.test] == 0], made.test[class_of[made.test] == 1] - 100
    assert first.tolist() != list(range(80, 100)) and set(first) != set(second)


@pytest.mark.parametrize("probe", [0.01, 0.5, 0.99])
def test_both_sides_have_an_image_of_every_class(probe: float) -> None:
    class_of = tangled((2, 3, 4))
    made = split_per_class(class_of, FOLDERS, seed=0, probe=probe)
    assert set(class_of[made.probe]) == set(class_of[made.test]) == {0, 1, 2}


@pytest.mark.parametrize("left", [0, 1])
def test_a_class_with_one_image_is_named(left: int) -> None:
    class_of = np.array([0, 0, 1, 1, 2, 2])
    with pytest.raises(UserError, match=rf"class `cross`: {left} usable image") as caught:
        split_per_class(class_of, FOLDERS, seed=0, probe=0.8, leave_out=[2, 3][: 2 - left])
    one_line(caught)


def test_images_left_out_are_in_neither_part() -> None:
    made = split_per_class(tangled(), FOLDERS, seed=0, probe=0.8, leave_out=[0, 7, 9])
    assert not {0, 7, 9} & set(made.probe) | {0, 7, 9} & set(made.test)
    assert len(made.probe) + len(made.test) == 32


def test_an_overlapping_split_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="share images"):
        split.Split(0, 0.8, np.array([1, 2]), np.array([2, 3]))


def test_first_per_class_goes_class_by_class() -> None:
    class_of = np.array([0, 0, 0, 1, 1, 1, 2])
    made = first_per_class(np.array([2, 5, 1, 3, 6, 0, 4]), class_of, 2)
    assert made.tolist() == [2, 1, 5, 3, 6]
    assert first_per_class(np.array([2, 5, 1, 3]), class_of, 1).tolist() == [2, 5]


# ---- the model's own transform


@pytest.mark.parametrize(("in_chans", "mode"), [(1, "L"), (3, "RGB")])
def test_the_models_own_transform_is_applied(tmp_path: Path, in_chans: int, mode: str) -> None:
    model_folder(tmp_path / "model", in_chans)
    root = image_folder(tmp_path / "images", 3, "RGB")
    picture(0, 0, "RGBA", 57).save(root / "circle" / "00.png")
    loaded = opening.open_model(inputs.Model(name=f"local-dir:{tmp_path / 'model'}"))
    source = Folder(root)
    images = Images(source, loaded.transform(), in_chans, output_indices(source.classes, 3, LABELS, ""))
    got, labels = next(images.batches(np.array([4, 0, 8]), 3))

    own = tiny_model(in_chans)
    own.pretrained_cfg = {
        "input_size": (in_chans, 28, 28), "interpolation": "bilinear", "crop_pct": 0.875, "crop_mode": "center",
        "mean": (0.4, 0.5, 0.6)[:in_chans], "std": (0.2, 0.25, 0.3)[:in_chans],
    }  # fmt: skip
    transform = create_transform(**resolve_model_data_config(own), is_training=False)
    with_names = [root / "cross" / "01.png", root / "circle" / "00.png", root / "square" / "02.png"]
    expected = torch.stack([transform(Image.open(p).convert(mode)) for p in with_names])
    assert got.shape == (3, in_chans, 28, 28) and torch.equal(got, expected)
    assert [LABELS[i] for i in labels] == ["cross", "circle", "square"]


def test_batches_keep_the_order_asked_for_also_from_the_cache(tmp_path: Path) -> None:
    root = image_folder(tmp_path, 4)
    source = Folder(root)

    def transform(image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.asarray(image).copy())[None].float()

    images = Images(source, transform, 1, np.arange(3))
    order = np.array([11, 3, 7, 0, 3])
    expected = torch.stack([images.tensor(i) for i in order])
    for size in (2, 5, 1):
        found = list(images.batches(order, size))
        assert torch.equal(torch.cat([x for x, _ in found]), expected)
        assert torch.cat([y for _, y in found]).tolist() == [2, 0, 1, 0, 0]


def test_a_set_too_large_for_the_cache_is_read_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Folder(image_folder(tmp_path, 4))

    def transform(image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.asarray(image).copy())[None].float()

    cached, plain = (Images(source, transform, 1, np.arange(3)) for _ in range(2))
    expected = torch.cat([x for x, _ in cached.batches(np.arange(12), 5)])
    monkeypatch.setattr(batches, "CACHE_BYTES", 1000)
    assert torch.equal(torch.cat([x for x, _ in plain.batches(np.arange(12), 5)]), expected)
    assert plain._cache is None


# ---- the bundled images


def test_the_bundled_images() -> None:
    made = Bundled()
    assert made.pixels.shape == (10_000, 28, 28) and np.bincount(made.class_of).tolist() == [1000] * 10
    assert " ".join(made.classes) == "tshirt trouser pullover dress coat sandal shirt sneaker bag boot"
    assert made.image(0).mode == "L" and made.classes[made.class_of[0]] == "boot"
    assert made.fingerprint() == open_source(inputs.Data(source="bundled")).fingerprint()
