"""Class names against outputs by way of a mapping file: synsets, plain names, numbers; never a guess."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitprune.core.errors import UserError
from vitprune.images.class_names import output_indices
from vitprune.images.mapping import Mapping

SYNSETS = "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n\nn01484850 great white shark\n"
PLAIN = ("great white shark", "tench", "goldfish")
BOTH = ("n01484850\tgreat white shark", "n01440764\ttench", "n01443537\tgoldfish")
FOLDERS = ("n01440764", "n01443537", "n01484850")


def line(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def mapping(tmp_path: Path, content: Any, name: str = "names.json") -> Mapping:
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return Mapping(tmp_path / name)


def outputs(classes: tuple[str, ...], names: tuple[str, ...] | None, found: Mapping, **more: Any) -> list[int]:
    return output_indices(classes, 3, names, "here", mapping=found, **more).tolist()


SAME = {
    "synsets.txt": SYNSETS,
    "tabs.txt": SYNSETS.replace(" ", "\t", 1).replace("n01443537 ", "n01443537\t").replace("n01484850 ", "n01484850\t"),
    "object.json": json.dumps(dict(zip(FOLDERS, ("tench, Tinca tinca", "goldfish", "great white shark"), strict=True))),
    "lists.json": json.dumps(
        {"n01440764": ["tench"], "n01443537": ["x", "goldfish"], "n01484850": "great white shark"}
    ),
    "names.csv": "name,label\nn01440764,tench\nn01440764,Tinca\nn01443537,goldfish\nn01484850,great white shark\n",
    "outputs.csv": "name,label\nn01440764,1\nn01443537,2\nn01484850,0\n",
    "outputs.json": json.dumps({"n01440764": 1, "n01443537": 2, "n01484850": 0}),
    "index.json": json.dumps(
        {"1": ["n01440764", "tench"], "2": ["n01443537", "goldfish"], "0": ["n01484850", "shark"]}
    ),
}


@pytest.mark.parametrize("file", SAME)
@pytest.mark.parametrize("names", [PLAIN, BOTH])
def test_synset_folders_find_plain_names(tmp_path: Path, file: str, names: tuple[str, ...]) -> None:
    found = mapping(tmp_path, SAME[file], file)
    assert outputs(FOLDERS, names, found) == [1, 2, 0]
    assert outputs(FOLDERS[1:2], names, found) == [2]


@pytest.mark.parametrize("file", ["synsets.txt", "object.json", "lists.json"])
def test_plain_folders_find_synsets(tmp_path: Path, file: str) -> None:
    synsets = tuple(name.split("\t")[0] for name in BOTH)
    assert outputs(("goldfish", "tench"), synsets, mapping(tmp_path, SAME[file], file)) == [2, 1]


def test_the_order_of_lines_counts_only_where_the_model_has_no_names(tmp_path: Path) -> None:
    for found in (
        mapping(tmp_path, SYNSETS, "a.txt"),
        mapping(tmp_path, [["n01440764", "tench"], ["n01443537"], "n01484850"]),
    ):
        assert outputs(("n01484850", "tench"), None, found) == [2, 0]
        assert "class `n01484850`" in line(lambda found=found: outputs(("n01484850",), ("a", "b", "c"), found))  # type: ignore[misc]


def test_a_name_of_the_models_own_counts_first(tmp_path: Path) -> None:
    assert outputs(("tench",), PLAIN, mapping(tmp_path, {"tench": "goldfish"})) == [1]


def test_numbers_stand_for_themselves_unless_the_file_knows_them(tmp_path: Path) -> None:
    assert output_indices(("0", "2"), 3, PLAIN, "here", numbers=[0, 2]).tolist() == [0, 2]
    assert output_indices(("0", "2"), 3, None, "here", numbers=[0, 2]).tolist() == [0, 2]
    shifted = mapping(tmp_path, "name,label\n1,0\n2,1\n3,2\n", "shift.csv")
    assert outputs(("1", "3"), PLAIN, shifted, numbers=[1, 3]) == [0, 2]
    named = mapping(tmp_path, {"1": "tench", "2": "goldfish"})
    assert named.entry("1").stated  # type: ignore[union-attr]  # keys that are all numbers are outputs
    said = line(lambda: output_indices(("0", "3"), 3, None, "here", numbers=[0, 3]))
    assert said.startswith(
        "here: class `3` is output 3, but the model's 3 outputs are 0 to 2; the images' classes are 0, 3;"
    )


def test_what_is_ambiguous_is_refused(tmp_path: Path) -> None:
    cranes = "n02012849 crane\nn03126707 crane\nn00000001 bag\n"
    found = mapping(tmp_path, cranes, "a.txt")
    synsets = ("n02012849", "n03126707", "n00000001")
    assert outputs(synsets, synsets, found) == [0, 1, 2]
    assert "`crane` is a name of more than one class" in line(lambda: outputs(("crane",), synsets, found))
    assert "`n03126707`" in line(lambda: outputs(("n03126707",), ("crane", "crane", "bag"), found))
    two = mapping(tmp_path, {"fish": ["tench", "goldfish"]})
    assert "the names of `fish` lead to 2" in line(lambda: outputs(("fish",), PLAIN, two))
    one = mapping(tmp_path, {"a": "tench", "b": "tench"})
    assert "are one output (tench)" in line(lambda: outputs(("a", "b"), PLAIN, one))
    assert "are one output (1)" in line(lambda: outputs(("a", "b"), None, mapping(tmp_path, {"a": 1, "b": 1})))


def test_a_class_that_nothing_knows_is_named(tmp_path: Path) -> None:
    said = line(lambda: outputs(("n01440764", "star"), PLAIN, mapping(tmp_path, SYNSETS, "a.txt")))
    assert "class `star`" in said and "a.txt" in said
    assert "3 outputs are 0 to 2" in line(lambda: outputs(("a",), PLAIN, mapping(tmp_path, {"a": 3})))
    for names in (PLAIN, None):
        assert "map them with data.labels: FILE" in line(
            lambda n=names: output_indices(("tench", "star"), 3, n, "here")
        )  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", "{"), ("a.json", "3"), ("a.json", "{}"), ("a.json", "[]"), ("a.json", '{"a": null}'),
        ("a.json", '{"a": []}'), ("a.json", '{"a": [1]}'), ("a.json", '["a", 2]'), ("a.json", '{"a": 1.5}'),
        ("a.json", '{"a": true}'), ("a.json", '{"a": " "}'), ("a.json", "[" * 100_000),
        ("a.csv", ""), ("a.csv", "path,label\na,b\n"), ("a.csv", "name,label\na,\n"), ("a.csv", "name,label\na,1\na,2\n"),
        ("a.csv", "name,label\n" + "a" * 200_000 + ",b\n"), ("a.txt", ""), ("a.txt", " \n\n"),
    ],
)  # fmt: skip
def test_files_that_map_nothing(tmp_path: Path, name: str, content: str) -> None:
    assert f"data.labels {tmp_path / name}" in line(lambda: mapping(tmp_path, content, name))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "cannot be read" in line(lambda: Mapping(tmp_path / "none.txt"))
    assert "cannot be read" in line(lambda: Mapping(tmp_path))
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    assert "cannot be read" in line(lambda: Mapping(tmp_path / "a.txt"))
    with (tmp_path / "a.txt").open("wb") as handle:
        handle.truncate(17 << 20)
    assert "larger than 16 MiB" in line(lambda: Mapping(tmp_path / "a.txt"))


def test_the_fingerprint_follows_what_the_file_says(tmp_path: Path) -> None:
    first = mapping(tmp_path, {"a": "b"}).fingerprint()
    assert mapping(tmp_path, '{"a":\n"b"}').fingerprint() == first != mapping(tmp_path, {"a": "c"}).fingerprint()
