"""What is an image: one rule for folders, tar files and `predict`. Nothing vanishes without a count."""

from __future__ import annotations

import json
import os
import struct
import tarfile
import zlib
from collections import Counter
from pathlib import Path

import pytest
from small import FOLDERS, image_folder, model_folder, picture, recipe_dict
from typer.testing import CliRunner

from vitprune.cli.app import app
from vitprune.core.errors import UserError
from vitprune.deploy import predict
from vitprune.images.decode_pool import check
from vitprune.images.sources.base import Source
from vitprune.images.sources.contents import Contents
from vitprune.images.sources.folder import Folder
from vitprune.images.sources.found import below, note
from vitprune.images.sources.manifest import Manifest
from vitprune.images.sources.opening import open_path
from vitprune.images.sources.tar import Tar
from vitprune.recipe import recipe
from vitprune.runs import pipeline

HIDDEN = (
    "circle/.ipynb_checkpoints/00-checkpoint.png", "circle/._00.png", "._circle/00.png", ".cache/00.png",
    "__MACOSX/circle/00.png", "__MACOSX/circle/._00.png", "@eaDir/00.png", "circle/@eaDir/00.png/SYNOPHOTO_THUMB_M.png",
    "cross/Thumbs.db", "cross/.DS_Store", "cross/desktop.ini", "cross/THUMBS.DB", "#recycle/a.png", "lost+found/a.png",
    "square/__pycache__/a.png", "$RECYCLE.BIN/a.png", "System Volume Information/a.png",
)  # fmt: skip


def untidy(root: Path) -> Path:
    """Three class folders with what systems and notebooks leave between the images."""
    image_folder(root, 2)
    for name in HIDDEN:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes((root / "circle" / "00.png").read_bytes())
    return root


def as_tar(folder: Path, path: Path, below: str = "") -> Source:
    with tarfile.open(path, "w", dereference=True) as tar:
        tar.add(folder, below or ".")
    return open_path(path, "data.path")


def listed(source: Source) -> list[tuple[str, str, bytes]]:
    """Class, file name and pixels of every image."""
    names = [name.split("/")[-1] for name in source.names]
    rows = zip(source.class_of, names, range(len(names)), strict=True)
    return sorted((source.classes[c], name, source.image(i).tobytes()) for c, name, i in rows)


@pytest.mark.parametrize("wrapped", ["", "set", "deep/set"])
def test_what_systems_leave_behind_is_no_image_in_any_source(tmp_path: Path, wrapped: str) -> None:
    clean, root = Folder(image_folder(tmp_path / "clean", 2)), untidy(tmp_path / "set")
    for made in (Folder(root), as_tar(root, tmp_path / "set.tar", wrapped)):
        assert made.classes == list(FOLDERS) and listed(made) == listed(clean)
        assert not made.left_out  # housekeeping is no news
    found = [p.relative_to(root).as_posix() for p in predict.find_images([str(root)])]
    assert found == clean.names


def test_what_a_list_names_is_read_whatever_its_name(tmp_path: Path) -> None:
    root = untidy(tmp_path / "set")
    (root / "circle" / "plain").write_bytes((root / "circle" / "01.png").read_bytes())
    rows = [f"{name},{i % 2}" for i, name in enumerate((*HIDDEN, "circle/plain"))]
    (root / "list.csv").write_text("\n".join(["path,label", *rows]))
    made = Manifest(root / "list.csv")
    assert len(made.names) == len(HIDDEN) + 1 and check(made).bad == []


KINDS = {
    "a.jfif": "JPEG", "b.jpe": "JPEG", "c.jp2": "JPEG2000", "d.avif": "AVIF", "e.JFIF": "JPEG", "f": "PNG", "g": "JPEG",
    "h.txt": "PNG", "i.jpg": "PNG", "j.png": "JPEG", "k.dat": "WEBP", "l.tiff": "TIFF", "m.ico": "ICO", "n.psd": "GIF",
    "o.final": "TIFF", "p.pbm": "PPM",
}  # fmt: skip


def test_content_decides_and_the_rest_is_counted_by_kind(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "set", 1)
    for k, (name, kind) in enumerate(KINDS.items()):
        picture(0, 100 + k, "L" if name.endswith("pbm") else "RGB").save(root / "circle" / name, kind)
    frames = [picture(1, 200 + k, "RGB") for k in range(3)]
    frames[0].save(root / "circle" / "moves.gif", save_all=True, append_images=frames[1:])
    others = {
        "notes.txt": b"P5 is a map",
        "more.TXT": b"",
        "x.json": b"{}",
        "README": b"BM",
        "x.heic": b"\0\0\0 ftypheic",
    }
    others |= {"blank": b"", "zeros": b"\0" * 5000, "x.svg": b"<svg/>", "x.npy": b"\x93NUMPY" + b"\0" * 99}
    others |= {
        "x.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
        "x.h5": b"\x89HDF\r\n\x1a\n",
    }
    for name, content in others.items():
        (root / "cross" / name).write_bytes(content)
    (root / "loose.png").write_bytes((root / "circle" / "00.png").read_bytes())
    (root / "labels.csv").write_text("a,b")
    expected = Counter({
        ".txt": 2, ".json": 1, "without an ending": 3, ".heic": 1, ".svg": 1, ".npy": 1, ".eps": 1, ".h5": 1, ".csv": 1,
        "images beside the class folders": 1,
    })  # fmt: skip
    for made in (Folder(root), as_tar(root, tmp_path / "set.tar"), as_tar(root, tmp_path / "two.tar", "set")):
        assert len(made.names) == 3 + len(KINDS) + 1 and made.classes == list(FOLDERS)
        assert made.left_out == expected and check(made).bad == []
    found, left_out = predict.find_images([str(root)], others := Counter()), others
    assert len(found) == 3 + len(KINDS) + 2  # without classes nothing is beside them
    assert left_out == expected - Counter({"images beside the class folders": 1})
    assert note(expected, "the image source") == (
        "Files of the image source left out, as no images of a class: 3 without an ending, 2 .txt, 1 .csv, 1 .eps, 1 .h5, "
        "1 .heic, 1 .json, 1 .npy, …."
    )


def test_a_name_that_promises_an_image_must_keep_it(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "set", 2)
    (root / "cross" / "text.jfif").write_text("no image")
    for made in (Folder(root), as_tar(root, tmp_path / "set.tar")):
        [(place, said)] = check(made).bad
        assert made.names[place].endswith("cross/text.jfif") and "not a readable image" in said


def test_a_class_without_images_says_what_it_holds(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "set", 2)
    (root / "empty").mkdir()
    (root / "empty" / "a.txt").write_text("text")
    with pytest.raises(UserError, match=r"empty: the class folder holds no images; remove it or fill it\. .*1 \.txt"):
        Folder(root)
    with pytest.raises(UserError, match=r"empty: holds no images\. .*1 \.txt"):
        predict.find_images([str(root / "empty")])


# ---- links


def link(target: Path, path: Path) -> None:
    path.symlink_to(target)


def test_links_are_followed_and_lead_in_no_circle(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "set", 2)
    more = tmp_path / "elsewhere"
    (more / "deep").mkdir(parents=True)
    for k in range(3):
        picture(2, 50 + k).save(more / "deep" / f"{k}.png")
    link(more, root / "square" / "more")
    link(more / "deep", root / "square" / "again")  # the same folder is read once
    link(root / "square", more / "back")
    link(more, more / "deep" / "up")
    link(root, root / "cross" / "root")
    link(tmp_path, root / "cross" / "above")
    link(root / "cross" / "self", root / "cross" / "self")
    link(tmp_path / "nothing.png", root / "cross" / "gone.png")
    link(root / "cross" / "00.png", root / "cross" / "linked")
    os.mkfifo(root / "cross" / "pipe.png")
    link(more, root / "star")
    made = Folder(root)
    counts = Counter(made.classes[c] for c in made.class_of)
    assert counts == {"circle": 2, "cross": 3, "square": 5, "star": 5}  # a star's `back` leads to square's own two
    assert made.left_out == {"broken links": 2, "neither file nor folder": 1}
    assert len(predict.find_images([str(root / "square")])) == 5


def test_a_forest_of_links_is_walked_once(tmp_path: Path) -> None:
    """Two links each from every folder to the next: 2^30 paths, 30 folders."""
    for k in range(30):
        (tmp_path / "set" / f"f{k:02d}").mkdir(parents=True)
        picture(0, k).save(tmp_path / "set" / f"f{k:02d}" / "x.png")
    for k in range(29):
        for name in "ab":
            link(tmp_path / "set" / f"f{k + 1:02d}", tmp_path / "set" / f"f{k:02d}" / name)
    (tmp_path / "start").mkdir()
    link(tmp_path / "set" / "f00", tmp_path / "start" / "go")
    assert len(below(tmp_path / "start").files) == 30


# ---- tar files


def test_loose_images_of_a_tar_are_no_class(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "set", 2)
    picture(0, 99).save(root / "loose.png")
    for k, wrapped in enumerate(("", "set", "a/b")):
        made = as_tar(root, tmp_path / f"{k}.tar", wrapped)
        assert made.classes == list(FOLDERS) and made.left_out == {"images beside the class folders": 1}
    picture(0, 99).save(tmp_path / "one.png")
    (tmp_path / "tars").mkdir()
    for k, name in enumerate(FOLDERS):
        with tarfile.open(tmp_path / "tars" / f"{name}.tar", "w") as tar:
            tar.add(root / name / "00.png", "00.png" if k else "x/00.png")
    assert Tar(sorted((tmp_path / "tars").iterdir())).classes == ["cross", "square", "x"]


def test_a_folder_of_tars_may_have_a_systems_folder_beside(tmp_path: Path) -> None:
    (tmp_path / "@eaDir").mkdir()
    as_tar(image_folder(tmp_path / ".set", 1), tmp_path / "a.tar")
    assert open_path(tmp_path, "data.path").classes == list(FOLDERS)


# ---- predict and a whole run


def test_globs_leave_out_the_same(tmp_path: Path) -> None:
    root = untidy(tmp_path / "set")
    (root / "circle" / "a.txt").write_text("text")
    left_out: Counter[str] = Counter()
    found = predict.find_images([f"{root}/**/*"], left_out)
    assert sorted(p.relative_to(root).as_posix() for p in found) == Folder(root).names and left_out == {".txt": 1}
    hidden = root / "circle" / "._00.png"
    assert predict.find_images([str(hidden), f"{root}/circle/._*"]) == [hidden, hidden]  # explicitly named


def test_a_run_and_predict_tell_what_was_left_out(tmp_path: Path) -> None:
    model, root = model_folder(tmp_path / "model"), untidy(tmp_path / "set")
    (root / "cross" / "notes.txt").write_text("text")
    content = recipe_dict(model, root, tmp_path / "out", baselines=[], export={"onnx": True, "latency_batches": [1]})
    made = pipeline.run(recipe.Recipe.model_validate(content))
    said = "left out, as no images of a class: 1 .txt."
    assert [n for n in made["notes"] if said in n]
    folder = tmp_path / "out" / "tiny"
    plain = CliRunner().invoke(app, ["predict", str(folder), str(root)])
    assert plain.exit_code == 0 and said in plain.stderr and len(plain.stdout.splitlines()) == 6
    found = json.loads(CliRunner().invoke(app, ["predict", str(folder), str(root), "--json"]).stdout)
    assert found["left_out"] == {".txt": 1} and len(found["images"]) == 6


# ---- contents decide, not clocks


def test_a_time_is_no_content_and_a_content_is_seen_behind_the_same_time(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "set", 2)
    file = root / "cross" / "00.bmp"
    picture(1, 1).save(file)
    made = [Folder(root), as_tar(root, tmp_path / "set.tar")]
    before = [source.fingerprint() for source in made]
    for path in (file, tmp_path / "set.tar"):
        os.utime(path, (5, 5))
    assert [source.fingerprint() for source in made] == before
    for path in (file, tmp_path / "set.tar"):  # one bit, the size and the time as they were
        content = bytearray(path.read_bytes())
        content[-1100 if path == file else len(content) // 2] ^= 1
        path.write_bytes(content)
        os.utime(path, (5, 5))
    assert all(a != b for a, b in zip([source.fingerprint() for source in made], before, strict=True))


def test_what_was_read_is_remembered_and_never_trusted_too_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitprune.images.sources.contents.WORTH", 1)
    monkeypatch.setattr("vitprune.images.sources.contents.SETTLED", -1e9)
    root, memory = image_folder(tmp_path / "set", 2), tmp_path / "seen"
    source = Folder(root)
    first = source.fingerprint()

    def asked() -> tuple[str, int]:
        contents = Contents(memory)
        made = source.fingerprint(contents)
        contents.keep()
        return made, contents._read

    size = sum(path.stat().st_size for path in source.files)
    assert asked() == (first, size) and asked() == (first, 0)
    file = source.files[3]
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    about = file.stat()
    file.write_bytes(content)
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))  # set back: the inode's own time tells
    made, read = asked()
    assert made == source.fingerprint() != first and read == len(content)
    for damaged in (b"", memory.read_bytes()[:-7], bytes(len(memory.read_bytes()))):
        memory.write_bytes(damaged)
        assert asked() == (made, size)


def test_a_small_set_is_not_worth_remembering(tmp_path: Path) -> None:
    contents = Contents(tmp_path / "seen")
    Folder(image_folder(tmp_path / "set", 1)).fingerprint(contents)
    contents.keep()
    assert not (tmp_path / "seen").exists()


def test_an_image_that_pillow_takes_for_a_bomb_is_one_that_reading_refuses(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "set", 1)
    head = b"IHDR" + struct.pack(">IIBBBBB", 1 << 20, 1 << 20, 8, 0, 0, 0, 0)
    large = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    (root / "cross" / "large").write_bytes(
        large + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    )
    [(place, said)] = check(made := Folder(root)).bad
    assert made.names[place] == "cross/large" and "not a readable image" in said
