"""A run replaces and removes what vitprune made, and nothing else: neither files, nor folders, nor its own recipe."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from records import made_record
from small import contents, image_folder, leftovers, model_folder, recipe_dict, tiny_model, write_recipe
from typer.testing import CliRunner

import vitprune
from vitprune.cli.app import app
from vitprune.core import claims, files, ledger, reading
from vitprune.core.errors import UserError
from vitprune.deploy.onnx import exporting
from vitprune.model.load import opening, saving
from vitprune.recipe import inputs, parse, recipe
from vitprune.report import compare_reports, write_report
from vitprune.runs import compare, pipeline
from vitprune.runs.state.workspace import Workspace

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def setting(tmp_path: Path) -> dict[str, Any]:
    model, images = model_folder(tmp_path / "model"), image_folder(tmp_path / "images", 5)
    return recipe_dict(model, images, tmp_path / "out", baselines=[])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A recipe and the folder of its finished run."""
    place = tmp_path_factory.mktemp("finished")
    content = recipe_dict(model_folder(place / "m"), image_folder(place / "i", 5), place / "out", baselines=[])
    run(content)
    return content, place / "out"


def run(content: dict[str, Any], verb: str = "run") -> dict[str, Any]:
    return pipeline.run(recipe.Recipe.model_validate(content), verb)


def refusal(content: dict[str, Any], verb: str = "run") -> str:
    with pytest.raises(UserError) as caught:
        run(content, verb)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def older(root: Path) -> None:
    """As a version without lists left it."""
    for path in root.rglob(ledger.NAME):
        path.unlink()


# ---- a folder that was there before


THEIRS = {
    "a page": {"README.md": "mine"},
    "a model": {"config.json": "{}", "model.safetensors": "mine"},
    "a recipe": {"recipe.yaml": "name: tiny"},
    "a hidden file": {".gitignore": "*"},
    "a temporary file": {".x.tmp": "mine"},
    "a folder": {"deep/er/notes.txt": "mine"},
    "a lock": {".lock": "", "README.md": "mine"},
    "stages of another tool": {"stages/train/stage.json": "{}", ".lock": ""},
    "a record that is not ours": {"stages/split/stage.json": '{"inputs": "", "files": {}}', "README.md": "mine"},
    "a list of another tool": {".vitprune": "mine", "README.md": "mine"},
}


@pytest.mark.parametrize("theirs", THEIRS)
@pytest.mark.parametrize("verb", ["discover", "run"])
def test_a_folder_that_vitprune_did_not_make_is_refused(
    setting: dict[str, Any], tmp_path: Path, theirs: str, verb: str
) -> None:
    root = tmp_path / "out" / "tiny"
    for name, text in THEIRS[theirs].items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    before = contents(root)
    assert "holds files that vitprune did not make" in refusal(setting, verb)
    assert contents(root) == before and sorted(root.rglob("*")) == sorted({*root.rglob("*")})


@pytest.mark.parametrize("theirs", [[], [".lock"], [".DS_Store"], ["Thumbs.db", "desktop.ini"]])
def test_a_new_or_empty_folder_is_taken(setting: dict[str, Any], tmp_path: Path, theirs: list[str]) -> None:
    root = tmp_path / "out" / "tiny"
    root.mkdir(parents=True)
    for name in theirs:
        (root / name).write_text("")
    run(setting, "discover")
    assert ledger.Ledger(root).exists() and all((root / name).exists() for name in theirs)


def test_a_folder_behind_a_link_is_looked_into(setting: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "README.md").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tiny").symlink_to(tmp_path / "precious")
    assert "did not make" in refusal(setting, "discover")


def test_compare_and_paper_refuse_it_too(setting: dict[str, Any], tmp_path: Path) -> None:
    root = tmp_path / "out" / "tiny"
    root.mkdir(parents=True)
    (root / "compare.md").write_text("mine")
    spec = {"criteria": ["jas", "random"], "keep": [0.5], "recovery": ["none"], "seeds": [0]}
    made = recipe.Recipe.model_validate(setting | {"compare": spec})
    with pytest.raises(UserError, match="did not make"):
        compare.compare(made)
    path = write_recipe(tmp_path / "r.yaml", setting | {"paper": {"table": "figure-4", "classes": ["circle"]}})
    found = CliRunner().invoke(app, ["paper", str(path)])
    assert isinstance(found.exception, UserError) and "did not make" in str(found.exception)
    assert contents(root) == {"compare.md": b"mine"}


# ---- a file of the user's in a folder of ours


def test_a_finished_run_leaves_other_peoples_files_alone(finished: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    content, out = finished
    root = Path(shutil.copytree(out, tmp_path / "out")) / "tiny"
    mine = ["notes.md", ".notes.tmp", "stages/prune/mine.txt", "stages/discover/parts/mine.bin", "report-data/a.png"]
    mine += ["compare.md", ".model.safetensors.abcdefgh.tmp"]
    for name in mine[:-2]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("mine")
    content = content | {"out": str(tmp_path / "out"), "keep": 0.25}
    content["criterion"] = content["criterion"] | {"t": 2}
    pipeline.run(recipe.Recipe.model_validate(content), force=True)
    assert all((root / name).read_text() == "mine" for name in mine[:-2])
    for name in mine[-2:-1]:  # where another verb would write
        (root / name).write_text("mine")
        assert f"{name}: was not made by vitprune" in refusal(content)
        assert (root / name).read_text() == "mine"
        (root / name).unlink()
    assert run(content)["complete"]


@pytest.mark.parametrize("name", ["README.md", "recipe.yaml"])
@pytest.mark.parametrize("verb", ["discover", "run"])
def test_what_somebody_wrote_on_is_theirs(
    finished: tuple[dict[str, Any], Path], tmp_path: Path, name: str, verb: str
) -> None:
    content, out = finished
    path = Path(shutil.copytree(out, tmp_path / "out")) / "tiny" / name
    path.write_text(path.read_text() + "# mine\n")
    content = content | {"out": str(tmp_path / "out"), "keep": 0.25}
    before = contents(tmp_path / "out")
    assert f"{name}: was changed since vitprune wrote it" in refusal(content, verb)
    assert contents(tmp_path / "out") == before
    path.unlink()
    assert run(content)["complete"]


def test_a_damaged_result_is_still_made_again(finished: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    content, out = finished
    root = Path(shutil.copytree(out, tmp_path / "out")) / "tiny"
    whole = (root / "masks.safetensors").read_bytes()
    (root / "masks.safetensors").write_bytes(b"x" + whole[1:])
    run(content | {"out": str(tmp_path / "out")})
    assert (root / "masks.safetensors").read_bytes() == whole


def test_a_group_of_the_name_of_somebodys_folder(setting: dict[str, Any], tmp_path: Path) -> None:
    run(setting, "prune")
    theirs = tmp_path / "out" / "tiny" / "red"
    theirs.mkdir()
    (theirs / "config.json").write_text("mine")
    said = refusal(setting | {"groups": {"red": ["circle"], "blue": ["cross"]}}, "prune")
    assert "red/config.json: was not made by vitprune" in said
    assert (theirs / "config.json").read_text() == "mine"


# ---- the recipe


def test_the_recipe_that_is_run_stays_as_it_is(finished: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    """Written on, run from the very folder it is for, and with another --out: not a byte of it changes."""
    _, out = finished
    root = Path(shutil.copytree(out, out.parent / "beside")) / "tiny"
    path = root / "recipe.yaml"
    path.write_text("# half of it\n" + path.read_text().replace("keep: 0.5", "keep: 0.25"))
    before = path.read_bytes()
    for where in (str(root.parent), os.path.relpath(root.parent), str(tmp_path / "x" / ".." / root.parent)):
        (tmp_path / "x").mkdir(exist_ok=True)
        found = CliRunner().invoke(app, ["prune", str(path), "--out", where])
        assert found.exit_code == 0, found.exception
        assert path.read_bytes() == before
    assert json.loads((root / "config.json").read_text())["vitprune"]["keep"] == 0.25
    content = yaml.safe_load(before) | {"out": str(root.parent), "keep": 0.75}
    assert "recipe.yaml: was changed" in refusal(content, "prune")


def test_the_recipe_of_a_group_stays_too(
    setting: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the recipe in a run's folder says `out` from the working folder
    setting |= {"groups": {"red": ["circle"], "blue": ["cross"]}}
    run(setting, "prune")
    path = tmp_path / "out" / "tiny" / "red" / "recipe.yaml"
    path.write_text(path.read_text().replace("keep: 0.5", "keep: 0.25  # mine"))
    before = path.read_bytes()
    pipeline.run(parse.load(path), "prune")
    assert path.read_bytes() == before
    assert "red/recipe.yaml: was changed" in refusal(setting, "prune")


def test_recipes_are_equal_wherever_they_lie(tmp_path: Path, setting: dict[str, Any]) -> None:
    a, b = (parse.load(write_recipe(tmp_path / name, setting)) for name in ("a.yaml", "b.yaml"))
    assert a == b == recipe.Recipe.model_validate(setting) and a.file != b.file and a.fingerprint() == b.fingerprint()
    assert a.model_copy(update={"out": Path("x")}).file == a.file


def test_a_model_in_the_folder_of_its_own_run(finished: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    content, out = finished
    root = Path(shutil.copytree(out, tmp_path / "out")) / "tiny"
    content = content | {"out": str(tmp_path / "out")}
    before = contents(root)
    for model in (
        {"name": f"local-dir:{root}"},
        {"name": "vit_tiny_patch16_224", "checkpoint": str(root / "model.safetensors")},
    ):
        assert "lies in the run's own folder" in refusal(content | {"model": model})
    assert contents(root) == before


# ---- folders from before there were lists


def test_a_folder_of_an_older_version_is_continued(finished: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    content, out = finished
    root = Path(shutil.copytree(out, tmp_path / "out")) / "tiny"
    older(root)
    (root / ".model.safetensors.abcd1234.tmp").write_text("half")
    (root / ".mine.abcd1234.tmp").write_text("mine")
    (root / "notes.md").write_text("mine")
    content = content | {"out": str(tmp_path / "out")}
    assert [stage["name"] for stage in run(content)["stages"] if not stage["skipped"]] == []
    assert leftovers(root) == [".mine.abcd1234.tmp"] and (root / "notes.md").read_text() == "mine"
    assert run(content | {"keep": 0.25})["complete"]


@pytest.mark.parametrize("killed", ["split", "discover", "prune", "evaluate"])
def test_so_is_one_that_was_killed(finished: tuple[dict[str, Any], Path], tmp_path: Path, killed: str) -> None:
    """Its stage, and those behind it, had no record yet."""
    content, out = finished
    root = Path(shutil.copytree(out, tmp_path / "out")) / "tiny"
    older(root)
    stages = ["split", "discover", "moments", "prune", "evaluate", "export"]
    for stage in stages[stages.index(killed) :]:
        (root / "stages" / stage / "stage.json").unlink(missing_ok=True)
    if killed == "split":
        for path in [p for p in root.iterdir() if p.name not in (".lock", "recipe.yaml", "stages")]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert run(content | {"out": str(tmp_path / "out")})["complete"]


def test_a_card_that_somebody_put_into_an_old_folder(finished: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    content, out = finished
    root = Path(shutil.copytree(out, tmp_path / "out")) / "tiny"
    older(root)
    (root / "README.md").write_text("# My model\n")
    assert "README.md: was not made by vitprune" in refusal(content | {"out": str(tmp_path / "out")})
    assert (root / "README.md").read_text() == "# My model\n"


def test_an_old_comparison_is_continued(setting: dict[str, Any], tmp_path: Path) -> None:
    spec = {"criteria": ["variance", "random"], "keep": [0.5], "recovery": ["none"], "seeds": [0]}
    made = recipe.Recipe.model_validate(setting | {"compare": spec})
    compare.compare(made)
    older(tmp_path / "out")
    compare.compare(made)
    (tmp_path / "out" / "tiny" / "compare.svg").unlink()
    (tmp_path / "out" / "tiny" / "compare.svg").symlink_to(tmp_path / "images")
    before = contents(tmp_path / "images")
    compare.compare(made)
    assert (tmp_path / "out" / "tiny" / "compare.svg").is_file() and contents(tmp_path / "images") == before


# ---- the list itself


def test_half_a_line_and_nonsense_in_the_list_spoil_nothing(tmp_path: Path) -> None:
    made = ledger.Ledger(tmp_path)
    made.create()
    with made.path.open("a") as handle:
        handle.write('["../outside"]\n["a"]\n{"b": 1}\n[1]\n["c", ')
    made.add(tmp_path / "d" / "e")
    assert set(made.read()) == {"../outside", "a", "d/e"}
    for name in ("a", "b"):
        (tmp_path / name).write_text("x")
    (tmp_path.parent / "outside").write_text("mine")
    assert made.files(tmp_path) == {tmp_path / "a"}
    Workspace(tmp_path).clear(tmp_path, set())
    assert (tmp_path / "b").exists() and not (tmp_path / "a").exists() and (tmp_path.parent / "outside").exists()


def test_a_link_leads_no_removal_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "a.json").write_text("mine")
    root = tmp_path / "run"
    root.mkdir()
    made = ledger.Ledger(root)
    made.create()
    files.write_json(root / "stages" / "split" / "a.json", 1)
    shutil.rmtree(root / "stages" / "split")
    (root / "stages" / "split").symlink_to(tmp_path / "precious")
    Workspace(root).begin("split")
    assert (tmp_path / "precious" / "a.json").read_text() == "mine"


def test_the_list_does_not_grow_without_end(tmp_path: Path) -> None:
    made = ledger.Ledger(tmp_path)
    made.create()
    for i in range(300):
        files.write_text(tmp_path / f"{i}", "x")
        (tmp_path / f"{i}").unlink()
    files.write_text(tmp_path / "README.md", "x")
    made.tidy()
    assert list(made.read()) == ["README.md"] and made.read()["README.md"] == reading.sha256(tmp_path / "README.md")
    assert made.exists() and leftovers(tmp_path) == []


def test_temporary_files_of_a_run_inside_are_not_this_ones(tmp_path: Path) -> None:
    """`run` and a running `compare` share a folder."""
    inner = tmp_path / "compare" / "seed-0"
    inner.mkdir(parents=True)
    ledger.Ledger(tmp_path).create()
    ledger.Ledger(inner).create()
    for place in (tmp_path, inner):
        (place / f".model.onnx.abc{ledger.TEMPORARY}").write_text("half")
        (place / f".work.abc{ledger.TEMPORARY}").mkdir()
        (place / f".work.abc{ledger.TEMPORARY}" / "big").write_text("half")
    with Workspace(tmp_path).locked():
        assert leftovers(tmp_path) == [p.relative_to(tmp_path).as_posix() for p in sorted(inner.glob(".*.tmp"))]


# ---- what is written without a run


def test_the_library_exports_over_its_own_file_only(tmp_path: Path) -> None:
    model, path = tiny_model(), tmp_path / "x.onnx"
    vitprune.export(model, path)
    vitprune.export(model, path, {"again": "yes"})
    assert exporting.metadata(path) == {"again": "yes"}
    for theirs in (b"mine", torch.zeros(3).numpy().tobytes(), b"", b"\x08\x0a\x12\x07pytorch"):
        path.write_bytes(theirs)
        with pytest.raises(UserError, match="was not made by vitprune"):
            vitprune.export(model, path)
        assert path.read_bytes() == theirs


def test_a_comparison_replaces_its_own_pages_only(tmp_path: Path) -> None:
    runs = [(Path("a"), made_record()), (Path("b"), made_record())]
    for _ in range(2):
        paths = compare_reports(runs, tmp_path)
    for path in paths:
        whole = path.read_text()
        path.write_text("# Notes on vitprune comparison\n")
        with pytest.raises(UserError, match="was not made by vitprune"):
            compare_reports(runs, tmp_path)
        assert path.read_text() == "# Notes on vitprune comparison\n"
        path.write_text(whole)


@pytest.mark.parametrize("name", ["report.json", "report.md", "report.html"])
def test_a_report_replaces_its_own_pages_only(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"tests": 12}')
    with pytest.raises(UserError, match="was not made by vitprune"):
        write_report(made_record(), tmp_path)
    assert contents(tmp_path) == {name: b'{"tests": 12}'}
    (tmp_path / name).unlink()
    for _ in range(2):
        write_report(made_record(), tmp_path)


def test_a_checkpoint_replaces_its_own_files_only(tmp_path: Path) -> None:
    loaded = opening.open_model(inputs.Model(name=f"local-dir:{model_folder(tmp_path / 'm')}"))
    before = contents(tmp_path / "m")
    with pytest.raises(UserError, match="was not made by vitprune"):
        saving.save(tmp_path / "m", loaded, loaded.model, {})
    assert contents(tmp_path / "m") == before
    for _ in range(2):
        saving.save(tmp_path / "own", loaded, loaded.model, {})


# ---- where results may go


@pytest.mark.parametrize(
    "out", ["/etc/x", "/usr/local/share/x", "/var/lib/x", "/opt/x/y", "/x", "/", "/proc/x", "/srv/x"]
)
def test_a_folder_of_the_systems_is_refused(setting: dict[str, Any], out: str) -> None:
    setting["out"] = out
    assert "lies among the system's folders" in refusal(setting, "discover")
    assert not (Path(out) / "tiny").exists() and (out in ("/", "/proc/x") or not Path(out).exists())


def test_what_is_the_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder counts as the system's by its place; home, working folder and temporary ones do not, wherever they are."""
    theirs, monkey = tmp_path / "system", monkeypatch
    theirs.mkdir()
    (theirs / "file").write_text("mine")
    monkey.setattr(claims, "SYSTEM", {tmp_path.parts[1]})
    monkey.setattr(claims, "TEMPORARY_FOLDERS", ())
    for key in ("TMPDIR", "TEMP", "TMP", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME"):
        monkey.delenv(key, raising=False)
    monkey.setattr(claims.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    monkey.setenv("HOME", str(tmp_path / "home"))
    monkey.chdir("/")

    def refused(out: Path) -> bool:
        try:
            claims.claim(out / "tiny")
        except UserError as error:
            return "lies among the system's folders" in str(error)
        return False

    assert refused(theirs) and refused(theirs / "new" / "er")
    for name in ("home/a", "temporary/a"):
        assert not refused(tmp_path / name)
    (tmp_path / "made").mkdir()
    for name in ("empty", "empty"):  # made for this; then it holds what vitprune made
        (tmp_path / "made" / name).mkdir(exist_ok=True)
        assert not refused(tmp_path / "made" / name)
    claims.claim(tmp_path / "made" / "empty" / "second")
    (tmp_path / "made" / "link").symlink_to(theirs)
    (tmp_path / "home" / "link").symlink_to(theirs)
    assert refused(tmp_path / "made" / "link") and refused(tmp_path / "home" / "link")
    monkey.chdir(theirs)
    assert not refused(Path("exported"))


def test_the_systems_folder_from_the_command_line(setting: dict[str, Any], tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "r.yaml", setting)
    for out in ("/etc", "/usr/vitprune-test"):
        found = CliRunner().invoke(app, ["discover", str(path), "--out", out])
        assert isinstance(found.exception, UserError) and "system's folders" in str(found.exception)
    assert yaml.safe_load(path.read_text())["out"] == str(tmp_path / "out")
