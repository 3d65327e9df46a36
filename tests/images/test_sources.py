"""Every kind of image source gives the same images and labels as the folder it was made from, or one line."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import logging
import os
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small import FOLDERS, image_folder, picture

from vitprune.core.errors import UserError
from vitprune.images.decode import read
from vitprune.images.decode_pool import check
from vitprune.images.sources.base import Source
from vitprune.images.sources.folder import Folder, grouped
from vitprune.images.sources.manifest import Manifest
from vitprune.images.sources.opening import open_path, open_source
from vitprune.images.sources.tar import Tar
from vitprune.images.sources.timm_dataset import TimmDataset
from vitprune.recipe.inputs import Data


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is an extra")


def line(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def labelled(source: Source) -> list[tuple[str, bytes]]:
    """Class name and pixels of every image, in an order of their own."""
    pairs = [(source.classes[c], source.image(i).tobytes()) for i, c in enumerate(source.class_of)]
    return sorted(pairs)


def table(path: Path, rows: list[tuple[str, ...]], header: tuple[str, ...] = ("path", "label")) -> Path:
    with path.open("w", newline="") as handle:
        csv.writer(handle).writerows([header, *rows])
    return path


def rows_of(folder: Path, below: str = "") -> list[tuple[str, str]]:
    made = Folder(folder)
    return [(f"{below}{n}", made.classes[c]) for n, c in zip(made.names, made.class_of, strict=True)]


# ---- manifests


def test_a_manifest_is_the_folder_it_lists(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "images", 3)
    rows = rows_of(folder, "images/")
    made = open_path(table(tmp_path / "list.csv", rows[::-1]), "data.path")
    assert labelled(made) == labelled(Folder(folder))
    assert made.names == [name for name, _ in rows[::-1]] and made.numbers is None
    assert made.classes == list(FOLDERS)


def test_a_manifests_columns_may_stand_anywhere_among_others(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "images", 2)
    text = "label, note ,path\n" + "".join(f'"{c}", "a, b", images/{n}\n' for n, c in rows_of(folder))
    (tmp_path / "list.csv").write_text("\ufeff" + text, encoding="utf-8")
    assert labelled(Manifest(tmp_path / "list.csv")) == labelled(Folder(folder))


def test_numbers_are_the_models_outputs_in_their_own_order(tmp_path: Path) -> None:
    folder = image_folder(tmp_path, 2)
    number = {"circle": "10", "cross": "9", "square": "2"}
    made = Manifest(table(tmp_path / "list.csv", [(n, number[c]) for n, c in rows_of(folder)]))
    assert made.classes == ["2", "9", "10"] and made.numbers == [2, 9, 10]
    assert [made.classes[c] for c in made.class_of] == ["10", "10", "9", "9", "2", "2"]
    assert grouped(["1", "02"])[2] == [1, 2] and grouped(["1.0", "02", "1"])[0] == ["1", "02"]
    assert grouped(["1", "2.5"])[2] is None and grouped(["1", "-2"])[2] is None and grouped(["1", "²"])[2] is None


def test_absolute_paths_are_meant_and_relative_ones_stay_inside(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "images", 1)
    (tmp_path / "lists").mkdir()
    full = [(str(folder / n), c) for n, c in rows_of(folder)]
    assert labelled(Manifest(table(tmp_path / "lists" / "a.csv", full))) == labelled(Folder(folder))
    for name in ("../images/circle/00.png", "a/../../images/circle/00.png", ".."):
        said = line(lambda name=name: Manifest(table(tmp_path / "lists" / "b.csv", [(name, "circle")])))  # type: ignore[misc]
        assert "line 2" in said and "leaves the manifest's folder" in said
    assert Manifest(table(folder / "c.csv", [("cross/../circle/00.png", "circle")])).image(0).size == (28, 28)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"path,label\n", "lists no images"),
        (b"", "has no column `path`"),
        (b"file,label\na.png,b\n", "no column `path` (columns found: file, label)"),
        (b"path,label\na.png\n", "line 2: `label` is empty"),
        (b"path,label\n,cat\n", "line 2: `path` is empty"),
        (b"path,label\na.png,cat\nb.png,dog\n./a.png,dog\n", "line 4: `./a.png` is already on line 2"),
        (b"path,label\n\xff\xfe,cat\n", "cannot be read as CSV"),
        (b"path,label\n" + b"a" * 200_000 + b",cat\n", "cannot be read as CSV"),
        (b"path,label\na\0.png,cat\n", "list.csv"),
    ],
)
def test_manifests_that_cannot_be_used(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "list.csv").write_bytes(content)
    assert said in line(lambda: Manifest(tmp_path / "list.csv"))


def test_a_listed_file_that_is_missing_is_an_unreadable_image(tmp_path: Path) -> None:
    folder = image_folder(tmp_path, 2)
    made = Manifest(table(tmp_path / "list.csv", [*rows_of(folder), ("gone.png", "cross")]))
    made.fingerprint()
    [(place, said)] = check(made).bad
    assert place == 6 and str(tmp_path / "gone.png") in said and "no such file" in said


def test_a_manifests_fingerprint_follows_labels_and_files(tmp_path: Path) -> None:
    folder = image_folder(tmp_path, 2)
    rows = rows_of(folder)
    first = Manifest(table(tmp_path / "list.csv", rows)).fingerprint()
    assert Manifest(table(tmp_path / "list.csv", rows)).fingerprint() == first
    second = Manifest(table(tmp_path / "list.csv", [(rows[0][0], "cross"), *rows[1:]])).fingerprint()
    os.utime(folder / "cross" / "01.png", (1, 1))
    assert Manifest(table(tmp_path / "list.csv", rows)).fingerprint() == first  # a time is no content
    picture(2, 99).save(folder / "cross" / "01.png")
    assert len({first, second, Manifest(table(tmp_path / "list.csv", rows)).fingerprint()}) == 3


@needs("pyarrow")
@pytest.mark.parametrize("number", [False, True])
def test_parquet_reads_as_csv_does(tmp_path: Path, number: bool) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    rows = rows_of(image_folder(tmp_path, 2))
    labels = [FOLDERS.index(c) if number else c for _, c in rows]
    columns = {"label": labels, "path": [n for n, _ in rows], "extra": [None] * len(rows)}
    parquet.write_table(pa.table(columns), tmp_path / "list.parquet")
    made, plain = (
        open_path(tmp_path / "list.parquet", "data.path"),
        Manifest(table(tmp_path / "list.csv", [(n, str(x)) for (n, _), x in zip(rows, labels, strict=True)])),
    )
    assert labelled(made) == labelled(plain) and made.numbers == plain.numbers == ([0, 1, 2] if number else None)
    (tmp_path / "list.parquet").write_bytes((tmp_path / "list.parquet").read_bytes()[:100])
    assert "cannot be read as Parquet" in line(lambda: open_path(tmp_path / "list.parquet", "data.path"))


def test_parquet_without_its_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "list.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    assert "pip install 'vitprune[parquet]'" in line(lambda: open_path(tmp_path / "list.parquet", "data.path"))


# ---- tar files


def pack(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def members_of(folder: Path, below: str = "") -> dict[str, bytes]:
    return {f"{below}{p.relative_to(folder).as_posix()}": p.read_bytes() for p in sorted(folder.rglob("*.png"))}


@pytest.mark.parametrize("below", ["", "./", "imagenet/val/", "/absolute/", "../../outside/"])
def test_a_tar_is_the_folder_it_was_packed_from(tmp_path: Path, below: str) -> None:
    folder = image_folder(tmp_path / "images", 3)
    before = sorted(tmp_path.rglob("*"))
    tar = pack(tmp_path / "images.tar", members_of(folder, below))
    made = open_path(tar, "data.path")
    assert labelled(made) == labelled(Folder(folder)) and made.classes == list(FOLDERS)
    assert check(made).bad == []
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tar])  # nothing extracted


def test_folders_below_a_class_do_not_count(tmp_path: Path) -> None:
    png = members_of(image_folder(tmp_path / "images", 1))
    tar = pack(tmp_path / "a.tar", {"a/deep/1.png": png["circle/00.png"], "a/deep/2.png": png["cross/00.png"]})
    assert open_path(tar, "data.path").classes == ["a"] or open_path(tar, "data.path").classes == ["deep"]
    both = pack(tmp_path / "b.tar", {"x/a/deep/1.png": png["circle/00.png"], "x/b/2.png": png["cross/00.png"]})
    assert open_path(both, "data.path").classes == ["a", "b"]


def test_one_tar_per_class_is_named_as_the_class(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "images", 2)
    (tmp_path / "tars").mkdir()
    for name in FOLDERS:
        pack(tmp_path / "tars" / f"{name}.tar", members_of(folder / name))
    made = open_path(tmp_path / "tars", "data.path")
    assert labelled(made) == labelled(Folder(folder)) and made.names[0] == "circle.tar/00.png"


def test_several_tars_share_their_classes(tmp_path: Path) -> None:
    every = members_of(image_folder(tmp_path / "images", 2))
    (tmp_path / "tars").mkdir()
    for k in range(2):
        pack(tmp_path / "tars" / f"shard-{k}.tar", {n: b for n, b in every.items() if n.endswith(f"{k}.png")})
    assert labelled(open_path(tmp_path / "tars", "data.path")) == labelled(Folder(tmp_path / "images"))


@pytest.mark.parametrize("numbers", [True, False])
def test_webdatasets_shards_are_labelled_by_what_lies_beside(tmp_path: Path, numbers: bool) -> None:
    members: dict[str, bytes] = {}
    for i in range(6):
        file = io.BytesIO()
        picture(i % 3, i).save(file, "PNG")
        members |= {f"{i:04d}.png": file.getvalue(), f"{i:04d}.json": b"{}"}
        members[f"{i:04d}.cls"] = str(i % 3).encode() if numbers else FOLDERS[i % 3].encode() + b"\n"
    made = open_path(pack(tmp_path / "shard.tar", members), "data.path")
    assert made.numbers == ([0, 1, 2] if numbers else None)
    assert made.class_of.tolist() == [0, 1, 2, 0, 1, 2] and len(made.names) == 6
    assert np.array_equal(np.asarray(made.image(4)), np.asarray(picture(1, 4)))
    del members["0003.cls"]
    assert "`shard.tar/0003.png` has no .cls" in line(lambda: Tar([pack(tmp_path / "shard.tar", members)]))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("circle/00.png")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    assert "circle/00.png` is a link, a device" in line(lambda: Tar([tmp_path / "a.tar"]))


def test_hidden_members_and_other_files_are_left_out(tmp_path: Path) -> None:
    every = members_of(image_folder(tmp_path / "images", 1))
    more = {"circle/._00.png": b"resource fork", ".git/x.png": b"", "README": b"text", "circle/a.txt": b""}
    made = Tar([pack(tmp_path / "a.tar", every | more)])
    assert labelled(made) == labelled(Folder(tmp_path / "images"))


def test_a_tar_that_is_cut_packed_or_none(tmp_path: Path) -> None:
    whole = pack(tmp_path / "a.tar", members_of(image_folder(tmp_path / "images", 2))).read_bytes()
    with tarfile.open(tmp_path / "b.tar", "w:gz") as packed:
        packed.add(tmp_path / "images")
    assert "unpacked to .tar first" in line(lambda: Tar([tmp_path / "b.tar"]))
    for broken in (b"", b"no tar", whole[:700], b"\xff" * 2000):
        (tmp_path / "c.tar").write_bytes(broken)
        assert str(tmp_path / "c.tar") in line(lambda: Tar([tmp_path / "c.tar"]))
    assert "holds no images" in line(lambda: Tar([pack(tmp_path / "d.tar", {"a/readme.txt": b"x"})]))
    assert ".csv, .parquet, .tar" in line(lambda: open_path(tmp_path / "images" / "circle" / "00.png", "data.path"))


def test_a_member_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    content = bytearray(pack(tmp_path / "a.tar", {"a/1.png": b"x" * 600}).read_bytes())
    header = tarfile.TarInfo("a/1.png")
    for size in (1 << 40, 5000 << 20):
        header.size = size
        content[:512] = header.tobuf(tarfile.GNU_FORMAT)
        (tmp_path / "a.tar").write_bytes(content)
        assert "cut short or damaged" in line(lambda: Tar([tmp_path / "a.tar"]))


def test_flipped_bytes_of_a_tar_give_images_or_one_line(tmp_path: Path) -> None:
    whole = pack(tmp_path / "a.tar", members_of(image_folder(tmp_path / "images", 1))).read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        broken = bytearray(whole)
        for place in generator.integers(0, 512, 3) + 512 * generator.integers(0, 3):
            broken[place] = generator.integers(0, 256)
        (tmp_path / "a.tar").write_bytes(broken)
        try:
            check(Tar([tmp_path / "a.tar"]))
        except UserError:
            refused += 1
    assert refused > 0


def test_a_corrupt_member_is_named_with_its_tar(tmp_path: Path) -> None:
    every = members_of(image_folder(tmp_path / "images", 2)) | {"cross/00.png": b"no image"}
    made = Tar([pack(tmp_path / "a.tar", every)])
    [(place, said)] = check(made).bad
    assert made.names[place] == "a.tar/cross/00.png"
    assert f"{tmp_path / 'a.tar'}: cross/00.png" in said and "on_corrupt: skip" in said


def test_a_tars_last_word_on_a_name_counts(tmp_path: Path) -> None:
    every = members_of(image_folder(tmp_path / "images", 2))
    tar = pack(tmp_path / "a.tar", {"circle/00.png": b"old", "cross/00.png": every["cross/00.png"]})
    with tarfile.open(tar, "a") as more:
        more.add(tmp_path / "images" / "circle" / "00.png", "circle/00.png")
    made = Tar([tar])
    assert len(made.names) == 2 and check(made).bad == []


# ---- datasets that timm opens by name


def idx(path: Path, array: np.ndarray) -> None:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    path.write_bytes(head + array.tobytes())


def test_a_torchvision_dataset_of_local_files(tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 28, 28)).astype(np.uint8)
    labels = np.array([9, 0, 3, 9, 0, 3], np.uint8)
    for part in ("train", "t10k"):
        idx(raw / f"{part}-images-idx3-ubyte", pixels)
        idx(raw / f"{part}-labels-idx1-ubyte", labels)
    made = open_source(Data(dataset="torch/fashion_mnist", path=tmp_path))
    assert made.classes == ["T-shirt/top", "Dress", "Ankle boot"] and made.class_of.tolist() == [2, 0, 1] * 2
    assert np.array_equal(np.asarray(made.image(4)), pixels[4]) and made.names[4] == "torch/fashion_mnist/0000004"
    first = made.fingerprint()
    idx(raw / "t10k-images-idx3-ubyte", pixels[::-1].copy())
    assert open_source(Data(dataset="torch/fashion_mnist", path=tmp_path)).fingerprint() != first


def test_a_dataset_without_labels_is_refused(tmp_path: Path) -> None:
    for labels, names in (([0, -1], ["a", "b"]), ([0, 2], ["a", "b"]), ([0, -1], None)):
        made = partial(TimmDataset, "hfds/a", None, labels, names)  # type: ignore[arg-type]
        assert "image 1 has the label" in line(made)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cifar10", "starts with none of hfds/"),
        ("hfds/", "starts with none of hfds/"),
        ("ftp/cifar10", "starts with none of hfds/"),
        ("torch/cifar10", "cannot be opened"),
        ("torch/nothing", "cannot be opened (Unknown torchvision dataset nothing)"),
    ],
)
def test_a_dataset_that_cannot_be_opened_is_one_line(tmp_path: Path, name: str, said: str) -> None:
    found = line(lambda: open_source(Data(dataset=name, path=tmp_path / "none")))
    assert said in found and f"data.dataset `{name}`" in found


def test_a_dataset_of_torchvision_without_a_folder_asks_for_one() -> None:
    assert "lies in no folder; say data.path" in line(lambda: open_source(Data(dataset="torch/cifar10")))


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("hfds/a", "datasets", "hfds"), ("hfids/a", "datasets", "hfds"), ("wds/a", "webdataset", "wds"),
     ("tfds/a", "tensorflow_datasets", "tfds")],
)  # fmt: skip
def test_an_extra_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str, extra: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda p, *a: None if p == package else find(p, *a))
    said = line(lambda: open_source(Data(dataset=name)))
    assert f"needs {package}" in said and f"pip install 'vitprune[{extra}]'" in said


def shard(path: Path, broken: bool = False) -> None:
    members: dict[str, bytes] = {}
    for i in range(6):
        file = io.BytesIO()
        picture(i % 3, i, "RGB").save(file, "PNG")
        members |= {
            f"{i:04d}.png": b"no image" if broken and i == 2 else file.getvalue(),
            f"{i:04d}.cls": b"%d" % (i % 3),
        }
    pack(path / "shard-0000.tar", members)


@needs("webdataset")
def test_webdatasets_reader(tmp_path: Path) -> None:
    shard(tmp_path)
    data = Data(dataset="wds/small", path=tmp_path, dataset_split="shard-{0000..0000}.tar|6")
    made = open_source(data)
    assert made.numbers == [0, 1, 2] and made.class_of.tolist() == [0, 1, 2, 0, 1, 2]
    assert np.array_equal(np.asarray(made.image(4)), np.asarray(picture(1, 4, "RGB")))
    assert labelled(made) == labelled(open_path(tmp_path, "data.path"))
    shard(tmp_path, broken=True)
    logging.getLogger("timm").setLevel(logging.WARNING)
    assert "1 sample(s) cannot be read" in line(lambda: open_source(data))


@needs("datasets")
def test_hugging_face_datasets_of_local_files(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "images", 3)
    made = open_source(Data(dataset=f"hfds/{folder}", path=tmp_path / "cache", dataset_split="train"))
    assert made.numbers is None and labelled(made) == labelled(Folder(folder))
    assert made.fingerprint() != Folder(folder).fingerprint()


# ---- the recipe


def test_the_recipe_chooses_the_source(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "images", 2)
    tar = pack(tmp_path / "a.tar", members_of(folder))
    listed = table(tmp_path / "a.csv", rows_of(folder, "images/"))
    kinds = [type(open_source(Data(path=p))).__name__ for p in (folder, tar, listed)]
    assert kinds == ["Folder", "Tar", "Manifest"]
    assert "data.path" in line(lambda: open_source(Data(path=tmp_path / "none")))
    schema = json.dumps(Data.model_json_schema())
    assert all(name in schema for name in ("dataset", "labels", "workers", "probe", "test"))


def test_reading_from_bytes_is_reading_from_a_file(tmp_path: Path) -> None:
    pixels = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    (tmp_path / "set" / "a").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "set" / "a" / "x.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(1, 1, "RGB", 30).resize((40, 20)).save(tmp_path / "set" / "a" / "y.jpg", exif=exif)
    packed = {f"a/{n}": (tmp_path / "set" / "a" / n).read_bytes() for n in ("x.png", "y.jpg")}
    made = Tar([pack(tmp_path / "a.tar", packed)])
    for i, name in enumerate(("x.png", "y.jpg")):
        expected = read(tmp_path / "set" / "a" / name)
        assert made.image(i).mode == expected.mode and made.image(i).tobytes() == expected.tobytes()
