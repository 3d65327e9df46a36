"""A full disk, a stop half-way, a folder that may not be written: one line, nothing half-written, the same command goes on."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from small import contents, image_folder, leftovers, model_folder, recipe_dict, write_recipe

from vitprune.core import files, reading
from vitprune.core.errors import UserError
from vitprune.core.ledger import TEMPORARY
from vitprune.recipe import recipe
from vitprune.runs import pipeline
from vitprune.runs.stages import image_scores
from vitprune.runs.state.batching import Batching

FULL = OSError(errno.ENOSPC, "No space left on device")


pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def setting(tmp_path: Path) -> dict[str, Any]:
    return recipe_dict(
        model_folder(tmp_path / "model"), image_folder(tmp_path / "images"), tmp_path / "out", baselines=["random"]
    )


def run(content: dict[str, Any], verb: str = "run") -> dict[str, Any]:
    return pipeline.run(recipe.Recipe.model_validate(content), verb)


def refusal(content: dict[str, Any], verb: str = "run") -> str:
    with pytest.raises(UserError) as caught:
        run(content, verb)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# ---- one file at a time


@pytest.mark.parametrize("failure", [FULL, KeyboardInterrupt(), RuntimeError("x")], ids=["disk", "stop", "bug"])
def test_replacing_is_all_or_nothing(tmp_path: Path, failure: BaseException) -> None:
    path = tmp_path / "deep" / "file"
    with files.replacing(path) as temporary:
        temporary.write_text("old")
    assert path.read_text() == "old" and contents(tmp_path) == {"deep/file": b"old"}
    expected = UserError if failure is FULL else type(failure)

    def fail() -> None:
        with files.replacing(path) as temporary:
            temporary.write_text("ne")
            raise failure

    with pytest.raises(expected):
        fail()
    assert contents(tmp_path) == {"deep/file": b"old"}


def test_a_file_is_never_seen_half_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with files.replacing(path) as temporary:
        temporary.write_text("half")
        assert not path.exists() and temporary.parent == path.parent
    assert path.read_text() == "half"


def test_written_files_have_the_usual_rights(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    files.write_text(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_json_that_is_none_is_not_written(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"ä": 1})
    assert reading.read_json(tmp_path / "a.json") == {"ä": 1}
    with pytest.raises(ValueError, match="Out of range"):
        files.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert reading.read_json(tmp_path / "a.json") == {"ä": 1} and leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "disk is full"),
        (errno.EACCES, "may not be written"),
        (errno.EROFS, "may not be written"),
        (errno.ENOTDIR, "a file stands where a folder is needed"),
    ],
)
def test_what_the_system_says_is_explained(tmp_path: Path, number: int, said: str) -> None:
    assert said in str(files.explain(OSError(number, "x"), tmp_path / "f"))
    other = OSError(errno.EIO, "x")
    assert files.explain(other, tmp_path) is other


def test_equal_values_have_equal_digests() -> None:
    assert (
        reading.digest({"a": 1, "b": [2]}) == reading.digest({"b": [2], "a": 1}) != reading.digest({"a": 1, "b": [3]})
    )
    assert reading.digest(1) != reading.digest(1.0) != reading.digest("1.0")


# ---- the disk is full


def mounted(path: Path, size: str) -> None:
    path.mkdir()
    if not shutil.which("mount") or os.geteuid() != 0:
        pytest.skip("a small disk can be mounted by root only")
    got = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True, text=True)
    if got.returncode:
        pytest.skip(f"mount does not work here: {got.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A real disk of a few kilobytes."""
    path = tmp_path / "disk"
    mounted(path, getattr(request, "param", "40k"))
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def enlarge(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)


@pytest.mark.parametrize("disk", ["8k", "24k", "48k", "96k", "128k"], indirect=True)
@pytest.mark.sample(2)
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(setting: dict[str, Any], disk: Path) -> None:
    setting["out"] = str(disk / "out")
    assert "the disk is full" in refusal(setting)
    assert leftovers(disk) == []
    for path in disk.rglob("*.json"):
        assert reading.read_json(path) is not None
    enlarge(disk)
    assert run(setting)["complete"]


def test_a_disk_without_room_for_the_folder(setting: dict[str, Any], disk: Path) -> None:
    (disk / "filler").write_bytes(bytes(40 * 1024))
    setting["out"] = str(disk / "out")
    assert "the disk is full" in refusal(setting)


def test_a_disk_that_may_not_be_written(setting: dict[str, Any], disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    setting["out"] = str(disk / "out")
    assert "may not be written; choose another folder with --out" in refusal(setting)


@pytest.mark.parametrize("at", range(1, 16))
@pytest.mark.sample(4)
def test_the_disk_fills_at_any_file(
    setting: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Every write of a run in turn meets a full disk."""
    setting["baselines"] = []
    count, replace = [0], os.replace

    def full(source: Any, target: Any) -> None:
        count[0] += 1
        if count[0] == at:
            raise FULL
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        assert "the disk is full" in refusal(setting, "evaluate")
    assert leftovers(tmp_path / "out") == []
    made = run(setting, "evaluate")
    assert made["result"]["n"] == 6
    assert len([s for s in made["stages"] if s["skipped"]]) < 5


def test_the_disk_fills_while_the_onnx_file_is_written(
    setting: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting |= {"export": {"onnx": True, "latency_batches": [1]}, "keep": 1.0}

    def full(_: Any, name: str, *__: Any, **___: Any) -> None:
        Path(name).write_bytes(b"half")
        raise FULL

    with monkeypatch.context() as patch:
        patch.setattr(onnx, "save", full)
        assert "the disk is full" in refusal(setting, "export")
    assert leftovers(tmp_path / "out") == [] and not (tmp_path / "out" / "tiny" / "model.onnx").exists()
    assert [s["name"] for s in run(setting, "export")["stages"] if not s["skipped"]] == ["export"]


# ---- stopped from outside

DRIVER = """
import dataclasses, os, time
from vitprune.cli import app
from vitprune.criteria.catalog import CRITERIA
from vitprune.runs.stages import image_scores
from vitprune.runs.state.batching import Batching
image_scores.SHARD, Batching.images_per_batch = 4, lambda *_: 2
row = CRITERIA["jas"]
def score(*args, **options):
    time.sleep(float(os.environ["PAUSE"]))
    return row.score(*args, **options)
CRITERIA["jas"] = dataclasses.replace(row, score=score)
app.main()
"""


def start(path: Path, pause: float) -> subprocess.Popen[str]:
    env = os.environ | {"OMP_NUM_THREADS": "1", "PAUSE": str(pause)}
    command = [sys.executable, "-c", DRIVER, "discover", str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def result(out: Path) -> list[Path]:
    """What discovery ends with."""
    return sorted(out.glob("tiny/stages/discover/jas-t3-*.safetensors"))


def shards_of(out: Path, process: subprocess.Popen[str]) -> list[Path]:
    end = time.monotonic() + 200
    while time.monotonic() < end:
        found = sorted(out.rglob("parts/jas*/*.safetensors"))
        if found:
            return found
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    raise AssertionError("no shard was written")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.sample(1)
def test_a_stop_half_way_then_the_same_command(
    setting: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    process = start(write_recipe(tmp_path / "r.yaml", setting), 1.5)  # long enough for a busy machine
    made_before = shards_of(tmp_path / "out", process)
    process.send_signal(how)
    out, err = process.communicate(timeout=200)
    before = {p: p.stat().st_mtime_ns for p in made_before}
    assert process.returncode == (130 if how == signal.SIGINT else -how)
    assert not result(tmp_path / "out")
    monkeypatch.setattr(image_scores, "SHARD", 4)
    monkeypatch.setattr(Batching, "images_per_batch", lambda *_: 2)
    run(setting, "discover")
    assert {p: p.stat().st_mtime_ns for p in made_before} == before, "a finished shard was computed again"
    run(setting | {"out": str(tmp_path / "whole")}, "discover")
    (made,), (whole,) = result(tmp_path / "out"), result(tmp_path / "whole")
    assert made.name == whole.name and made.read_bytes() == whole.read_bytes()
    assert leftovers(tmp_path / "out") == []
    if how == signal.SIGINT:
        assert "Traceback" not in err and "Aborted" not in err and out == ""
        assert err.splitlines()[-1] == "vitprune: stopped; the same command continues where it was"


def test_what_a_killed_run_left_behind_is_cleared(setting: dict[str, Any], tmp_path: Path) -> None:
    """A process that is killed cannot remove its temporary files; the next run does."""
    run(setting, "prune")
    root = tmp_path / "out" / "tiny"
    for folder in (root, root / "stages" / "prune"):
        (folder / f".model.safetensors.abcd{TEMPORARY}").write_bytes(b"half")
        (folder / f".work.abcd{TEMPORARY}").mkdir()
        (folder / f".work.abcd{TEMPORARY}" / "streams").write_bytes(b"half")
    run(setting | {"keep": 0.25}, "prune")
    assert leftovers(root) == []


def test_the_lock_of_a_killed_run_is_no_obstacle(setting: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "out" / "tiny").mkdir(parents=True)
    (tmp_path / "out" / "tiny" / ".lock").write_text("")
    assert run(setting, "discover")["name"] == "tiny"


@pytest.mark.parametrize("place", ["tiny/stages", "tiny/stages/discover", "tiny/stages/split/split.json", "tiny/.lock"])
def test_something_else_stands_in_the_way(setting: dict[str, Any], tmp_path: Path, place: str) -> None:
    path = tmp_path / "out" / place
    if path.suffix or path.name == ".lock":
        (path / "mine").mkdir(parents=True)
    else:
        path.parent.mkdir(parents=True)
        path.write_text("mine")
    try:
        run(setting, "discover")
    except UserError as error:
        text = str(error)
    else:
        text = "went on"
    assert len(text.splitlines()) == 1
    assert leftovers(tmp_path / "out") == []


def test_results_do_not_follow_a_link_out_of_the_folder(setting: dict[str, Any], tmp_path: Path) -> None:
    """A link in the place of a file of the run is replaced, what it points to stays as it is."""
    (tmp_path / "precious").write_text("mine")
    root = tmp_path / "out" / "tiny"
    run(setting, "prune")
    for name in ("masks.safetensors", "model.safetensors", "config.json"):
        (root / name).unlink()
        (root / name).symlink_to(tmp_path / "precious")
    run(setting, "prune")
    assert (tmp_path / "precious").read_text() == "mine" and not (root / "config.json").is_symlink()
    (root / ".lock").unlink()
    (root / ".lock").symlink_to(tmp_path / "precious")
    refusal(setting, "prune")
    assert (tmp_path / "precious").read_text() == "mine"
