"""The split is one of pictures: copies stay on one side, are counted and told, whatever their files and classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small import FOLDERS, image_folder, model_folder, picture, recipe_dict

from vitprune.core.errors import UserError
from vitprune.core.progress import Reporter
from vitprune.images.decode_pool import Checked, unpacked
from vitprune.images.sources.opening import open_path
from vitprune.images.split import split_per_class
from vitprune.recipe import recipe
from vitprune.runs import choose, pipeline
from vitprune.runs.stages import split as split_stage
from vitprune.runs.state.run import Run

pytestmark = pytest.mark.usefixtures("quick")
Made = dict[str, Any]


def drawn(seed: int = 0, copies: int = 40, across: bool = False) -> tuple[np.ndarray, dict[int, bytes]]:
    """Three classes of 30 images, some of them with the pixels of others."""
    generator = np.random.default_rng(seed)
    class_of = generator.permutation(np.repeat(np.arange(3), 30))
    contents = {i: str(i).encode() for i in range(90)}
    for _ in range(copies):
        one = int(generator.integers(90))
        alike = np.arange(90) if across else np.flatnonzero(class_of == class_of[one])
        contents[int(generator.choice(alike))] = contents[one]
    return class_of, contents


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("probe", [0.1, 0.5, 0.8])
def test_no_picture_is_on_both_sides(probe: float, across: bool) -> None:
    for seed in range(8):
        class_of, contents = drawn(seed, across=across)
        made = split_per_class(class_of, FOLDERS, seed=seed, probe=probe, contents=contents)
        sides = [{contents[i] for i in part.tolist()} for part in (made.probe, made.test)]
        assert not sides[0] & sides[1] and sorted([*made.probe, *made.test]) == list(range(90))
        for c in range(3):
            counts = [len({contents[i] for i in part.tolist() if class_of[i] == c}) for part in (made.probe, made.test)]
            assert min(counts) >= 1 and (across or counts[0] == max(1, round(probe * sum(counts))))


def test_without_copies_nothing_changes() -> None:
    class_of, _ = drawn()
    contents = {i: bytes([i]) for i in range(90)}
    plain, same = (split_per_class(class_of, FOLDERS, seed=3, probe=0.8, contents=c) for c in (None, contents))
    assert np.array_equal(plain.probe, same.probe) and np.array_equal(plain.test, same.test)


def test_copies_come_after_the_pictures_of_their_class() -> None:
    contents = {i: b"a" if i in (0, 1, 2) else bytes([i]) for i in range(10)}
    made = split_per_class(np.zeros(10, np.int64), ["x"], seed=0, probe=0.9, contents=contents)
    part = (made.probe if 0 in made.probe else made.test).tolist()
    assert part[-2:] == [1, 2] and set(part) >= {0, 1, 2}


def test_pictures_that_cannot_be_split_are_named() -> None:
    with pytest.raises(UserError, match=r"class `x`: 3 usable image\(s\), all the same picture; a probe/test split"):
        split_per_class(np.zeros(3, np.int64), ["x"], seed=0, probe=0.5, contents=dict.fromkeys(range(3), b"a"))
    class_of = np.array([0] * 10 + [1] * 2)
    contents = {i: bytes([i]) for i in range(10)}
    made, said = {**contents, 10: bytes([0]), 11: bytes([1])}, []
    for seed in range(12):  # both pictures of `y` are in `x` too
        try:
            split = split_per_class(class_of, ["x", "y"], seed=seed, probe=0.5, contents=made)
        except UserError as error:
            said.append(str(error))
            continue
        assert {made[i] for i in split.probe.tolist()}.isdisjoint(made[i] for i in split.test.tolist())
    assert 0 < len(said) < 12 and all("class `y`: its 2 pictures are all in other classes too" in s for s in said)


def test_digests_come_back_from_their_table() -> None:
    found = Checked(contents={0: b"a" * 16, 3: b"\0" + b"b" * 15})
    assert unpacked(found.packed(5)) == found.contents and found.packed(5).shape == (5, 16)


# ---- whole runs


def run(tmp_path: Path, verb: str = "split", **changed: Any) -> Made:
    if not (tmp_path / "model").exists():
        model_folder(tmp_path / "model")
    content = recipe_dict(tmp_path / "model", tmp_path / "set", tmp_path / "out", baselines=[]) | changed
    return pipeline.run(recipe.Recipe.model_validate(content), verb)


def pixels_of(tmp_path: Path) -> list[set[bytes]]:
    """The pictures of the probe and of the test split, read from the files themselves."""
    split = json.loads((tmp_path / "out" / "tiny" / "stages" / "split" / "split.json").read_text())
    source = open_path(tmp_path / "set", "data.path")
    return [{source.image(i).convert("RGB").tobytes() for i in split[part]} for part in ("probe", "test")]


@pytest.mark.parametrize("workers", [0, 1])
def test_copies_stay_on_one_side_and_are_told(tmp_path: Path, workers: int) -> None:
    root = image_folder(tmp_path / "set", 6)
    for k in range(6):
        with Image.open(root / "cross" / f"{k:02d}.png") as image:  # another format, another mode, another name
            image.convert("RGB").save(root / "cross" / f"copy-{k}.bmp")
    for k in range(3):
        shutil.copy(root / "circle" / f"{k:02d}.png", root / "circle" / f"twin-{k}.png")
    made = run(tmp_path, data={"path": str(root), "workers": workers})
    probe, test = pixels_of(tmp_path)
    assert not probe & test
    [note] = made["split"]["notes"]
    assert note.startswith(
        "9 of the images are copies of others by their pixels (`circle/00.png` and `circle/twin-0.png`, …)"
    )
    assert note in made["notes"]
    counts = {row["class"]: row["probe"] + row["test"] for row in made["split"]["per_class"]}
    assert counts == {"circle": 9, "cross": 12, "square": 6}
    assert made["checks"][0]["value"] == 0 and made["checks"][0]["detail"] == "counted by the images' pixels"


def test_one_picture_under_two_labels_is_told(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "set", 6)
    shutil.copy(root / "circle" / "02.png", root / "square" / "other.png")
    made = run(tmp_path)
    probe, test = pixels_of(tmp_path)
    assert not probe & test
    assert any(
        n.startswith("1 picture(s) stand under more than one class (`circle/02.png` and `square/other.png`)")
        for n in made["split"]["notes"]
    )


def test_a_given_split_tells_of_copies_and_labels_that_contradict(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "set", 4)
    for kind, name in enumerate(FOLDERS):
        (tmp_path / "test" / name).mkdir(parents=True)
        picture(kind, 100).save(tmp_path / "test" / name / "a.png")
    shutil.copy(tmp_path / "test" / "circle" / "a.png", tmp_path / "test" / "cross" / "same.png")
    made = run(tmp_path, data={"probe": str(root), "test": str(tmp_path / "test")})
    assert [n.split(" (")[0] for n in made["split"]["notes"]] == [
        "1 of the images are copies of others by their pixels",
        "1 picture(s) stand under more than one class",
    ]


def test_names_that_are_no_text_do_not_break_the_notes(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "set", 3)
    shutil.copy(root / "cross" / "00.png", bytes(root / "cross") + b"/\xff\n.png")
    (root / "cross" / "a.\udcffx").write_text("text")
    notes = run(tmp_path)["split"]["notes"]
    assert "`cross/00.png` and `cross/??.png`" in notes[0] and notes[1].endswith("1 .?x.")


def test_the_leak_check_looks_at_the_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A split by position, as it was: the check that must fail fails."""
    root = image_folder(tmp_path / "set", 6)
    for k in range(6):
        shutil.copy(root / "cross" / f"{k:02d}.png", root / "cross" / f"copy-{k}.png")

    def by_position(*args: Any, contents: Any = None, **settings: Any) -> Any:
        assert contents
        return split_per_class(*args, **settings)

    monkeypatch.setattr(split_stage, "split_per_class", by_position)
    made = run(tmp_path)
    assert made["checks"][0]["passed"] is False and made["checks"][0]["value"] > 0


def test_the_fold_of_auto_is_one_of_pictures_too(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "set", 8)
    for name in FOLDERS:
        for k in range(8):
            shutil.copy(root / name / f"{k:02d}.png", root / name / f"copy-{k}.png")
    run(tmp_path)
    content = recipe_dict(tmp_path / "model", root, tmp_path / "out", baselines=[])
    with Run.open(recipe.Recipe.model_validate(content), "cpu", Reporter(quiet=True)) as opened:
        inner = choose.fold(opened, ["variance"])
        parts = [{opened.contents[i] for i in part.tolist()} for part in (inner.split.probe, inner.split.test)]
    assert all(parts) and not parts[0] & parts[1]


def test_a_checkpoint_folder_beside_the_images_leaks_nothing(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "set", 4)
    for name in FOLDERS:
        (root / name / ".ipynb_checkpoints").mkdir()
        for k in range(4):
            source = root / name / f"{k:02d}.png"
            shutil.copy(source, root / name / ".ipynb_checkpoints" / f"{k:02d}-checkpoint.png")
    made = run(tmp_path)
    assert made["split"]["probe"] + made["split"]["test"] == 12 and made["split"]["notes"] == []
