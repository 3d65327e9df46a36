"""Which output a class of the images is: one rule for every kind of source, a name or a refusal, never a silent guess."""

from __future__ import annotations

import io
import json
import tarfile
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from small import image_folder, model_folder, picture, recipe_dict, write_recipe
from typer.testing import CliRunner

from vitprune.cli.app import app
from vitprune.core.errors import UserError
from vitprune.deploy import predict
from vitprune.images import class_names
from vitprune.images.class_names import match, output_indices
from vitprune.images.mapping import Mapping
from vitprune.images.names import Spellings, called, fold, number_of
from vitprune.images.sources.base import Source
from vitprune.images.sources.opening import open_path
from vitprune.images.sources.pair import ProbeAndTest
from vitprune.model.load import opening
from vitprune.recipe import inputs, parse, recipe
from vitprune.report.card import card
from vitprune.runs import pipeline

pytestmark = pytest.mark.usefixtures("quick")
KINDS = ("folder", "tar", "csv", "shard")


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def found(classes: Sequence[str], outputs: int, names: Sequence[str] | None = None, **more: Any) -> list[int]:
    return output_indices(classes, outputs, names, "here", **more).tolist()


def png(kind: int, seed: int) -> bytes:
    file = io.BytesIO()
    picture(kind % 3, 1000 * kind + seed).save(file, "PNG")
    return file.getvalue()


def source_of(kind: str, root: Path, names: Sequence[str], per_class: int = 2) -> Source:
    """The same images, class by class, as one kind of source."""
    root.mkdir(parents=True)
    files = {f"{name}/{i}.png": png(k, i) for k, name in enumerate(names) for i in range(per_class)}
    if kind in ("folder", "csv"):
        for path, content in files.items():
            (root / "images" / path).parent.mkdir(parents=True, exist_ok=True)
            (root / "images" / path).write_bytes(content)
        if kind == "folder":
            return open_path(root / "images", "data.path")
        rows = [f"images/{path},{path.split('/')[0]}" for path in files]
        (root / "list.csv").write_text("\n".join(["path,label", *rows]), encoding="utf-8")
        return open_path(root / "list.csv", "data.path")
    if kind == "shard":
        pairs = [(f"{n:04d}.png", f"{n:04d}.cls", path, content) for n, (path, content) in enumerate(files.items())]
        files = {name: content for name, _, _, content in pairs}
        files |= {beside: path.split("/")[0].encode() for _, beside, path, _ in pairs}
    with tarfile.open(root / "images.tar", "w") as tar:
        for path, content in files.items():
            info = tarfile.TarInfo(path)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return open_path(root / "images.tar", "data.path")


def outputs_of(source: Source, outputs: int, names: Sequence[str] | None = None) -> list[tuple[bytes, int]]:
    """Pixels and output of every image."""
    of_class = class_names.match(source.classes, outputs, names, "here", source.numbers).outputs
    return sorted((source.image(i).tobytes(), int(of_class[c])) for i, c in enumerate(source.class_of))


# ---- numbers


@pytest.mark.parametrize("form", ["{}", "{:02d}", "{:05d}", "{}.0", "{}.00"])
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_outputs_in_every_source(tmp_path: Path, kind: str, form: str) -> None:
    made = outputs_of(source_of(kind, tmp_path / kind, [form.format(i) for i in range(12)]), 12)
    pixels = {png_pixels(k, i): k for k in range(12) for i in range(2)}
    assert len(made) == 24 and all(output == pixels[content] for content, output in made)


def png_pixels(kind: int, seed: int) -> bytes:
    return picture(kind % 3, 1000 * kind + seed).tobytes()


@pytest.mark.parametrize("names", [None, [f"name-{i}" for i in range(12)]])
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_from_one_are_refused_in_every_source(tmp_path: Path, kind: str, names: list[str] | None) -> None:
    source = source_of(kind, tmp_path / kind, [str(i) for i in range(1, 13)])
    said = refusal(lambda: outputs_of(source, 12, names))
    assert "class `12` is output 12, but the model's 12 outputs are 0 to 11" in said
    assert "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12" in said and "data.labels: by-order" in said
    assert found(source.classes, 12, names, by_order=True) == list(range(12))  # 2 before 10, whatever the source


def test_numbers_of_some_outputs_are_told_and_never_moved() -> None:
    assert found(["0", "7"], 10) == found(["0.0", "07"], 10) == found(["7", "0"], 10)[::-1] == [0, 7]
    made = match(["0", "7"], 10, None, "here")
    said = class_names.remark(made, ["0", "7"], 10, None)
    assert said is not None and "counted from 0; 2 of 10 outputs have images" in said
    assert class_names.remark(match(["0", "1"], 2, None, "here"), ["0", "1"], 2, None) is None
    assert "the classes run from 1 to 3, the model's 10 outputs from 0 to 9" in refusal(lambda: found("123", 10))
    assert "are one output (7)" in refusal(lambda: found(["0", "7", "07"], 10))
    for other in (["0", "-1"], ["0", "1.5"], ["0", "1e0"], ["0", "²"], ["0", "x"]):  # these are no numbers
        assert "3 outputs" in refusal(lambda other=other: found(other, 3))  # type: ignore[misc]


def test_a_models_own_numbers_are_names() -> None:
    """timm saves the class folders' names as an ImageFolder sorts them: 10 stands before 2."""
    own = sorted(str(i) for i in range(12))
    classes = [str(i) for i in range(12)]
    assert found(classes, 12, own) == [own.index(c) for c in classes]
    assert found([f"{i:02d}" for i in range(1, 13)], 12, [str(i) for i in range(1, 13)]) == list(range(12))
    assert "is output 0 by its name and 1 by its number" in refusal(lambda: found("012", 3, ["1", "x", "y"]))


@pytest.mark.parametrize(
    ("name", "number"),
    [("0", 0), ("007", 7), ("7.0", 7), ("000", 0), ("1.5", None), ("7.", None), ("", None), ("٣", None)],
)
def test_what_is_a_number(name: str, number: int | None) -> None:
    assert number_of(name) == number


# ---- names


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ("Dog", "dog"), ("hot_dog", "Hot Dog"), ("hot-dog", "hot dog"), ("HOTDOG", "hot_dog"), ("t-shirt", "T Shirt"),
        (unicodedata.normalize("NFD", "café"), unicodedata.normalize("NFC", "Café")), ("Straße", "STRASSE"),
        ("a\u00a0b", "a b"), ("a\u2013b", "a-b"), ("ﬁsh", "fish"), (" dog ", "dog"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["folder", "csv"])
def test_names_match_but_for_case_spaces_dashes_and_unicode_form(
    tmp_path: Path, kind: str, mine: str, theirs: str
) -> None:
    source = source_of(kind, tmp_path / kind, [mine, "Zebra"])
    made = dict(zip(source.classes, found(source.classes, 3, ["zebra", theirs, "other"]), strict=True))
    assert made["Zebra"] == 0 and sorted(made.values()) == [0, 1]


def test_folders_in_another_order_than_the_labels() -> None:
    assert found(["Cat", "Dog"], 2, ["dog", "cat"]) == [1, 0]
    assert found(["goldfish"], 2, ["n01\ttench", "n02\tGold_Fish"]) == [1]


def test_what_only_looks_alike_is_refused() -> None:
    assert "`hot_dog` and `Hot Dog` are one output (hot dog)" in refusal(
        lambda: found(["hot_dog", "Hot Dog"], 2, ["hot dog", "cat"])
    )
    assert found(["Polish", "polish"], 2, ["polish", "Polish"]) == [1, 0]  # as it is written comes first
    assert "`POLISH` names more than one" in refusal(lambda: found(["POLISH"], 2, ["polish", "Polish"]))
    assert found(["-", "_"], 2, ["_", "-"]) == [1, 0] and fold("-") == "" and not Spellings([("-", 0)]).find("_")


@pytest.mark.parametrize(
    ("classes", "outputs", "names"),
    [
        (["cat", "bird"], 2, ["dog", "cat"]),
        (["bird", "fish"], 2, ["dog", "cat"]),
        (["bird", "cat", "dog"], 2, ["dog", "cat"]),
        (["bird"], 2, ["dog", "cat"]),
        (["bird", "cat", "dog"], 2, None),
        (["cat"], 2, None),
    ],
)
def test_everything_else_is_refused_with_both_lists(classes: list[str], outputs: int, names: list[str] | None) -> None:
    said = refusal(lambda: found(classes, outputs, names))
    assert f"the images' classes are {', '.join(classes)};" in said and "data.labels" in said
    assert ("labels are dog, cat" if names else "outputs are 0 to 1, without names") in said


def test_by_order_is_a_word_that_does_not_go_against_names() -> None:
    made = match(["x", "y"], 2, ["a", "b"], "here", by_order=True)
    assert made.outputs.tolist() == [0, 1] and made.how == "order"
    assert "output 0 is x, 1 is y" in str(class_names.remark(made, ["x", "y"], 2, ["a", "b"]))
    assert "`cat` is output 1 by its name and 0 by its order" in refusal(
        lambda: found(["cat", "dog"], 2, ["dog", "cat"], by_order=True)
    )
    assert "3 classes cannot go by order to 2 outputs" in refusal(lambda: found("xyz", 2, by_order=True))


def test_by_order_is_a_word_and_a_file_of_that_name_is_a_file(tmp_path: Path) -> None:
    word, file = inputs.Data(source="bundled", labels="by-order"), inputs.Data(source="bundled", labels="./by-order")  # type: ignore[arg-type]
    assert word.labels == "by-order" and file.labels == Path("by-order")
    assert word.model_dump(mode="json")["labels"] == "by-order"
    assert file.model_dump(mode="json")["labels"] == "./by-order"  # so it is a file when it is read again
    assert inputs.Data(source="bundled").model_dump(mode="json")["labels"] is None
    content = recipe_dict("bundled", tmp_path, tmp_path)
    content["data"]["labels"] = "./by-order"
    made = recipe.Recipe.model_validate(content)
    (tmp_path / "r.yaml").write_text(parse.dump(made))
    assert parse.load(tmp_path / "r.yaml").data.labels == Path("by-order")


def test_a_mapping_file_knows_names_that_are_written_otherwise(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps({"Hund": "Hot Dog", "KATZE": 0}))
    mapping = Mapping(tmp_path / "m.json")
    assert found(["hund", "katze"], 2, ["cat", "hot-dog"], mapping=mapping) == [1, 0]


def test_two_parts_that_write_names_differently_are_one_set_of_classes(tmp_path: Path) -> None:
    for mine, theirs in ((["Cat", "hot_dog"], ["cat", "Hot Dog"]), (["0", "1", "2"], ["00", "1.0", "2"])):
        name = mine[0]
        both = ProbeAndTest(
            source_of("folder", tmp_path / name / "a", mine), source_of("csv", tmp_path / name / "b", theirs)
        )
        assert both.classes == sorted(mine) and np.bincount(both.class_of).tolist() == [4] * len(mine)


# ---- the same name wherever one is printed


def test_every_output_has_a_name_of_its_own() -> None:
    assert called(3, ["n1\tcrane", "n2\tcrane", "n3\tbag"], {}) == ["crane (n1)", "crane (n2)", "bag"]
    assert called(3, None, {1: "dog"}) == ["0", "dog", "2"]
    assert called(2, ["x", "x"], {}) == ["x (output 0)", "x (output 1)"]


def whole(tmp_path: Path, own: tuple[str, ...] | None, verb: str = "run", **data: Any) -> tuple[dict[str, Any], Path]:
    if not (tmp_path / "model").exists():
        model_folder(tmp_path / "model", labels=own)
    content = recipe_dict(tmp_path / "model", tmp_path / "images", tmp_path / "out", baselines=[])
    content["data"] |= data
    content["export"]["onnx"] = verb == "run"
    made = pipeline.run(recipe.Recipe.model_validate(content), verb)
    return made, tmp_path / "out" / "tiny"


def names_everywhere(made: dict[str, Any], folder: Path) -> list[list[str]]:
    """The names of outputs 0, 1, … in the report, in the ONNX file, and as `predict` prints them."""
    about = {p.key: p.value for p in onnx.load(folder / "model.onnx").metadata_props}
    image = next((folder.parent.parent / "images").rglob("*.png"))
    answer = next(predict.predict(predict.open_model(folder), [image], 9, 1))
    top = {entry["output"]: entry["label"] for entry in answer["top"]}
    assert made["target_classes"] == json.loads(about["classes"]) == made["result"]["classes"]
    assert sorted(made["classes"]) == sorted(row["class"] for row in made["split"]["per_class"])
    assert sorted(made["classes"]) == sorted(row["class"] for row in made["per_class"])
    return [made["target_classes"], json.loads(about["labels"]), [top[i] for i in range(3)]]


def test_report_onnx_and_predict_name_classes_alike(tmp_path: Path) -> None:
    image_folder(tmp_path / "images")
    (tmp_path / "images" / "square").rename(tmp_path / "images" / "Squ-are")
    made, folder = whole(tmp_path, ("n1\tsquare", "n2\tCircle", "cross"))
    assert names_everywhere(made, folder) == [["square", "Circle", "cross"]] * 3
    assert made["notes"] == [] and "labels_by_order" not in json.loads((folder / "config.json").read_text())["vitprune"]
    assert whole(tmp_path, None, "split", on_corrupt="skip")[0]["target_classes"] == ["square", "Circle", "cross"]


@pytest.mark.parametrize("own", [None, ("a", "b", "c")])
@pytest.mark.sample(1)
def test_names_by_order_say_so_wherever_they_stand(tmp_path: Path, own: tuple[str, ...] | None) -> None:
    image_folder(tmp_path / "images")
    made, folder = whole(tmp_path, own, **({"labels": "by-order"} if own else {}))
    assert names_everywhere(made, folder) == [["circle", "cross", "square"]] * 3
    [note] = [n for n in made["notes"] if n.startswith("Class names go by the sorted order of the images' classes")]
    assert "output 0 is circle, 1 is cross, 2 is square" in note
    config = json.loads((folder / "config.json").read_text())
    assert config["vitprune"]["labels_by_order"] is True
    assert config["pretrained_cfg"].get("label_names") == (["circle", "cross", "square"] if own else None)
    assert "Class names go by the sorted order" in card(made, made["result"], config)
    image = str(tmp_path / "images" / "cross" / "00.png")
    plain = CliRunner().invoke(app, ["predict", str(folder), image])
    assert plain.exit_code == 0 and "class names: by the sorted order" in plain.stderr
    assert (
        json.loads(CliRunner().invoke(app, ["predict", str(folder), image, "--json"]).stdout)["labels_by_order"] is True
    )


def test_classes_of_a_recipe_are_found_by_any_of_their_names(tmp_path: Path) -> None:
    image_folder(tmp_path / "images")
    (tmp_path / "images" / "square").rename(tmp_path / "images" / "Squ-are")
    model_folder(tmp_path / "model", labels=("n1\tsquare", "n2\tcircle", "n3\tcross"))
    for name in ("Squ-are", "square", "n1", "SQUARE"):
        content = recipe_dict(tmp_path / "model", tmp_path / "images", tmp_path / "out", classes=[name])
        made = pipeline.run(recipe.Recipe.model_validate(content), "split")
        assert made["target_classes"] == ["square"]


def test_a_name_as_it_is_written_comes_before_one_alike(tmp_path: Path) -> None:
    image_folder(tmp_path / "images")
    (tmp_path / "images" / "circle").rename(tmp_path / "images" / "hot dog")
    (tmp_path / "images" / "cross").rename(tmp_path / "images" / "n7")
    model_folder(tmp_path / "model", labels=("hotdog", "hot dog", "square"))
    (tmp_path / "m.json").write_text('{"n7": "hotdog"}')
    content = recipe_dict(tmp_path / "model", tmp_path / "images", tmp_path / "out")
    content["data"]["labels"] = str(tmp_path / "m.json")
    for name in ("hotdog", "hot dog"):
        made = pipeline.run(recipe.Recipe.model_validate(content | {"classes": [name]}), "split")
        assert made["target_classes"] == [name]


def test_the_dense_figure_is_the_same_from_every_source(tmp_path: Path) -> None:
    """Twelve numbered classes, a model without names: top-1 as computed by hand, from a folder, a tar and a list."""
    model_folder(tmp_path / "model", outputs=12, labels=None)
    loaded, figures = opening.open_model(inputs.Model(name=f"local-dir:{tmp_path / 'model'}")), {}
    transform = loaded.transform()
    names = [str(i) for i in range(12)]
    for kind in ("folder", "tar", "csv"):
        source_of(kind, tmp_path / kind, names, 4)
        path = tmp_path / kind / {"folder": "images", "tar": "images.tar", "csv": "list.csv"}[kind]
        content = recipe_dict(tmp_path / "model", path, tmp_path / "out", baselines=[], recovery="none", name=kind)
        write_recipe(tmp_path / "r.yaml", content)
        made = pipeline.run(parse.load(tmp_path / "r.yaml"), "evaluate")
        [row] = [r for r in made["rows"] if r["criterion"] == "dense"]
        split = json.loads((tmp_path / "out" / kind / "split.json").read_text())["test"]
        hits = []
        for name in split:
            number, seed = map(int, name.removesuffix(".png").split("/")[-2:])
            x = transform(picture(number % 3, 1000 * number + seed))[None]
            hits.append(int(loaded.model(x).argmax()) == number)
        assert row["top1"] == pytest.approx(np.mean(hits)) and made["target_classes"] == names
        figures[kind] = row["top1"]
    assert len(set(figures.values())) == 1
