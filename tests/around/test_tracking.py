"""`track` in a recipe: the figures of a run in a real MLflow store and in real event files; digests do not move."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small import image_folder, model_folder, recipe_dict, write_recipe

import vitprune
from vitprune.core.errors import UserError
from vitprune.recipe import parse
from vitprune.recipe.recipe import Recipe
from vitprune.runs.record import tracking

MADE: dict[str, Any] = {
    "recipe": {"name": "a", "budget": {"macs": 0.25}, "classes": None, "baselines": ["random"]},
    "hashes": {"recipe": "abc"},
    "result": {"top1": 0.5, "macs_ratio": 0.25, "latency_ratio": None, "criterion": "jas", "mcnemar_p": 0.1},
    "model": {"params_dense": 100, "params_slim": 30},
    "stages": [{"name": "split", "seconds": 1.5}, {"name": "prune", "seconds": None}],
}


def test_figures_and_settings() -> None:
    assert tracking.figures(MADE) == {
        "top1": 0.5, "macs_ratio": 0.25, "mcnemar_p": 0.1, "params_ratio": 0.3, "seconds_split": 1.5,
    }  # fmt: skip
    assert tracking.settings(MADE) == {
        "name": "a",
        "budget.macs": "0.25",
        "baselines": "['random']",
        "hash.recipe": "abc",
    }


def test_the_section_moves_no_digest_and_stays_at_home(tmp_path: Path) -> None:
    plain = Recipe.model_validate({"name": "a"})
    asked = Recipe.model_validate({"name": "a", "track": {"mlflow": "default", "tensorboard": str(tmp_path)}})
    assert asked.fingerprint() == plain.fingerprint() and asked.pruning() == plain.pruning()
    assert parse.parse(parse.dump(asked)) == asked and "track" not in plain.written()
    for uri in ("http://me:secret@host/x", "postgresql://me@host/db"):
        with pytest.raises(UserError, match=r"track.mlflow.*MLFLOW_TRACKING_PASSWORD"):
            parse.parse(f"name: a\ntrack: {{mlflow: '{uri}'}}")


def test_a_server_that_fails_fails_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def broken(*_: Any) -> str:
        raise ConnectionError("nobody\nthere")

    monkeypatch.setattr(tracking, "_mlflow", broken)
    run: Any = SimpleNamespace(
        recipe=Recipe.model_validate({"name": "a", "track": {"mlflow": "http://127.0.0.1:1"}}),
        reporter=SimpleNamespace(say=said.append),
    )
    tracking.track(run, MADE)
    assert said == ["track: mlflow: not written (nobody there); the run's own files are complete"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'vitprune\[track\]'"):
        tracking.require(run.recipe)


@pytest.mark.slow
def test_a_real_store_and_real_event_files(tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole run, then what MLflow and TensorBoard read back themselves; the run's own folder tells no place of them."""
    mlflow = pytest.importorskip("mlflow")
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # from version 3 on a folder has to be allowed
    store = str(tmp_path / "mlruns")
    content = recipe_dict(model_folder(tmp_path / "model"), image_folder(tmp_path / "images"), tmp_path / "out")
    content |= {
        "baselines": [],
        "track": {"mlflow": store, "tensorboard": str(tmp_path / "events"), "experiment": "mine"},
    }
    made = vitprune.run(parse.load(write_recipe(tmp_path / "r.yaml", content)))
    client = mlflow.MlflowClient(store)
    (found,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert found.data.metrics["top1"] == made["result"]["top1"] and found.info.status == "FINISHED"
    assert found.data.params["criterion.name"] == "jas" and found.data.params["hash.recipe"] == made["hashes"]["recipe"]
    files = {one.path for one in client.list_artifacts(found.info.run_id)}
    assert files == {"report.html", "report.md", "report.json", "recipe.yaml"}
    events = reading.EventAccumulator(str(tmp_path / "events" / "tiny"))
    events.Reload()
    (point,) = events.Scalars("top1")
    assert point.value == pytest.approx(made["result"]["top1"])
    own = tmp_path / "out" / "tiny"
    assert all(b"mlflow" not in (own / name).read_bytes() for name in ("report.json", "recipe.yaml", "report.html"))
    assert json.loads((own / "report.json").read_text())["complete"]
