"""The engines' contract held by a Ray cluster of this machine; skipped where Ray is not installed."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from runs import test_engines
from runs.test_engines import begin, expected, holding_jobs, job, same, squares, values
from runs.test_shards import results
from small import image_folder, model_folder, recipe_dict

from vitprune.core.errors import UserError
from vitprune.recipe.recipe import Recipe
from vitprune.runs import pipeline
from vitprune.runs.engine.base import Executor
from vitprune.runs.engine.dispatch import Dispatch
from vitprune.runs.engine.local import Local
from vitprune.runs.engine.opening import Crew

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


@pytest.fixture(scope="module")
def engine() -> Iterator[Executor]:
    from vitprune.runs.engine.ray import Ray

    before = signal.getsignal(signal.SIGTERM)
    made = Ray(2, begin)
    yield made
    started = psutil.Process().children(recursive=True)
    made.close()
    _, alive = psutil.wait_procs([p for p in started if "ray" in " ".join(cmdline(p))], timeout=20)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
    assert signal.getsignal(signal.SIGTERM) == before


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


@needs_ray
def test_the_contract_on_ray(engine: Executor, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One cluster for all of it: order, bits, pinned, not kept, a death, a mistake; nothing is printed."""
    items = [7, 1, 5, 3, 2, 11]
    found = list(engine.run(job(tmp_path, items), tmp_path / "parts"))
    assert same(found, list(Local().run(job(tmp_path, items), tmp_path / "local")))
    of = [sorted(p.read_bytes() for p in (tmp_path / name).iterdir()) for name in ("parts", "local")]
    assert of[0] == of[1] and len(of[0]) == 6
    for kept in (True, False):
        pinned = [list(engine.run(one, tmp_path / one.name)) for one in holding_jobs(tmp_path, kept, 10 * kept)]
        who = values(pinned, "who")
        assert values(pinned) == expected(10 * kept) and values(pinned, "again") == [[1] * 5, [0] * 5, [0] * 5]
        assert who[0] == who[1] == who[2] and who[0][0] == who[0][2] != who[0][1] == who[0][3]
    assert len(list(tmp_path.glob("hold-*/*"))) == 15
    with pytest.raises(UserError, match=r"^item 99: not allowed; take another$"):
        list(engine.run(job(tmp_path, [1, 99, 2]), tmp_path / "wrong"))
    said = capfd.readouterr()
    assert said.out == said.err == ""


@needs_ray
@pytest.mark.slow
def test_a_death_on_ray_costs_its_part(engine: Executor, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "die-4").write_text("x")
    items = list(range(8))
    assert same(list(engine.run(job(tmp_path, items), tmp_path / "p")), [squares(tmp_path, item) for item in items])
    (tmp_path / "die-1").write_text("x" * 50)
    with pytest.raises(UserError, match=r"ended 3 times over part 2 of 3; if memory is short"):
        list(engine.run(job(tmp_path, [0, 1, 2]), tmp_path / "q"))
    said = capfd.readouterr()
    assert said.out == said.err == ""


@needs_ray
@pytest.mark.slow
def test_a_run_begun_on_one_engine_is_finished_on_another(tmp_path: Path, engine: Executor) -> None:
    """Half of the parts by one process, the rest by a cluster, from which the workers have the model."""
    engine.close()
    content = recipe_dict(model_folder(tmp_path / "m"), image_folder(tmp_path / "i", 30), tmp_path / "out")
    content |= {"criterion": {"name": "jas", "t": 3, "nodes": 2, "probe_per_class": 24}}

    def run(**options: Any) -> dict[str, bytes]:
        pipeline.run(Recipe.model_validate(content), "discover", device="cpu", **options)
        return results(tmp_path / "out")

    alone = run()
    for path in [*(tmp_path / "out").rglob("parts/*/*.safetensors")][::2]:
        path.unlink()
    assert run(force=False, workers=Crew(2, "ray")) == alone
    assert run(force=True, workers=Crew(2, "ray")) == alone


AT_ONCE: dict[str, dict[str, Any]] = {
    "one model": {},
    "frontier": {"budget": {"macs": [0.8, 0.65]}},
    "groups": {"groups": {"a": ["circle"], "b": ["cross", "square"]}},
}


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("made_of", AT_ONCE)
def test_the_default_recipe_has_the_same_bits_on_every_engine(made_of: str, tmp_path: Path, engine: Executor) -> None:
    """Its own criterion, all default baselines, repair and exam; figures of time and date aside. The models of a frontier
    and of groups are repaired at once, one by each worker."""
    engine.close()
    content = recipe_dict(model_folder(tmp_path / "m"), image_folder(tmp_path / "i", 20), tmp_path)
    for key in ("keep", "criterion", "recovery", "baselines"):
        content.pop(key, None)
    content |= {"export": {"onnx": False}, "random_draws": 1} | AT_ONCE[made_of]
    made = {}
    for name, crew in (("alone", Crew(1)), ("local", Crew(2)), ("ray", Crew(2, "ray"))):
        recipe = Recipe.model_validate(content | {"out": str(tmp_path / name)})
        pipeline.run(recipe, "evaluate", device="cpu", workers=crew)
        files = [*(tmp_path / name).rglob("*.safetensors"), *(tmp_path / name).rglob("rows.json")]
        made[name] = {path.relative_to(tmp_path / name).as_posix(): path.read_bytes() for path in files}
    rows = [name for name in made["alone"] if name.endswith("stages/evaluate/rows.json")]
    assert len(rows) == (2 if made_of == "frontier" else 1) and made["local"] == made["alone"] == made["ray"]


STOPPED = """
import sys; sys.path[:0] = {paths!r}
from pathlib import Path
from test_engines import Job, begin, slow
from vitprune.runs.engine.ray import Ray
if __name__ == "__main__":
    engine = Ray(2, begin)
    try:
        list(engine.run(Job("slow", {items!r}, slow, None), Path({folder!r})))
    except KeyboardInterrupt:
        sys.exit(130)
"""


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
def test_no_process_of_ray_outlives_its_run(tmp_path: Path, by: int) -> None:
    paths = [str(Path(test_engines.__file__).parent), *sys.path]
    items = [str(tmp_path / "one"), str(tmp_path / "two")]
    script = tmp_path / "script.py"
    script.write_text(STOPPED.format(paths=paths, items=items, folder=str(tmp_path / "parts")))
    run = subprocess.Popen([sys.executable, script], env=os.environ | {"PYTHONPATH": ":".join(paths)})
    until = time.monotonic() + 90
    while not all(Path(item).exists() for item in items) and time.monotonic() < until:
        time.sleep(0.1)
    children = psutil.Process(run.pid).children(recursive=True)
    if (
        by == signal.SIGKILL
    ):  # two helpers of Ray's, which compute nothing, report their raylet's death for a minute first
        children = [child for child in children if not child.name().endswith("Agent")]
    run.send_signal(by)
    assert run.wait(timeout=60) == (130 if by == signal.SIGINT else -signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=60)
    assert len(children) >= 4 and not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("process", ["raylet", "gcs_server"])
def test_a_cluster_that_ends_under_a_run_is_one_line(process: str, tmp_path: Path) -> None:
    """Ray ends the process that asked without a word soon after."""
    content = recipe_dict(model_folder(tmp_path / "m"), image_folder(tmp_path / "i", 400), tmp_path / "out")
    content |= {"criterion": {"name": "jas", "t": 3, "nodes": 40, "probe_per_class": 300}}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "vitprune", "discover", str(recipe), "--engine", "ray", "--workers", "2"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until, parts = time.monotonic() + 90, tmp_path / "out" / "tiny" / "stages" / "discover"
    while not any(parts.rglob("*.safetensors")) and run.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    (one,) = [child for child in psutil.Process(run.pid).children(recursive=True) if process in child.name()]
    one.kill()
    _, said = run.communicate(timeout=60)
    lines = [line for line in said.splitlines() if line.startswith("vitprune:")]
    assert (
        run.returncode == 2
        and lines[-1:]
        and lines[-1].startswith("vitprune: --engine ray: the cluster of this machine has ended;")
    )
    assert subprocess.run(command[:-4], capture_output=True).returncode == 0  # and it goes on without Ray


def test_all_jobs_are_given_up_when_nobody_will_answer(tmp_path: Path) -> None:
    class Silent(Dispatch):
        def hire(self, rank: int) -> Any:
            if rank == 1:
                self.fail(UserError("gone"))
            threading.Event().wait()

    said = list[str]()

    def ask() -> None:
        try:
            list(Silent(2).run(job(tmp_path, [1, 2, 3]), tmp_path / "parts"))
        except UserError as error:
            said.append(str(error))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(20)
    assert said == ["gone"]


def test_a_process_that_has_ended_is_not_alive() -> None:
    from vitprune.runs.engine import ray

    ended = subprocess.Popen([sys.executable, "-c", ""])
    one = psutil.Process(ended.pid)
    until = time.monotonic() + 20
    while ray._alive(one) and time.monotonic() < until:
        time.sleep(0.02)
    assert not ray._alive(one)  # not fetched by its parent yet
    ended.wait()
    assert not ray._alive(one) and ray._alive(psutil.Process())


def test_without_ray_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    made = Recipe.model_validate(recipe_dict(tmp_path / "m", tmp_path / "i", tmp_path / "out"))
    with pytest.raises(UserError, match=r"^--engine ray: Ray is not installed; pip install 'vitprune\[ray\]'$"):
        pipeline.run(made, device="cpu", workers=Crew(2, "ray"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ((0,), "--workers 0: at least one"),
        ((2, "dask"), "--engine dask: not an engine; take one of local, ray"),
        ((2, "local", "auto"), "--address auto: is of a Ray cluster; add --engine ray"),
    ],
)
def test_a_crew_that_does_not_go_together(given: tuple[Any, ...], line: str) -> None:
    with pytest.raises(UserError, match=f"^{line}"):
        Crew.of(Crew(*given), Recipe(name="x"))
