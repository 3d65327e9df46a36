"""ViT-Slim: its training, its threshold, its weights in the pruned model, and Table 2."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from small import image_folder, model_folder, recipe_dict
from torch import Tensor, nn

from vitprune.core.errors import UserError
from vitprune.core.progress import Reporter
from vitprune.criteria.catalog import CRITERIA
from vitprune.criteria.weights.settings import Slim
from vitprune.criteria.weights.vit_slim import train
from vitprune.model import families
from vitprune.model.load import opening
from vitprune.paper import table2, tables
from vitprune.pruning.masks import threshold_mask
from vitprune.recipe import recipe
from vitprune.runs import pipeline
from vitprune.runs.state.run import Run

LABELS = torch.tensor([3, 1, 4, 1])


class Gated(nn.Module):
    """An activation with a gate behind it: not how the tool does it."""

    def __init__(self, act: nn.Module, gate: nn.Parameter) -> None:
        super().__init__()
        self.act, self.gate = act, gate

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x) * self.gate


def replica(
    model: nn.Module, batches: list[tuple[Tensor, Tensor]], how: Slim
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The gates and the trained weights in the dense model's key names."""
    own = copy.deepcopy(model).train().requires_grad_(True)
    gates = [
        nn.Parameter(torch.ones(block.mlp.fc1.out_features).to(LABELS.device, torch.float64)) for block in own.blocks
    ]
    weights = list(own.parameters())
    for block, gate in zip(own.blocks, gates, strict=True):
        block.mlp.act = Gated(block.mlp.act, gate)
    both = [
        torch.optim.AdamW(weights, lr=how.rate, weight_decay=0.05),
        torch.optim.AdamW(gates, lr=how.rate, weight_decay=0),
    ]
    for _ in range(how.epochs):
        for x, y in batches:
            loss = -F.log_softmax(own(x), 1)[range(len(y)), y].mean()
            for gate in gates:
                loss = loss + how.pressure * gate.abs().sum()
            for optimiser in both:
                optimiser.zero_grad()
            loss.backward()
            for optimiser in both:
                optimiser.step()
    return [g.detach() for g in gates], {k: v for k, v in own.state_dict().items() if not k.endswith("gate")}


def test_gates_and_weights_are_trained_together(tiny_vit, make_images):
    model, how = tiny_vit(), Slim(epochs=3, rate=1e-3, pressure=1e-3, train_weights=True)
    images = make_images(4)
    batches = [(images[:3], LABELS[:3]), (images[3:], LABELS[3:])]
    gates, trained = train(model, families.ffn_sites(model), lambda: iter(batches), how=how)
    expected, weights = replica(model, batches, how)
    for found, gate in zip(gates, expected, strict=True):
        torch.testing.assert_close(found[0].double(), gate, rtol=1e-6, atol=1e-6)
    state = trained.state_dict()
    assert state.keys() == weights.keys() and not trained.training
    for key, value in weights.items():
        torch.testing.assert_close(state[key], value, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(state["blocks.0.mlp.fc1.weight"], model.blocks[0].mlp.fc1.weight)
    assert not any(p.requires_grad or p.grad is not None for p in trained.parameters())
    frozen = train(model, families.ffn_sites(model), lambda: iter(batches), how=Slim(epochs=2))[1]
    assert all(torch.equal(value, frozen.state_dict()[key]) for key, value in model.state_dict().items())
    assert torch.equal(trained(images), trained(images)) and CRITERIA["vit-slim"].trains.args == (
        "weights.vit_slim",
        "train",
    )


def test_one_threshold_across_blocks() -> None:
    """sorted(ζ)[int((1 − b)·len)]; signed, and a unit as good as the threshold stays."""
    gates = {"a": torch.tensor([[0.9, -2.0, 0.1, 0.5]]), "b": torch.tensor([[0.4, 0.8, 0.5]])}
    every = sorted([0.9, -2.0, 0.1, 0.5, 0.4, 0.8, 0.5])
    for budget in (0.1, 0.25, 0.43, 0.5, 0.75, 1.0):
        threshold = every[int((1 - budget) * 7)]
        mask, emptied = threshold_mask(gates, budget)
        expected = [[z >= threshold - 1e-6 for z in gate[0].tolist()] for gate in gates.values()]
        missing = [row for row in expected if not any(row)]
        assert emptied == len(missing)
        for gate, row, keep in zip(gates.values(), expected, mask.masks, strict=True):
            if not any(row):
                row[int(gate.argmax())] = True
            assert keep.tolist() == row
    # 0.5 stands twice: both stay, as signed ζ ≥ threshold says
    assert list(threshold_mask(gates, 0.5)[0].widths.values()) == [2, 2]
    assert threshold_mask(gates, 1.0)[0].kept == 1


@pytest.fixture
def content(tmp_path: Path) -> dict[str, Any]:
    made = recipe_dict(model_folder(tmp_path / "m"), image_folder(tmp_path / "i", 10), tmp_path / "out")
    slim = {
        "name": "vit-slim",
        "epochs": 3,
        "rate": 2e-3,
        "pressure": 1e-3,
        "train_weights": True,
        "probe_per_class": 4,
    }
    protocol = {"t": [1, 3], "nodes": 3, "probe_per_class": 4}
    return made | {"criterion": slim, "recovery": "none", "baselines": [], "paper_protocol": protocol}


def trained_weights(content: dict[str, Any]) -> dict[str, Tensor]:
    return load_file(Path(content["out"]) / "tiny/stages/discover/vit-slim-of-all.weights.safetensors")


def cut(weights: dict[str, Tensor], keep: list[Tensor]) -> dict[str, Tensor]:
    """Rows of fc1 and columns of fc2, by hand."""
    made = dict(weights)
    for i, kept in enumerate(keep):
        units = [j for j, k in enumerate(kept.tolist()) if k]
        made[f"blocks.{i}.mlp.fc1.weight"] = torch.stack([weights[f"blocks.{i}.mlp.fc1.weight"][j] for j in units])
        made[f"blocks.{i}.mlp.fc1.bias"] = torch.stack([weights[f"blocks.{i}.mlp.fc1.bias"][j] for j in units])
        made[f"blocks.{i}.mlp.fc2.weight"] = torch.stack(
            [weights[f"blocks.{i}.mlp.fc2.weight"][:, j] for j in units], 1
        )
    return made


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_the_pruned_model_has_the_trained_weights(content: dict[str, Any]) -> None:
    """Of a run, in its checkpoint and its exam; frozen, they are the dense model's."""
    report = pipeline.run(recipe.Recipe.model_validate(content), "evaluate", device="cpu")
    folder = Path(content["out"]) / "tiny"
    masks, weights = load_file(folder / "masks.safetensors"), trained_weights(content)
    keep = [masks[f"keep.blocks.{i}.mlp"] for i in range(2)]
    assert same(load_file(folder / "model.safetensors"), cut(weights, keep))
    dense = load_file(Path(content["model"]["name"].removeprefix("local-dir:")) / "model.safetensors")
    assert not torch.allclose(dense["head.weight"], weights["head.weight"])
    check = next(c for c in report["checks"] if c["name"] == "masked = sliced")
    assert check["passed"]
    frozen = content | {"name": "frozen", "criterion": content["criterion"] | {"train_weights": False}}
    pipeline.run(recipe.Recipe.model_validate(frozen), "prune", device="cpu")
    folder = Path(content["out"]) / "frozen"
    masks = load_file(folder / "masks.safetensors")
    assert same(load_file(folder / "model.safetensors"), cut(dense, [masks[f"keep.blocks.{i}.mlp"] for i in range(2)]))
    assert not list(folder.rglob("*.weights.safetensors"))


def test_trained_weights_as_a_baseline(content: dict[str, Any]) -> None:
    """The baseline's row is the exam of the trained weights, not of the dense model's."""
    other = {"name": "activation", "t": 3} | {k: v for k, v in content["criterion"].items() if k != "name"}
    made = content | {"criterion": other, "baselines": ["vit-slim"], "paper_protocol": None, "allocation": "uniform"}
    rows = pipeline.run(recipe.Recipe.model_validate(made), "evaluate", device="cpu")["rows"]
    found = next(row for row in rows if row["criterion"] == "vit-slim")
    with Run.open(recipe.Recipe.model_validate(made), "cpu", Reporter(quiet=True)) as run:
        gates = load_file(Path(content["out"]) / "tiny/stages/discover/vit-slim-of-all.safetensors")
        keep = [gates[f"scores.blocks.{i}.mlp"][0].argsort(descending=True, stable=True)[:32] for i in range(2)]
        model = copy.deepcopy(run.loaded.model)
        model.load_state_dict(trained_weights(content))
        for block, units in zip(model.blocks, keep, strict=True):
            block.mlp.fc2.weight[:, [j for j in range(64) if j not in units.tolist()]] = 0
        x, y = next(run.images.batches(run.split.test, 99))
        p = model(x).softmax(-1)[range(len(y)), y]
    assert found["mean_true_probability"] == pytest.approx(float(p.mean()), abs=1e-5)


def test_a_repair_of_trained_weights_is_refused(content: dict[str, Any]) -> None:
    other = content["criterion"] | {"name": "jas"}
    for changed in (
        {"recovery": "affine"},
        {"recovery": "mean", "criterion": other, "baselines": ["vit-slim"]},
        {"compare": {"criteria": ["vit-slim", "random"], "recovery": ["none", "affine"]}},
    ):
        with pytest.raises(ValueError, match="weights of its own"):
            recipe.Recipe.model_validate(content | changed)
    recipe.Recipe.model_validate(content | {"recovery": "affine", "criterion": other})


def test_table_2(content: dict[str, Any], tmp_path: Path) -> None:
    """ViT-Slim's rows hold the trained weights cut at its own threshold; JAS's oracle rows are those of a run."""
    whole = content | {"paper": {"table": "table-2", "units": ["frequency", "mode-per-rank"]}}
    made = recipe.Recipe.model_validate(whole)
    record = tables.run(made, device="cpu", command="vitprune paper r.yaml")
    assert record["command"] == "vitprune paper r.yaml" and record["machine"]["torch"] == torch.__version__
    assert record["machine"]["cpu"] and record["machine"]["cores"] and "created" not in record
    honest = [row for row in record["rows"] if row["protocol"] == "honest"]
    assert [(r["method"], r["keep"]) for r in honest] == [
        ("dense", None), ("vit-slim", 0.5), ("vit-slim", 1), ("vit-slim", 3), ("jas", 0.5),
    ]  # fmt: skip
    assert [(r["units"], r["keep"]) for r in record["rows"] if r["protocol"] == "oracle"] == [
        ("frequency", 1), ("frequency", 3), ("mode-per-rank", 1), ("mode-per-rank", 3),
    ]  # fmt: skip
    with Run.open(made, "cpu", Reporter(quiet=True)) as run:
        gates = load_file(tmp_path / "out/tiny/stages/discover/vit-slim-of-all.safetensors")
        zeta = np.sort(np.concatenate([gates[f"scores.blocks.{i}.mlp"][0].numpy() for i in range(2)]))
        for row, budget in zip(honest[1:4], (0.5, 1 / 64, 3 / 64), strict=True):
            found, emptied = table2.slimmed(run, row["keep"])
            slim, mask = found.model, found.plan
            if not emptied:
                assert (
                    min(float(gates[f"scores.blocks.{i}.mlp"][0][k].min()) for i, k in enumerate(mask.masks))
                    == zeta[int((1 - budget) * 128)]
                )
            assert same(slim.state_dict(), cut(trained_weights(content), mask.masks)) and row["kept"] == mask.kept
            x, y = next(run.images.batches(run.split.test, 99))
            logits = slim(x)
            assert row["top1"] == float((logits.argmax(1) == y).double().mean())
            p = logits.softmax(-1)[range(len(y)), y]
            assert row["mean_true_probability"] == pytest.approx(float(p.mean()), abs=1e-6)
            position = [int(np.flatnonzero(run.split.probe // 10 == c)[3]) for c in range(3)]  # 4 of 8 are used
            x_more, y_more = next(run.images.batches(run.split.probe[position], 3))
            more = slim(x_more).softmax(-1)[range(3), y_more]
            theirs = (p[0] + p[2] + p[4] + more.sum()) / 6  # the last of each class's two test images makes room
            assert row["mean_true_probability_overlapping"] == pytest.approx(float(theirs), abs=1e-6)
    report = pipeline.run(recipe.Recipe.model_validate(content | {"name": "run"}), "evaluate", device="cpu")
    for row in report["rows"]:
        if row["protocol"] == "oracle" and row["criterion"] == "jas":
            own = next(r for r in record["rows"] if (r["units"], r["keep"]) == ("frequency", row["t"]))
            assert own["top1"] == row["top1"]
            assert own["mean_true_probability"] == pytest.approx(row["mean_true_probability"], rel=1e-6)
    cost = {c["method"]: c for c in record["costs"]}
    assert cost["vit-slim"]["epochs"] == 3 and cost["vit-slim"]["images"] == cost["jas"]["images"] == 12
    assert all(c["seconds"] >= 0 and "peak_memory_mb" in c for c in cost.values())
    text = (tmp_path / "out/tiny/paper-table-2.md").read_text()
    assert "TRUE LABEL" in text and "3 passes of training" in text and text.count("| vit-slim |") == 3


def test_table_2_needs_both_methods(content: dict[str, Any]) -> None:
    for changed in ({"paper_protocol": None}, {"criterion": {"name": "jas", "t": 3, "nodes": 2, "probe_per_class": 2}}):
        made = content | {"paper": {"table": "table-2"}} | changed
        with pytest.raises(UserError, match="table-2 needs"):
            tables.run(recipe.Recipe.model_validate(made), device="cpu")


def test_a_checkpoint_of_trained_weights_loads(content: dict[str, Any]) -> None:
    pipeline.run(recipe.Recipe.model_validate(content | {"paper_protocol": None}), "prune", device="cpu")
    loaded = opening.load(Path(content["out"]) / "tiny")
    assert torch.equal(loaded.state_dict()["head.weight"], trained_weights(content)["head.weight"])
