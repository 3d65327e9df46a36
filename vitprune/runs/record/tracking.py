"""A finished run told to MLflow or TensorBoard, after everything else: a server that is not there costs no result."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitprune.core.errors import UserError, one_line
from vitprune.core.reading import Json
from vitprune.recipe.recipe import Recipe
from vitprune.runs.state.run import Run

NEEDS = {"mlflow": "mlflow", "tensorboard": "tensorboard"}  # module of each key of `track`
FILES = ("report.html", "report.md", "report.json", "recipe.yaml")
FIGURES = (
    "top1", "top1_change_points", "mcnemar_p", "mean_true_probability", "params", "macs", "macs_ratio", "latency_ratio", "kl",
)  # fmt: skip
LONGEST = 500  # characters of a setting


def require(recipe: Recipe) -> None:
    """Raises UserError where what a recipe's `track` asks for is not installed; before any work."""
    for key, module in NEEDS.items():
        if recipe.track is not None and getattr(recipe.track, key) is not None and not importlib.util.find_spec(module):
            raise UserError(f"track.{key}: {module} is not installed: pip install 'vitprune[track]'")


def track(run: Run, made: Json) -> None:
    """Nothing; the record is told where the recipe says. What fails there is said in one line and fails nothing here."""
    asked = run.recipe.track
    if asked is None:
        return
    for key, tell in (("mlflow", _mlflow), ("tensorboard", _tensorboard)):
        if getattr(asked, key) is not None:
            try:
                where = tell(run, made)
            except Exception as error:  # a tracking server fails in ways of its own
                run.reporter.say(f"track: {key}: not written ({one_line(error)}); the run's own files are complete")
            else:
                run.reporter.say(f"track: {key}: {where}")


def figures(made: Json) -> dict[str, float]:
    """The numbers of the exported model's row, what is left of the dense one's parameters, seconds of the stages."""
    result, model = made.get("result") or {}, made.get("model") or {}
    found = {name: result[name] for name in FIGURES if isinstance(result.get(name), int | float)}
    if model.get("params_dense"):
        found["params_ratio"] = model["params_slim"] / model["params_dense"]
    found |= {
        f"seconds_{stage['name']}": stage["seconds"] for stage in made["stages"] if stage.get("seconds") is not None
    }
    return {name: float(value) for name, value in found.items()}


def settings(made: Json) -> dict[str, str]:
    """What the recipe says, key by key: `criterion.name`, `budget.macs`; and the digests of what the run was made from."""
    found = dict(_flat(made["recipe"], ""))
    return found | {f"hash.{name}": str(value) for name, value in (made.get("hashes") or {}).items()}


def _flat(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for name, part in value.items():
            yield from _flat(part, f"{key}.{name}" if key else str(name))
    elif value is not None:
        yield key, str(value)[:LONGEST]


def _files(run: Run) -> list[Path]:
    return [path for name in FILES if (path := run.folder.root / name).is_file()]


def _mlflow(run: Run, made: Json) -> str:
    """Where the run is in MLflow."""
    from mlflow import MlflowClient

    asked = run.recipe.track
    assert asked is not None and asked.mlflow is not None
    client = MlflowClient(None if asked.mlflow == "default" else asked.mlflow)
    known = client.get_experiment_by_name(asked.experiment)
    experiment = client.create_experiment(asked.experiment) if known is None else known.experiment_id
    own = client.create_run(experiment, run_name=run.folder.root.name, tags={"vitprune": made["versions"]["vitprune"]})
    for name, value in settings(made).items():
        client.log_param(own.info.run_id, name, value)
    for name, number in figures(made).items():
        client.log_metric(own.info.run_id, name, number)
    for path in _files(run):
        client.log_artifact(own.info.run_id, str(path))
    client.set_terminated(own.info.run_id)
    return f"{asked.experiment}, run {own.info.run_id}"


def _tensorboard(run: Run, made: Json) -> str:
    """The folder of the run's event file."""
    from torch.utils.tensorboard import SummaryWriter

    asked = run.recipe.track
    assert asked is not None and asked.tensorboard is not None
    place = asked.tensorboard / run.folder.root.name
    with SummaryWriter(str(place)) as writer:
        for name, number in figures(made).items():
            writer.add_scalar(name, number, 0)
        writer.add_text("recipe", "```yaml\n" + made["recipe_yaml"] + "\n```", 0)
    return str(place)
