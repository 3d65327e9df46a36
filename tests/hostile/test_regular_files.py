"""What is read is a regular file of a bounded size; everything else is refused at once, and a full disk in one line."""

from __future__ import annotations

import errno
import io
import os
import resource
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import image_folder, leftovers, model_folder, picture, recipe_dict, tiny_args, write_recipe
from test_mishaps import mounted
from typer.testing import CliRunner

from vitprune.cli.app import app
from vitprune.core import reading
from vitprune.core.errors import UserError
from vitprune.deploy.onnx import exporting, precision
from vitprune.images.mapping import Mapping
from vitprune.images.sources import tar
from vitprune.images.sources.opening import open_path
from vitprune.images.sources.tar import Tar
from vitprune.model.load import opening
from vitprune.model.load.weights import archives
from vitprune.recipe import inputs, parse, recipe
from vitprune.runs import pipeline

pytestmark = pytest.mark.usefixtures("quick")
KINDS = ["device", "pipe", "socket", "folder", "link to a device", "gone"]


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    """A reader that waits is ended, one that reads without end runs out of room."""

    def ring(*_: object) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(100)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def place(folder: Path, kind: str, name: str) -> Path:
    path = folder / name
    if kind == "device":
        return Path("/dev/zero")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            before = Path.cwd()
            os.chdir(folder)  # a socket's path is short
            made.bind(name)
            os.chdir(before)
    elif kind != "gone":
        path.symlink_to("/dev/zero")
    return path


def refusal(attempt: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        attempt()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def command(*args: str) -> Callable[[], object]:
    def attempt() -> None:
        found = CliRunner().invoke(app, list(args))
        assert found.exception is not None
        raise found.exception

    return attempt


READERS: dict[str, tuple[str, Callable[[Path], Callable[[], object]]]] = {
    "a recipe": ("r.yaml", lambda p: lambda: parse.load(p)),
    "a recipe to check": ("r.yaml", lambda p: command("recipe", "check", str(p))),
    "labels": ("l.json", lambda p: lambda: Mapping(p)),
    "a checkpoint": ("c.pth", lambda p: lambda: opening.open_model(named(p))),
    "weights": ("c.safetensors", lambda p: lambda: opening.open_model(named(p))),
    "Google's weights": ("c.npz", lambda p: lambda: opening.open_model(named(p))),
    "a manifest": ("m.csv", lambda p: lambda: open_path(p, "data.path")),
    "a tar": ("t.tar", lambda p: lambda: open_path(p, "data.path")),
    "a report to check": ("report.json", lambda p: command("check", str(p), "--min-top1", "0.5")),
    "an ONNX file": ("m.onnx", lambda p: command("predict", str(p), "a.png")),
    "an ONNX file to time": ("m.onnx", lambda p: command("bench", str(p))),
    "JSON": ("a.json", lambda p: lambda: reading.read_json(p)),
}


def named(path: Path) -> inputs.Model:
    return inputs.Model(name="vit_tiny_patch16_224", checkpoint=path, args=tiny_args() | {"num_classes": 3})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reader", READERS)
def test_only_regular_files_are_read(tmp_path: Path, reader: str, kind: str) -> None:
    name, attempt = READERS[reader]
    if kind == "folder" and reader in ("a manifest", "a tar"):
        pytest.skip("a folder of images")
    refusal(attempt(place(tmp_path, kind, name)))


@pytest.mark.parametrize("kind", ["device", "pipe", "socket", "folder", "link to a device"])
def test_parts_of_a_folder_too(tmp_path: Path, kind: str) -> None:
    for name in ("config.json", "model.safetensors"):
        folder = model_folder(tmp_path / f"of-{name}")
        (folder / name).unlink()
        made = place(folder, kind, name)
        if kind == "device":
            (folder / name).symlink_to(made)
        refusal(lambda folder=folder: opening.load(folder))
    run = tmp_path / "run"
    run.mkdir()
    place(run, kind, "report.json")
    refusal(command("report", str(run)))
    refusal(command("check", str(run), "--min-top1", "0.5"))
    tars = tmp_path / "tars"
    tars.mkdir()
    place(tars, kind, "a.tar")
    refusal(lambda: open_path(tars, "data.path"))


def test_a_file_that_grows_or_says_no_size_is_read_to_its_bound(tmp_path: Path) -> None:
    assert reading.read_bytes(Path("/proc/self/stat"), 10_000)
    with pytest.raises(UserError, match="larger than 10 bytes"):
        reading.read_bytes(Path("/proc/self/stat"), 10)
    (tmp_path / "a").write_bytes(b"x" * 11)
    with pytest.raises(UserError, match=r"\(11 bytes\)"):
        reading.read_bytes(tmp_path / "a", 10)
    assert reading.read_bytes(tmp_path / "a", 11) == b"x" * 11


@pytest.mark.parametrize("reader", ["a recipe", "labels", "a report to check", "JSON", "a manifest"])
def test_a_huge_file_is_not_read(tmp_path: Path, reader: str) -> None:
    """A hundred gigabytes that take no room on the disk."""
    name, attempt = READERS[reader]
    with (tmp_path / name).open("wb") as handle:
        handle.truncate(100 << 30)
    refusal(attempt(tmp_path / name))


def test_a_configuration_of_megabytes(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    with (folder / "config.json").open("ab") as handle:
        handle.write(b" " * (1 << 20))
    assert "larger than a configuration" in refusal(lambda: opening.load(folder))


def test_a_recipe_of_many_keys_takes_no_hour() -> None:
    text = "name: r\n" + "".join(f"k{i}: 1\n" for i in range(15_000)) + "k7: 2\n"
    assert "line 15002: `k7` is given more than once" in refusal(lambda: parse.parse(text))


# ---- archives that unpack to more than they are


def bomb(path: Path, size: int, **more: np.ndarray) -> Path:
    np.savez_compressed(path, a=np.zeros(size // 8), **more)
    return path


def test_sizes_before_arrays(tmp_path: Path) -> None:
    """Some kilobytes that say hundreds of megabytes are refused within a few megabytes of memory."""
    path = bomb(tmp_path / "c.npz", 300_000_000)
    assert path.stat().st_size < 2 << 20
    code = f"""
import resource, sys
from pathlib import Path
from vitprune.core import errors
from vitprune.model.load.weights import archives
used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20),) * 2)
try:
    archives.check(Path({str(path)!r}), 1 << 20)
except errors.UserError as error:
    sys.exit(str(error))
"""
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "unpacks to 300.0 MB, more than the model can need" in got.stderr and "Traceback" not in got.stderr
    assert "unpacks to 300.0 MB" in refusal(lambda: opening.open_model(named(path)))
    archives.check(path, 80_000_000)  # a model that large may


def header(shape: tuple[int, ...], kind: str = "<f4", version: tuple[int, int] = (1, 0)) -> bytes:
    made = io.BytesIO()
    write = np.lib.format.write_array_header_1_0 if version == (1, 0) else np.lib.format.write_array_header_2_0
    write(made, {"descr": kind, "fortran_order": False, "shape": shape})
    return made.getvalue()


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_a_header_that_says_more_than_there_is(tmp_path: Path, version: tuple[int, int]) -> None:
    with zipfile.ZipFile(tmp_path / "c.npz", "w") as archive:
        archive.writestr("a.npy", header((1 << 20, 1 << 20), version=version))
        archive.writestr("b", header((1 << 20, 1 << 20), version=version))
    assert "unpacks to 8796.1 GB" in refusal(lambda: archives.check(tmp_path / "c.npz", 1000))


def test_objects_in_an_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", a=np.array([{}], object))
    assert "could run code" in refusal(lambda: archives.check(tmp_path / "c.npz", 1000))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a zip"])
@pytest.mark.parametrize("name", ["c.npz", "C.NPZ", "c.npy"])
def test_archives_that_are_none(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    refusal(lambda: archives.check(tmp_path / name, 1000))


def test_a_packed_checkpoint(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(30_000_000)}, tmp_path / "whole.pth")
    with (
        zipfile.ZipFile(tmp_path / "whole.pth") as whole,
        zipfile.ZipFile(tmp_path / "c.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in whole.infolist():
            packed.writestr(entry.filename, whole.read(entry))
    assert "torch packs nothing" in refusal(lambda: opening.open_model(named(tmp_path / "c.pth")))
    archives.check(tmp_path / "whole.pth", 1000)


def test_a_tar_whose_label_or_image_is_endless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A label of a gigabyte, which takes no room on the disk, is read to its bound; so are images to theirs."""
    path, size = tmp_path / "t.tar", 1 << 30
    picture(0, 0).save(tmp_path / "a.png")
    with tarfile.open(path, "w") as made:
        made.add(tmp_path / "a.png", "a.png")
        at = made.offset
    info = tarfile.TarInfo("a.cls")
    info.size = size
    with path.open("r+b") as handle:
        handle.truncate(at)
        handle.seek(at)
        handle.write(info.tobuf() + b"cat")
        handle.truncate(at + 512 + size + 1024)
    tracemalloc.start()
    try:
        source = Tar([path])
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
    finally:
        tracemalloc.stop()
    assert [name.strip("\0") for name in source.classes] == ["cat"]
    monkeypatch.setattr(tar, "MAX_IMAGE", 10)
    assert "at most 10 are read" in refusal(lambda: source.image(0))


def test_a_manifest_without_line_ends(tmp_path: Path) -> None:
    with (tmp_path / "m.csv").open("wb") as handle:
        handle.write(b"path,label\n")
        handle.truncate(100 << 30)
    assert "cannot be read as CSV" in refusal(lambda: open_path(tmp_path / "m.csv", "data.path"))


def test_a_small_table_that_says_gigabytes(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "m.parquet"
    one = pyarrow.array(["x" * 1_000_000])
    label = pyarrow.DictionaryArray.from_arrays(pyarrow.array(np.zeros(500_000, np.int32)), one)
    names = pyarrow.array([str(i) for i in range(500_000)])
    parquet.write_table(pyarrow.table({"path": names, "label": label}), path)
    assert path.stat().st_size < 20 << 20
    assert "no path and no label" in refusal(lambda: open_path(path, "data.path"))


# ---- no room


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """TMPDIR on a disk without a byte left."""
    path = tmp_path / "full"
    mounted(path, "16k")
    with suppress(OSError), (path / "filler").open("wb", 0) as handle:
        while True:
            handle.write(bytes(1024))
    monkeypatch.setenv("TMPDIR", str(path))
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def test_a_full_tmpdir_is_no_obstacle(tmp_path: Path, full: Path) -> None:
    """A run's temporary files are in its own folder, the quantizer's too."""
    content = recipe_dict(model_folder(tmp_path / "m"), image_folder(tmp_path / "i", 5), tmp_path / "out", baselines=[])
    content |= {"export": {"onnx": True, "precisions": ["fp32", "int8"], "latency_batches": [1]}}
    assert pipeline.run(recipe.Recipe.model_validate(content))["complete"]
    assert {p.name for p in full.iterdir()} <= {"filler", ".ses"}  # onnxruntime tries to note its session there
    assert leftovers(tmp_path / "out") == []


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fp32") / "model.onnx"
    loaded = opening.open_model(inputs.Model(name=f"local-dir:{model_folder(path.parent / 'm')}"))
    exporting.export(loaded.model, path, {})
    return path


@pytest.mark.parametrize("size", ["8k", "40k", "80k", "120k"])
def test_no_room_for_int8_is_one_line(fp32: Path, tmp_path: Path, size: str) -> None:
    disk = tmp_path / "disk"
    mounted(disk, size)
    batches = [np.zeros((2, 1, 28, 28), np.float32)]
    try:
        said = refusal(lambda: precision.to_int8(fp32, disk / "x.onnx", batches, batches, np.zeros(2, np.int64), 100.0))
        assert "the disk is full" in said and leftovers(disk) == []
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_limit_on_file_sizes_is_one_line(tmp_path: Path) -> None:
    content = recipe_dict(model_folder(tmp_path / "m"), image_folder(tmp_path / "i", 5), tmp_path / "out", baselines=[])
    made = recipe.Recipe.model_validate(content)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        said = refusal(lambda: pipeline.run(made, "prune"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "larger than a file may be here" in said and leftovers(tmp_path / "out") == []


def test_a_full_disk_is_one_line_whoever_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by our own hand: Pillow, torch, or a library's temporary file."""
    from vitprune.images import decode_pool

    content = recipe_dict(model_folder(tmp_path / "m"), image_folder(tmp_path / "i", 5), tmp_path / "out", baselines=[])

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/somewhere/x")

    monkeypatch.setattr(decode_pool, "check", fails)
    assert "/somewhere/x: the disk is full" in refusal(
        lambda: pipeline.run(recipe.Recipe.model_validate(content), "split")
    )
    found = CliRunner().invoke(app, ["discover", str(write_recipe(tmp_path / "r.yaml", content))])
    assert isinstance(found.exception, UserError)


def test_a_lock_that_is_a_pipe(tmp_path: Path) -> None:
    content: dict[str, Any] = recipe_dict(
        model_folder(tmp_path / "m"), image_folder(tmp_path / "i", 3), tmp_path / "out"
    )
    made = recipe.Recipe.model_validate(content)
    pipeline.run(made, "split")
    (tmp_path / "out" / "tiny" / ".lock").unlink()
    os.mkfifo(tmp_path / "out" / "tiny" / ".lock")
    assert "no plain file" in refusal(lambda: pipeline.run(made, "split"))
