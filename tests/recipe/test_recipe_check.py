"""`vitprune recipe check`: one line, what is wrong or ok, without torch and in a moment; `--model` also builds the model."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file
from small import (
    ARGS,
    LABELS,
    change_json,
    image_folder,
    model_folder,
    recipe_dict,
    tiny_args,
    tiny_model,
    write_recipe,
)

from vitprune.cli import app
from vitprune.core.errors import UserError
from vitprune.model.load import build, folders, headers, opening, timm_names
from vitprune.recipe import check, inputs, model_files, parse, paths, recipe
from vitprune.runs.state import preflight

Made = dict[str, Any]
WITHOUT = ("torch", "timm", "torchvision", "onnx", "onnxruntime", "matplotlib", "scipy", "transformers")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder and images; tests that change them copy it."""
    base = tmp_path_factory.mktemp("made")
    model_folder(base / "model")
    image_folder(base / "images", 3)
    return base


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "place")
    return tmp_path / "place"


def content(place: Path, **changed: Any) -> Made:
    return recipe_dict(place / "model", place / "images", place / "out") | changed


def checked(made: Made, where: Path | None = None) -> model_files.Found:
    """The plain check of a recipe's content."""
    return check.check(parse.parse(yaml.safe_dump(made), "r.yaml"), [where] if where else [])


def refusal(work: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- speed, and what is imported


def apart(code: str, *args: object) -> tuple[dict[str, Any], float]:
    """What a process of its own prints as JSON, and its processor time."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    got = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, timeout=120, env=env
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert got.returncode == 0, got.stderr
    return json.loads(got.stdout.splitlines()[-1]), after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


COMMAND = """
import json, sys
sys.argv[0] = "vitprune"
from vitprune.cli import app
try:
    app.main()
except SystemExit as end:
    code = end.code
print(json.dumps({"code": code or 0, "imported": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


def test_the_recipe_module_imports_no_torch() -> None:
    found, _ = apart(
        "import json, sys, vitprune.recipe.recipe, vitprune.recipe.parse; print(json.dumps({'imported': sorted(sys.modules)}))"
    )
    assert not {*WITHOUT, "numpy"} & set(found["imported"])


def test_a_check_needs_no_torch_and_less_than_a_second(made: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(LABELS))
    data = {"path": str(made / "images"), "labels": str(labels)}
    path = write_recipe(
        tmp_path / "r.yaml", content(made, data=data, groups={"a": ["cross"], "b": ["circle", "square"]})
    )
    runs = [apart(COMMAND, "recipe", "check", path) for _ in range(3)]
    assert {run["code"] for run, _ in runs} == {0} and not set(WITHOUT) & set(runs[0][0]["imported"])
    assert min(seconds for _, seconds in runs) < 1.0


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_and_version_need_no_torch_and_no_time(flag: str) -> None:
    runs = [apart(COMMAND, flag) for _ in range(3)]
    assert runs[0][0]["code"] == 0 and not {*WITHOUT, "numpy", "pydantic"} & set(runs[0][0]["imported"])
    assert min(seconds for _, seconds in runs) < 0.4


def test_a_check_that_builds_a_large_model_takes_less_than_ten_seconds(made: Path, tmp_path: Path) -> None:
    args = {"num_classes": 3}
    path = write_recipe(tmp_path / "r.yaml", content(made, model={"name": "vit_giant_patch14_dinov2", "args": args}))
    _, seconds = apart(COMMAND, "recipe", "check", "--model", path)
    assert seconds < 10


# ---- what it says


def answer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["vitprune", "recipe", "check", *map(str, args)])
    with pytest.raises(SystemExit) as caught:
        app.main()
    return (int(caught.value.code or 0), *capsys.readouterr())


def test_one_line_or_the_whole_recipe(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(tmp_path / "r.yaml", content(made))
    line = f"ok: {path}: model of 3 outputs, all classes, jas, keep 50 %\n"
    assert answer(monkeypatch, capsys, path) == (0, line, "")
    assert answer(monkeypatch, capsys, path, "--model") == (0, line, "")
    code, out, err = answer(monkeypatch, capsys, path, "--show")
    assert (code, err) == (0, "") and parse.parse(out) == parse.load(path)
    assert json.loads(answer(monkeypatch, capsys, path, "--json")[1])["name"] == "tiny"
    path.write_text(path.read_text().replace("keep:", "kepe:"))
    code, out, err = answer(monkeypatch, capsys, path)
    assert (code, out) == (2, "") and "did you mean `keep`?" in err and err.count("\n") == 1


def test_defaults_that_become_others_are_told_with_the_model(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ARGS | {"num_classes": 3, "global_pool": "avg", "class_token": False}
    plain = {key: content(made)[key] for key in ("name", "data", "out")} | {"keep": "50%"}
    path = write_recipe(tmp_path / "r.yaml", plain | {"model": {"name": "vit_tiny_patch16_224", "args": args}})
    code, out, err = answer(monkeypatch, capsys, path)
    assert code == 0 and "--model builds the model" in out
    code, out, err = answer(monkeypatch, capsys, path, "--model", "--show")
    assert code == 0 and yaml.safe_load(out)["baselines"] == ["mean-activation", "random"]
    assert "note: baselines: `mean-activation` in the place of `activation`" in err


# ---- paths


def missing(place: Path) -> list[tuple[Made, str]]:
    data = {"path": str(place / "images")}
    named = {"name": "vit_tiny_patch16_224"}
    return [
        ({"model": {"name": "local-dir:none"}}, "model.name none: no such model folder"),
        ({"model": {"name": "transformers:none"}}, "model.name none: no such model folder"),
        ({"model": named | {"checkpoint": "none.pth"}}, "model.checkpoint none.pth: no such file"),
        ({"data": {"path": "none"}}, "data.path none: no such folder"),
        ({"data": {"path": "none.csv"}}, "data.path none.csv: no such file"),
        ({"data": {"probe": "none", "test": data["path"]}}, "data.probe none: no such folder"),
        ({"data": {"probe": data["path"], "test": "none.tar"}}, "data.test none.tar: no such file"),
        ({"data": data | {"labels": "none.txt"}}, "data.labels none.txt: no such file"),
    ]


def test_a_path_that_is_not_there_is_told_in_full(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for changed, said in missing(place):
        path = write_recipe(place / "r.yaml", content(place, **changed))
        name = said.split()[1].rstrip(":")
        code, out, err = answer(monkeypatch, capsys, path)
        assert (code, out) == (2, "") and said in err
        assert f"looked for {tmp_path / 'here' / name} and {place / name}\n" in err


def test_paths_are_looked_for_here_and_then_beside_the_recipe(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "labels.txt").write_text("\n".join(LABELS))
    save_file(tiny_model().state_dict(), place / "w.safetensors")
    changed = {"model": {"name": "local-dir:model"}, "data": {"path": "images", "labels": "labels.txt"}}
    path = write_recipe(place / "r.yaml", content(place, **changed))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    found = parse.load(path)
    assert found.model.name == f"local-dir:{place / 'model'}"
    assert (found.data.path, str(found.data.labels)) == (place / "images", str(place / "labels.txt"))
    assert found.out == place / "out"
    check.check(found, parse.beside(path))
    given = {"probe": "images", "test": "images"}
    named = {"name": "vit_tiny_patch16_224", "args": tiny_args(), "checkpoint": "w.safetensors"}
    other = parse.load(write_recipe(place / "r.yaml", content(place, data=given, model=named)))
    assert (other.data.probe, other.data.test) == (place / "images", place / "images")
    assert other.model.checkpoint == place / "w.safetensors"
    (tmp_path / "here" / "images").mkdir()  # the working folder comes first
    path = write_recipe(place / "r.yaml", content(place, **changed))
    assert parse.load(path).data.path == Path("images")
    monkeypatch.chdir(place)
    assert parse.load("r.yaml").model.name == "local-dir:model"


def test_a_run_refuses_a_missing_path_before_it_makes_anything(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(place / "r.yaml", content(place, data={"path": "none"}))
    for verb in ("run", "compare"):
        monkeypatch.setattr(sys, "argv", ["vitprune", verb, str(path)])
        with pytest.raises(SystemExit):
            app.main()
        assert f"and {place / 'none'}" in capsys.readouterr().err and not (place / "out").exists()


def test_words_and_names_are_no_paths() -> None:
    plain = {"name": "a", "data": {"dataset": "torch/cifar10", "path": "none"}}
    for model in ("transformers:ViTForImageClassification", "torchvision:vit_b_16", "hf-hub:a/b", "bundled", "vit_x"):
        made = recipe.Recipe.model_validate(plain | {"model": {"name": model}})
        assert [entry.key for entry in paths.named(made)] == []
    for name in ("x" * 5000, "a\0b"):
        made = recipe.Recipe.model_validate({"name": "a", "data": {"path": name}})
        assert "no such folder" in refusal(lambda made=made: paths.require(made))


# ---- the model's files


def header_of(path: Path, change: Callable[[dict[str, Any]], Any], tail: bytes | None = None) -> None:
    """The same file with another header."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header = change(header) or header
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + (raw[8 + length :] if tail is None else tail))


def entry(name: str, **changed: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda header: header[name].update(changed)


BROKEN: dict[str, Callable[[Path], Any]] = {
    "empty": lambda p: p.write_bytes(b""),
    "seven bytes": lambda p: p.write_bytes(b"\0" * 7),
    "cut": lambda p: p.write_bytes(p.read_bytes()[:-100]),
    "longer": lambda p: p.write_bytes(p.read_bytes() + b"\0"),
    "a length of exabytes": lambda p: p.write_bytes(b"\xff" * 8 + p.read_bytes()[8:]),
    "a length past the end": lambda p: p.write_bytes((1 << 40).to_bytes(8, "little") + p.read_bytes()[8:]),
    "no JSON": lambda p: p.write_bytes((4).to_bytes(8, "little") + b"nope"),
    "deep": lambda p: p.write_bytes((200_000).to_bytes(8, "little") + b"[" * 200_000),
    "a list": lambda p: p.write_bytes((2).to_bytes(8, "little") + b"[]"),
    "no entry": lambda p: header_of(p, lambda h: h | {"head.bias": 3}),
    "no type": lambda p: header_of(p, entry("head.bias", dtype="X7")),
    "a shape below zero": lambda p: header_of(p, entry("head.bias", shape=[-3])),
    "a huge shape": lambda p: header_of(p, entry("head.bias", shape=[1 << 60])),
    "a shape of text": lambda p: header_of(p, entry("head.bias", shape=["3"])),
    "bytes that overlap": lambda p: header_of(p, entry("head.bias", data_offsets=[0, 12])),
    "bytes elsewhere": lambda p: header_of(p, entry("head.bias", data_offsets=[1 << 40, (1 << 40) + 12])),
    "a torch file": lambda p: torch.save({"a": torch.zeros(1)}, p),
    "a folder": lambda p: (p.unlink(), p.mkdir()),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_header_that_is_not_sound(place: Path, name: str) -> None:
    BROKEN[name](place / "model" / "model.safetensors")
    line = refusal(lambda: checked(content(place)))
    assert "model.safetensors" in line


def test_the_header_is_what_safetensors_reads(place: Path) -> None:
    state = tiny_model().state_dict()
    state |= {"half": torch.zeros(3, 0).half(), "scalar": torch.tensor(1), "flag": torch.tensor([True])}
    save_file(state, place / "w.safetensors", {"format": "pt"})
    assert headers.shapes(place / "w.safetensors") == {key: tuple(value.shape) for key, value in state.items()}
    assert headers.shapes(model_files.BUNDLED / "model.safetensors") and model_files.BUNDLED == folders.BUNDLED


CONFIGS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "num_classes": (lambda c: c.update(num_classes=4), "num_classes is 3 by the shapes in it, config.json says 4"),
    "embed_dim": (lambda c: c["model_args"].update(embed_dim=32), "embed_dim is 16"),
    "depth": (lambda c: c["model_args"].update(depth=3), "depth is 2"),
    "in_chans": (lambda c: c["model_args"].update(in_chans=3), "in_chans is 1"),
    "patch_size": (lambda c: c["model_args"].update(patch_size=14), "patch_size is 7"),
    "widths": (lambda c: c.update(vitprune={"widths": [64, 63]}), "64, 64 hidden units, vitprune.widths says 64, 63"),
    "too few widths": (lambda c: c.update(vitprune={"widths": [64]}), "vitprune.widths says 64"),
    "architecture": (lambda c: c.update(architecture="vit_tny_patch16_224"), "did you mean `vit_tiny_patch16_224`?"),
    "no architecture": (lambda c: c.pop("architecture"), "not a timm configuration"),
    "args of text": (lambda c: c.update(model_args="none"), "not a timm configuration"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_that_does_not_describe_the_weights(place: Path, name: str) -> None:
    change, said = CONFIGS[name]
    change_json(place / "model" / "config.json", change)
    assert said in refusal(lambda: checked(content(place)))


@pytest.mark.parametrize(
    "change", [{"img_size": 56}, {"class_token": False, "global_pool": "avg"}, {"mlp_ratio": 2.0}], ids=str
)
def test_what_only_the_built_model_tells(place: Path, change: Made) -> None:
    change_json(place / "model" / "config.json", lambda c: c["model_args"].update(change))
    line = refusal(lambda: full(content(place)))
    assert "model.safetensors" in line and "config.json says" in line
    assert refusal(lambda: opening.open_model(inputs.Model(name=f"local-dir:{place / 'model'}"))) == line


def full(made: Made) -> tuple[recipe.Recipe, list[str]]:
    parsed = parse.parse(yaml.safe_dump(made), "r.yaml")
    return preflight.check(parsed, check.check(parsed))


def test_weights_of_a_named_model(place: Path) -> None:
    save_file(tiny_model().state_dict(), place / "w.safetensors")

    def made(**changed: Any) -> Made:
        args = tiny_args() | {"num_classes": 3} | changed
        model = {"name": "vit_tiny_patch16_224", "args": args, "checkpoint": str(place / "w.safetensors")}
        return content(place, model=model)

    full(made())
    assert "num_classes is 3 by the shapes in it, model.args says 5" in refusal(lambda: checked(made(num_classes=5)))
    assert "`blocks.0.mlp.fc1.bias` is (64,), the model's is (32,)" in refusal(lambda: full(made(mlp_ratio=2.0)))
    assert "model.args" in refusal(lambda: full(made(img_sise=28)))
    (place / "w.safetensors").write_bytes(b"no")
    assert "not a sound safetensors file" in refusal(lambda: checked(made()))


# ---- names


NAMES = {
    "eva2_tiny_patch14_224": "eva02_tiny_patch14_224", "vit_tiny_patch16-224": "vit_tiny_patch16_224",
    "ViT_Base_Patch16_224": "vit_base_patch16_224", "vit_base_p16_224": "vit_base_patch16_224",
    "deit_small": "deit_small_patch16_224", "swin_tiny": "swin_tiny_patch4_window7_224",
    "vit_bas_patch16_224.augreg_in21k": "vit_base_patch16_224", "torchvision:vit_b_61": "vit_b_16",
    "transformers:ViTForImageClasification": "",
    "transformers:VitForImageClassification": "ViTForImageClassification",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_misspelt_model_has_a_suggestion(place: Path, name: str) -> None:
    line = refusal(lambda: checked(content(place, model={"name": name})))
    assert f"did you mean `{NAMES[name]}" in line if NAMES[name] else "no such model folder" in line


def test_every_name_of_timm_is_known_without_importing_it() -> None:
    found = timm_names.names()
    assert set(timm.list_models()) <= found.every and found.ours <= set(timm.list_models())
    for module in timm_names.OURS:
        assert set(timm.list_models(module=module)) <= found.ours, module
    assert all(timm.is_model(name) for name in found.every)
    assert timm_names.refusal("vit_tiny_patch16_224.augreg_in21k") is None
    assert "see `vitprune models`" in str(timm_names.refusal("zzzzzz"))
    assert build.close_to("eva2_tiny_patch14_224")[0] == "eva02_tiny_patch14_224"
    assert set(model_files.TORCHVISION) == set(build.TORCHVISION)
    assert set(model_files.TRANSFORMERS) == set(build.TRANSFORMERS)


def test_without_timms_source_no_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm_names, "names", lambda: timm_names.Names(frozenset(), frozenset()))
    assert timm_names.refusal("anything") is None


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("criterion: {name: fisher_obs}", "fisher-obs"), ("criterion: {name: FisherObs}", "fisher-obs"),
        ("criterion: {name: mean activation}", "mean-activation"), ("baselines: [activations]", "activation"),
        ("compare: {criteria: [jas, tailor]}", "taylor"), ("recovery: layerwize", "layerwise"), ("recovery: no", "none"),
        ("allocation: globl", "global"), ("data: {path: a, on_corrupt: skp}", "skip"), ("krit: {}", "criterion"),
        ("export: {precisions: [fp32, fp_16]}", "fp16"), ("paper: {table: table1}", "table-1"),
    ],
)  # fmt: skip
def test_a_misspelt_value_or_key_has_a_suggestion(text: str, meant: str) -> None:
    line = refusal(lambda: parse.parse(f"name: a\n{text}\n", "r.yaml"))
    assert f"did you mean `{meant}`?" in line if meant != "criterion" else "unknown key" in line
    assert "literal[" not in line


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("classes: [yes, no]", 2, '"yes"'), ("classes:\n- cat\n- no", 4, '"no"'), ("classes: [On]", 2, '"On"'),
        ("classes: [OFF]", 2, '"OFF"'), ("classes: [~]", 2, '"~"'), ("classes: [null]", 2, '"null"'),
        ("classes: [1, 2]", 2, '"1"'), ("classes: [a, 0x1F]", 2, '"0x1F"'), ("classes: [1.0]", 2, '"1.0"'),
        ("classes: [007]", 2, '"007"'), ("classes: [1_000]", 2, '"1_000"'), ("classes: [12:30]", 2, '"12:30"'),
        ("classes: [2024-01-01]", 2, '"2024-01-01"'), ("classes: [.inf]", 2, '".inf"'), ("classes: no", 2, '["no"]'),
        ("groups: {a: [yes]}", 2, '"yes"'), ("groups: {no: [cat], yes: [dog]}", 2, '"no"'), ("groups: {1: [cat]}", 2, '"1"'),
        ("groups:\n  a: [cat]\n  ~: [dog]", 4, '"~"'), ("paper: {classes: [on]}", 2, '"on"'), ("classes:\n-\n- b", 3, "empty"),
        ("model: {name: 3}", 2, '"3"'),
    ],
)  # fmt: skip
def test_what_yaml_reads_as_something_else_gets_a_word_about_quotes(text: str, line: int, word: str) -> None:
    said = refusal(lambda: parse.parse(f"name: a\n{text}\n", "r.yaml"))
    assert said.startswith(f"r.yaml, line {line}: ") and word in said
    assert "YAML reads" in said and "quotes" in said if word != "empty" else "it is empty" in said


def test_names_in_quotes_are_names() -> None:
    made = parse.parse("name: a\nclasses: ['no', \"yes\", '1', '~']\n")
    assert made.classes == ["no", "yes", "1", "~"] and parse.parse(parse.dump(made)) == made


# ---- classes


def renamed(place: Path) -> None:
    (place / "images" / "cross").rename(place / "images" / "star")


CLASSES: dict[str, tuple[Made, Callable[[Path], Any] | None, str]] = {
    "no such class": (
        {"classes": ["crss"]},
        None,
        "classes: `crss` is not a class of these images; did you mean `cross`?",
    ),
    "no such class at all": ({"classes": ["unicorn"]}, None, "they are circle, cross, square"),
    "in a group": ({"groups": {"a": ["cross"], "b": ["sqare"]}}, None, "groups.b: `sqare` is not a class"),
    "a folder that is no label": ({}, renamed, "star"),
    "an empty class": ({}, lambda p: (p / "images" / "none").mkdir(), "none"),
    "more groups than classes": ({"groups": {"auto": 4}}, None, "4 groups of 3 classes"),
    "groups and auto": ({"groups": {"a": ["cross"]}, "criterion": {"name": "auto"}}, None, "one class set"),
    "auto groups and auto": ({"groups": {"auto": 2}, "criterion": {"name": "auto"}}, None, "one class set"),
    "groups and compare": ({"groups": {"a": ["cross"]}, "compare": {}}, None, "compare: one class set"),
    "two groups of the same": ({"groups": {"a": ["cross"], "b": ["cross"]}}, None, "name the same classes"),
    "auto among one": ({"compare": {"criteria": ["jas", "auto"]}}, None, "two of them at least"),
    "more units than there are": ({"keep": "65 units"}, None, "keep: 65 units per block, but a block has only 64"),
    "none left": ({"keep": "1%"}, None, "keep: 1 % of 64 hidden units leaves none"),
    "compare's too": ({"compare": {"keep": [0.5, 400]}}, None, "compare.keep: 400 units"),
    "t": ({"criterion": {"t": 65}}, None, "a block has 64"),
    "the protocol's t": ({"paper_protocol": {"t": [1, 80]}}, None, "t: 80 units"),
    "table 2 alone": ({"paper": {"table": "table-2"}}, None, "paper_protocol"),
}


@pytest.mark.parametrize("name", CLASSES)
def test_what_a_recipe_asks_of_its_images_and_model(place: Path, name: str) -> None:
    changed, prepare, said = CLASSES[name]
    if prepare:
        prepare(place)
    assert said in refusal(lambda: checked(content(place, **changed)))


def test_names_go_through_a_mapping_file(place: Path) -> None:
    renamed(place)
    (place / "labels.json").write_text(json.dumps({"star": "cross"}))
    data = {"path": str(place / "images"), "labels": str(place / "labels.json")}
    full(content(place, data=data, classes=["star"]))
    full(content(place, data=data, classes=["cross"]))
    (place / "labels.json").write_text("{")
    assert "labels.json" in refusal(lambda: checked(content(place, data=data)))


@pytest.mark.parametrize("kind", ["folder", "csv", "tar"])
def test_many_images_are_not_opened_one_by_one(place: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "MANY_FILES", 2)
    monkeypatch.setattr(check, "MANY_BYTES", {})
    (place / "images" / ".hidden").mkdir()
    (place / "images" / "__MACOSX").mkdir()
    path = place / "images"
    if kind != "folder":
        path = place / f"images.{kind}"
        path.write_text("path,label\n")
    data = {"path": str(path)}
    found = checked(content(place, data=data))
    assert found.unseen == (["the image files"] if kind == "folder" else ["the images' classes"])
    full(content(place, data=data))
    if kind == "folder":
        assert "is not a class" in refusal(lambda: checked(content(place, data=data, classes=["unicorn"])))
        assert "is not a class" in refusal(lambda: full(content(place, data=data, classes=["unicorn"])))


def test_criteria_that_a_family_does_not_allow_are_refused_with_the_model(place: Path) -> None:
    args = ARGS | {"num_classes": 3, "global_pool": "avg", "class_token": False}
    model = {"name": "vit_tiny_patch16_224", "args": args}
    for changed in ({"baselines": ["activation"]}, {"criterion": {"name": "influence-gradient", "t": 3}}):
        plain = {key: value for key, value in content(place).items() if key not in ("baselines", "criterion")}
        line = refusal(lambda changed=changed, plain=plain: full(plain | {"model": model} | changed))
        assert "scores the class token" in line
    line = refusal(lambda: full(content(place, model={"name": "resnet18", "args": {"num_classes": 3}})))
    assert "ResNet is not supported" in line
