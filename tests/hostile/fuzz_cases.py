"""The cases of the fuzz run: what is damaged, and which command is given it."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import mutations
import onnx
import pytest
import torch
import yaml
from fuzz import Case
from small import image_folder, model_folder, picture, quicken, recipe_dict, tiny_args, tiny_model

from vitprune.recipe import parse, recipe
from vitprune.report import write_report
from vitprune.runs import pipeline
from vitprune.runs.record import record

HUGE = ("refit_images", "random_draws", "distill_epochs", "epochs", "nodes", "seeds", "latency_batches")


@dataclass
class Lab:
    """What the cases start from: a model, images, a finished run and a foreign ONNX file."""

    base: Path
    recipe: dict[str, Any]
    run: Path
    report: dict[str, Any]
    bundled: list[str]
    foreign: bytes

    @classmethod
    def build(cls, base: Path) -> Lab:
        """Everything in `base`, by one run of the tiny model."""
        content = recipe_dict(model_folder(base / "model"), image_folder(base / "images", 4), base / "out")
        content |= {"baselines": ["activation"], "export": {"onnx": True, "latency_batches": [1]}, "keep": 1.0}
        content["criterion"] |= {"nodes": 2, "probe_per_class": 2}
        with pytest.MonkeyPatch.context() as patch:
            quicken(patch)
            patch.setattr(record, "write_report", write_report)
            pipeline.run(recipe.Recipe.model_validate(content), device="cpu")
        picture(1, 1).save(base / "a.png")
        run = base / "out" / "tiny"
        bundled = [p.read_text() for p in sorted(parse.bundled_folder().rglob("*.yaml"))] + [parse.TEMPLATE]
        bundled.append(yaml.safe_dump(content, sort_keys=False))
        return cls(base, content, run, json.loads((run / "report.json").read_text()), bundled, foreign())

    def copy_run(self, place: Path) -> Path:
        """The finished run below `place`."""
        return Path(shutil.copytree(self.run, place / "out" / "tiny"))


def foreign() -> bytes:
    """A sound ONNX file that has nothing to do with images."""
    tensor = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Relu", ["tokens"], ["answer"])
    ends = [[tensor(name, onnx.TensorProto.FLOAT, ["n", 7])] for name in ("tokens", "answer")]
    made = onnx.helper.make_model(onnx.helper.make_graph([node], "other", *ends), ir_version=8)
    return bytes(made.SerializeToString())


def _recipe(place: Path, content: Any) -> Path:
    path = place / "r.yaml"
    try:
        text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
    except RecursionError:  # too deep for PyYAML's writer; JSON is YAML
        text = json.dumps(content)
    path.write_bytes(text.encode(errors="surrogatepass"))
    return path


def _printable(content: Any) -> Any:
    """The value without what PyYAML's writer itself refuses."""
    return json.loads(json.dumps(content).replace("\\ud800", "?"))


def recipe_text(lab: Lab, place: Path, chance: Random) -> Case:
    """A recipe whose text is damaged."""
    return Case(["recipe", "check", str(_recipe(place, mutations.text(chance.choice(lab.bundled), chance)))])


def recipe_values(lab: Lab, place: Path, chance: Random) -> Case:
    """A recipe that is YAML, with values of the wrong kind."""
    content = _printable(mutations.value(yaml.safe_load(chance.choice(lab.bundled)), chance))
    return Case(["recipe", "check", str(_recipe(place, content)), *["--json"] * chance.randrange(2)])


def recipe_run(lab: Lab, place: Path, chance: Random) -> Case:
    """A damaged recipe that is run, unless it asks for hours of work or for the network."""
    content = copy.deepcopy(lab.recipe) | {"baselines": [], "export": {"onnx": False}}
    content["criterion"]["name"] = chance.choice(["jas", "activation", "magnitude-l2", "variance", "obs", "taylor"])
    content = _printable(mutations.value(content, chance))
    path = _recipe(place, content)
    verb = chance.choice(["discover", "discover", "prune"]) if _cheap(path) else "recipe check"
    out = place / "out"
    return Case([*verb.split(), str(path), *(["--out", str(out)] if verb != "recipe check" else [])], out)


def _cheap(path: Path) -> bool:
    try:
        made = parse.load(path)
    except Exception:
        return True
    local = made.model.name.startswith("local-dir:") and made.data.path is not None and not made.model.pretrained
    c = made.criterion
    small = max(c.nodes or 0, c.epochs if c.name == "vit-slim" else 0, made.distill_epochs) <= 20
    return local and small and made.criterion.name != "auto"


def _discover(lab: Lab, place: Path, **changed: Any) -> Case:
    content = copy.deepcopy(lab.recipe) | {"baselines": [], "criterion": {"name": "magnitude-l2", "t": 3}} | changed
    path = _recipe(place, content)
    return Case(["discover", str(path), "--out", str(place / "out")], place / "out")


def config(lab: Lab, place: Path, chance: Random) -> Case:
    """A model folder whose config.json is damaged: timm's own, or one of ours."""
    source = lab.base / "model" if chance.random() < 0.6 else lab.run
    folder = place / "model"
    folder.mkdir()
    shutil.copy(source / "model.safetensors", folder)
    content = json.loads((source / "config.json").read_text())
    if chance.random() < 0.5:  # past the checksum of what `save` wrote
        content.pop("vitprune", None) if source == lab.base / "model" else content["vitprune"].pop(
            "config_sha256", None
        )
    (folder / "config.json").write_bytes(mutations.json_file(content, chance))
    return _discover(lab, place, model={"name": f"local-dir:{folder}"})


def weights(lab: Lab, place: Path, chance: Random) -> Case:
    """A model folder whose model.safetensors lies."""
    folder = Path(shutil.copytree(lab.base / "model", place / "model"))
    path = folder / "model.safetensors"
    path.write_bytes(mutations.safetensors(path.read_bytes(), chance))
    return _discover(lab, place, model={"name": f"local-dir:{folder}"})


def checkpoint(lab: Lab, place: Path, chance: Random) -> Case:
    """A damaged weights file under a timm name."""
    path = place / f"w{chance.choice(['.pth', '.pt', '.bin', '.safetensors', '.npz', '.tar', ''])}"
    source = lab.base / "weights.pth"
    if not source.exists():
        torch.save(tiny_model().state_dict(), source)
    whole = chance.choice([source, lab.base / "model" / "model.safetensors"]).read_bytes()
    path.write_bytes(mutations.raw(whole, chance, chance.choice([64, 4000, None])))
    model = {"name": "vit_tiny_patch16_224", "args": tiny_args() | {"num_classes": 3}, "checkpoint": str(path)}
    return _discover(lab, place, model=model)


def report(lab: Lab, place: Path, chance: Random) -> Case:
    """A damaged report.json or a damaged file beside it, written again."""
    run = place / "tiny"
    run.mkdir()
    shutil.copytree(lab.run / "report-data", run / "report-data")
    shutil.copy(lab.run / "config.json", run)
    (run / "report.json").write_bytes(mutations.json_file(lab.report, chance))
    if chance.random() < 0.3:
        (run / "report.json").write_text(json.dumps(lab.report))
        path = chance.choice(sorted(p for p in run.rglob("*") if p.is_file() and p.name != "report.json"))
        path.write_bytes(mutations.raw(path.read_bytes(), chance))
    if chance.random() < 0.2:
        compare = {"rows": lab.report["rows"], "criteria": ["jas"], "seeds": [0], "keep": [0.5]}
        (run / "compare.json").write_bytes(mutations.json_file(compare, chance))
    return Case(["report", str(run)], run)


def comparison(lab: Lab, place: Path, chance: Random) -> Case:
    """Two reports side by side, one or both damaged."""
    for name in ("a", "b"):
        (place / name).mkdir()
        (place / name / "report.json").write_bytes(mutations.json_file(lab.report, chance))
    return Case(["report", str(place / "a"), str(place / "b"), "--out", str(place / "out")], place / "out")


def check(lab: Lab, place: Path, chance: Random) -> Case:
    """Bars against a damaged report."""
    (place / "report.json").write_bytes(mutations.json_file(lab.report, chance))
    bars = [
        ["--min-top1", "0.5"],
        ["--max-latency-ratio", "0.9"],
        ["--max-params-ratio", "0.9"],
        ["--max-macs-ratio", "1"],
    ]
    args = [part for bar in chance.sample(bars, chance.randrange(1, 5)) for part in bar]
    return Case(["check", str(place), *args, *["--json"] * chance.randrange(2)], missed=True)


def _onnx(lab: Lab, place: Path, chance: Random) -> Path:
    path = place / "m.onnx"
    content = chance.choice([(lab.run / "model.onnx").read_bytes()] * 4 + [lab.foreign])
    if chance.random() < 0.4:
        path.write_bytes(mutations.raw(content, chance, chance.choice([200, None])))
        return path
    proto = onnx.ModelProto.FromString(content)
    entry = chance.choice(list(proto.metadata_props) or [proto.metadata_props.add(key="labels", value="[]")])
    try:
        entry.value = mutations.json_file(json.loads(entry.value), chance).decode(errors="replace")
    except ValueError:
        entry.value = mutations.text(entry.value, chance)
    if chance.random() < 0.1:
        entry.key = chance.choice(["labels", "preprocessing", "open_set", "macs", "widths", "precision"])
    path.write_bytes(proto.SerializeToString())
    return path


def predict(lab: Lab, place: Path, chance: Random) -> Case:
    """A damaged, foreign or truncated ONNX file asked for a prediction."""
    return Case(["predict", str(_onnx(lab, place, chance)), str(lab.base / "a.png"), *["--json"] * chance.randrange(2)])


def picture_file(lab: Lab, place: Path, chance: Random) -> Case:
    """A sound ONNX file asked about a damaged image."""
    path = place / f"i{chance.choice(['.png', '.jpg', '.gif', '.tif'])}"
    path.write_bytes(mutations.raw((lab.base / "a.png").read_bytes(), chance))
    return Case(["predict", str(lab.run), str(path)])


def bench(lab: Lab, place: Path, chance: Random) -> Case:
    """A damaged ONNX file timed, alone or beside a sound one."""
    files = [str(_onnx(lab, place, chance))]
    files += [str(lab.run / "model.onnx")] * chance.randrange(2)
    return Case(
        ["bench", *files, "--batch", "1", "--seconds", "0", "--provider", "cpu", *["--json"] * chance.randrange(2)]
    )


def stages(lab: Lab, place: Path, chance: Random) -> Case:
    """One file that a finished run left, damaged; then the same command."""
    run = lab.copy_run(place)
    files = [p for p in run.rglob("*") if p.is_file() and p.suffix in (".json", ".safetensors", ".yaml")]
    path = chance.choice(sorted(files))
    whole = path.read_bytes()
    if path.suffix == ".json":
        path.write_bytes(mutations.json_file(json.loads(whole), chance))
    elif path.suffix == ".safetensors":
        path.write_bytes(mutations.safetensors(whole, chance))
    else:
        path.write_bytes(mutations.raw(whole, chance))
    if chance.random() < 0.6:  # of the size that was noted, where that can be
        path.write_bytes(path.read_bytes().ljust(len(whole), b" ")[: len(whole)])
    recipe_path = _recipe(place, lab.recipe | {"out": str(place / "out")})
    return Case([chance.choice(["discover", "prune", "evaluate"]), str(recipe_path)], place / "out")


def cells(lab: Lab, place: Path, chance: Random) -> Case:
    """One cell of a comparison, damaged; then the same comparison."""
    content = copy.deepcopy(lab.recipe) | {"out": str(place / "out")}
    content["compare"] = {"criteria": ["magnitude-l2", "random"], "keep": [0.5], "recovery": ["none"], "seeds": [0]}
    kept = lab.base / "compared"
    path = _recipe(place, content)
    if not kept.is_dir():
        from fuzz import call

        assert call(Case(["compare", str(path)], place / "out"))[0] == 0
        shutil.copytree(place / "out", kept)
        shutil.rmtree(place / "out")
    shutil.copytree(kept, place / "out")
    chosen = chance.choice(sorted((place / "out").rglob("*.json")))
    chosen.write_bytes(mutations.json_file(json.loads(chosen.read_text()), chance))
    return Case(["compare", str(path)], place / "out")


Maker = Callable[[Lab, Path, Random], Case]
KINDS: dict[str, Maker] = {
    "recipe text": recipe_text, "recipe values": recipe_values, "recipe run": recipe_run, "config": config,
    "weights": weights, "checkpoint": checkpoint, "report": report, "comparison": comparison, "check": check,
    "predict": predict, "picture": picture_file, "bench": bench, "stages": stages, "cells": cells,
}  # fmt: skip
WEIGHTS = [30, 20, 2, 4, 12, 5, 2, 4, 8, 7, 3, 2, 2, 1]


def kind(seed: int, number: int) -> str:
    """Which kind a case is of."""
    return Random(f"kind {seed}/{number}").choices(list(KINDS), WEIGHTS)[0]
