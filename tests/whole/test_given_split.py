"""The user's own probe and test images: overlap refused, and what holds for classes that one of them lacks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from small import FOLDERS, image_folder, model_folder, picture, quicken, recipe_dict

from vitprune import report
from vitprune.core.errors import UserError
from vitprune.images.sources.pair import ProbeAndTest
from vitprune.images.split import remarks
from vitprune.recipe import inputs, recipe
from vitprune.report.sections.trust import trust_section
from vitprune.runs import compare, pipeline

Made = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        yield


class Bench:
    """A tiny model, a probe and a test folder with different images."""

    def __init__(self, root: Path) -> None:
        self.root, self.probe, self.test = root, root / "probe", root / "test"
        self.model = model_folder(root / "model")
        image_folder(self.probe, 5)
        for kind, name in enumerate(FOLDERS):
            (self.test / name).mkdir(parents=True)
            for i in range(3):
                picture(kind, 100 + i).save(self.test / name / f"{i:02d}.png")

    def run(self, verb: str = "split", data: Made | None = None, **changed: Any) -> Made:
        given = {"probe": str(self.probe), "test": str(self.test)} | (data or {})
        content = recipe_dict(self.model, self.probe, self.root / "out", data=given, **changed)
        return pipeline.run(recipe.Recipe.model_validate(content), verb)

    def split(self) -> Made:
        return dict(json.loads((self.root / "out" / "tiny" / "stages" / "split" / "split.json").read_text()))

    def refused(self, verb: str = "split", **changed: Any) -> str:
        with pytest.raises(UserError) as caught:
            self.run(verb, **changed)
        assert len(str(caught.value).splitlines()) == 1
        return str(caught.value)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def counts(made: Made) -> dict[str, tuple[int, int]]:
    return {row["class"]: (row["probe"], row["test"]) for row in made["split"]["per_class"]}


# ---- the two parts


def test_the_parts_are_the_folders(bench: Bench) -> None:
    made = bench.run()
    assert (made["split"]["probe"], made["split"]["test"]) == (15, 9)
    assert made["split"]["given"] == {"probe": bench.probe.name, "test": bench.test.name}
    assert made["split"]["probe_share"] is None and made["split"]["skipped"] == made["split"]["notes"] == []
    found = bench.split()
    assert found["probe"] == list(range(15)) and found["test"] == list(range(15, 24))
    first = made["hashes"]
    picture(0, 7).save(bench.test / "circle" / "07.png")
    assert bench.run()["hashes"]["data"] != first["data"]


def test_each_part_may_be_any_kind_of_source(bench: Bench) -> None:
    import tarfile

    with tarfile.open(bench.root / "probe.tar", "w") as tar:
        tar.add(bench.probe, "val")
    rows = [f"{p.relative_to(bench.root)},{p.parent.name}" for p in sorted(bench.test.rglob("*.png"))]
    (bench.root / "test.csv").write_text("\n".join(["path,label", *rows]))
    plain = bench.run()
    made = bench.run(data={"probe": str(bench.root / "probe.tar"), "test": str(bench.root / "test.csv")})
    assert counts(made) == counts(plain)


def test_names_and_numbers_do_not_mix(bench: Bench) -> None:
    rows = [f"{p},{FOLDERS.index(p.parent.name)}" for p in sorted(bench.test.rglob("*.png"))]
    (bench.root / "test.csv").write_text("\n".join(["path,label", *rows]))
    assert "one labels by name and the other by number" in bench.refused(data={"test": str(bench.root / "test.csv")})


def test_a_part_that_is_missing_is_named_by_its_key(bench: Bench) -> None:
    assert bench.refused(data={"test": str(bench.root / "none")}).startswith("data.test")
    shutil.rmtree(bench.probe)
    assert bench.refused().startswith("data.probe")
    for given in ({"probe": "a"}, {"test": "a"}, {"probe": "a", "test": "b", "path": "c"}):
        with pytest.raises(ValueError, match=r"go together|give either"):
            inputs.Data.model_validate(given)


def test_a_limit_is_for_each_part(bench: Bench) -> None:
    made = bench.run(data={"limit_per_class": 2})
    assert counts(made) == dict.fromkeys(FOLDERS, (2, 2))


def test_the_report_says_that_the_split_was_given(bench: Bench) -> None:
    made = bench.run()
    said = str(trust_section(made))
    assert f"Both were given: {bench.probe.name} and {bench.test.name}, with no image in common." in said
    assert "Split seed" not in said
    schema = json.loads((Path(report.__file__).parent / "schema.json").read_text())["properties"]["split"]
    assert set(made["split"]) <= {*schema["properties"], "classes"}


def test_one_split_is_not_compared_as_several(bench: Bench) -> None:
    given = {"probe": str(bench.probe), "test": str(bench.test)}
    content = recipe_dict(bench.model, bench.probe, bench.root / "out", data=given)
    with pytest.raises(UserError, match=r"set compare\.seeds: \[0\]"):
        compare.compare(recipe.Recipe.model_validate(content))


# ---- overlap


def test_an_image_in_both_is_refused_with_its_two_names(bench: Bench) -> None:
    shutil.copy(bench.probe / "cross" / "03.png", bench.test / "cross" / "other.png")
    said = bench.refused()
    assert "`probe/cross/03.png` and `test/cross/other.png` have the same pixels;" in said
    shutil.copy(bench.probe / "circle" / "00.png", bench.test / "square" / "x.png")  # another class changes nothing
    assert "(and 1 more pairs)" in bench.refused()
    assert not (bench.root / "out" / "tiny" / "stages" / "split" / "split.json").exists()


def test_the_same_pixels_in_another_file_are_the_same_image(bench: Bench) -> None:
    about = PngInfo()
    about.add_text("comment", "saved again")
    with Image.open(bench.probe / "cross" / "03.png") as image:
        image.convert("RGB").save(bench.test / "cross" / "again.png", pnginfo=about)
    assert (bench.test / "cross" / "again.png").read_bytes() != (bench.probe / "cross" / "03.png").read_bytes()
    assert "test/cross/again.png" in bench.refused()
    with Image.open(bench.probe / "cross" / "03.png") as image:
        image.point(lambda v: v ^ 1).save(bench.test / "cross" / "again.png")  # one step of grey is another image
    assert counts(bench.run())["cross"] == (5, 4)


def test_overlap_is_found_by_decoding_processes_too(bench: Bench) -> None:
    shutil.copy(bench.probe / "cross" / "03.png", bench.test / "cross" / "other.png")
    assert "probe/cross/03.png" in bench.refused(data={"workers": 1})


def test_two_images_alike_within_a_part_are_let_be(bench: Bench) -> None:
    for part in (bench.probe, bench.test):
        shutil.copy(part / "cross" / "00.png", part / "cross" / "twin.png")
    assert counts(bench.run())["cross"] == (6, 4)


# ---- classes that a part lacks


def test_a_class_without_probe_images_cannot_be_pruned_for(bench: Bench) -> None:
    shutil.rmtree(bench.probe / "cross")
    said = bench.refused()
    assert said.startswith(f"data.probe {bench.probe}: no readable image of class `cross`") and "`classes`" in said
    made = bench.run(classes=["circle", "square"])
    assert counts(made)["cross"] == (0, 3)
    [note] = made["split"]["notes"]
    assert (
        note.startswith("1 class(es) without probe images: cross; nothing is chosen for them") and note in made["notes"]
    )


def test_a_class_without_test_images_is_pruned_for_and_not_measured(bench: Bench) -> None:
    shutil.rmtree(bench.test / "cross")
    made = bench.run("run", baselines=["random"], recovery="affine")
    [note] = made["split"]["notes"]
    assert note.startswith("1 class(es) without test images: cross; their accuracy is not measured")
    of = {row["class"]: row for row in made["per_class"]}
    assert sorted(of) == ["circle", "square"] and of["circle"]["n"] == 3
    rows = {row["criterion"]: row["per_class_top1"] for row in made["rows"] if row["head"] == "all"}
    assert all(row["cross"] is None and row["circle"] is not None for row in rows.values())
    assert made["result"]["n"] == 6 and sorted(made["result"]["classes"]) == sorted(FOLDERS)
    assert made["complete"] and all(check["passed"] for check in made["checks"])


def test_a_class_set_without_any_test_image_is_refused(bench: Bench) -> None:
    shutil.rmtree(bench.test / "cross")
    groups = {"one": ["cross"], "two": ["circle", "square"]}
    assert "no readable image of group `one`" in bench.refused(groups=groups)
    assert "no readable image of the classes" in bench.refused(classes=["cross"])


def test_a_class_whose_images_are_all_unreadable_is_a_missing_one(bench: Bench) -> None:
    for path in (bench.probe / "cross").iterdir():
        path.write_bytes(b"no image")
    assert str(bench.probe / "cross" / "00.png") in bench.refused()
    assert "no readable image of class `cross`" in bench.refused(data={"on_corrupt": "skip"})
    made = bench.run(data={"on_corrupt": "skip"}, classes=["circle"])
    assert [row["path"] for row in made["split"]["skipped"]] == [f"probe/cross/0{i}.png" for i in range(5)]


# ---- one image per class, and imbalance


def test_one_image_per_class_in_either_part_is_enough(bench: Bench) -> None:
    for part in (bench.probe, bench.test):
        for path in part.rglob("*.png"):
            if path.stem != "00":
                path.unlink()
    made = bench.run("evaluate", criterion={"name": "activation", "t": 3}, baselines=[], recovery="none")
    assert counts(made) == dict.fromkeys(FOLDERS, (1, 1)) and made["result"]["n"] == 3


def test_one_image_per_class_cannot_be_split(bench: Bench) -> None:
    for path in (bench.probe / "cross").iterdir():
        if path.stem != "00":
            path.unlink()
    said = bench.refused(data={"probe": None, "test": None, "path": str(bench.probe)})
    assert said == "class `cross`: 1 usable image(s); a probe/test split needs at least two"


def test_imbalance_is_said_and_nothing_is_reweighted(bench: Bench) -> None:
    for i in range(27):
        picture(0, 500 + i).save(bench.test / "circle" / f"more-{i}.png")
    made = bench.run()
    [note] = made["split"]["notes"]
    assert note.startswith("The test images are unbalanced: 30 of `circle`, 3 of `cross`. Top-1 counts images")
    assert counts(made)["circle"] == (5, 30)


def test_remarks_of_both_parts() -> None:
    found = remarks(("a", "b", "c"), np.array([0, 20, 2]), np.array([9, 1, 0]))
    assert [note.split(":")[0] for note in found] == [
        "1 class(es) without probe images", "1 class(es) without test images", "The probe images are unbalanced",
    ]  # fmt: skip
    assert remarks(("a", "b"), np.array([9, 1]), np.array([1, 1])) == []


def test_the_union_of_numbered_classes_is_in_their_own_order(tmp_path: Path) -> None:
    from vitprune.images.sources.manifest import Manifest

    parts = []
    for name, numbers in (("probe", (10, 2)), ("test", (9, 2))):
        rows = [f"{name}-{n}.png,{n}" for n in numbers]
        (tmp_path / f"{name}.csv").write_text("\n".join(["path,label", *rows]))
        parts.append(Manifest(tmp_path / f"{name}.csv"))
    made = ProbeAndTest(*parts)
    assert made.classes == ["2", "9", "10"] and made.numbers == [2, 9, 10]
    assert made.class_of.tolist() == [2, 0, 1, 0] and made.probes == 2


def test_labels_are_mapped_for_a_whole_run(bench: Bench) -> None:
    for part in (bench.probe, bench.test):
        for i, name in enumerate(FOLDERS):
            (part / name).rename(part / f"n0000000{i}")
    assert "class folder `n00000000` is not among the model's labels" in bench.refused()
    [note] = bench.run(data={"labels": "by-order"})["split"]["notes"]
    assert (
        "order of the images' classes, as the recipe says (data.labels: by-order): output 0 is n00000000, 1 is" in note
    )
    (bench.root / "names.txt").write_text("n00000000 circle, ring\nn00000001 cross\nn00000002 square\n")
    given = {"labels": str(bench.root / "names.txt")}
    assert bench.run(data=given)["split"]["notes"] == []
    for wanted in ("circle", "n00000000", "ring"):
        assert bench.run(data=given, classes=[wanted])["target_classes"] == ["circle"]
    first = bench.run(data=given)["hashes"]["data"]
    (bench.root / "names.txt").write_text("n00000000 cross\nn00000001 circle, ring\nn00000002 square\n")
    assert bench.run(data=given)["hashes"]["data"] != first
