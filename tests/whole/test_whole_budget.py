"""`budget: {macs: …}`: attention and FFNs are cut together; the figures are those of the written model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small import image_folder, model_folder, quicken, recipe_dict

import vitprune
from vitprune.core.errors import UserError
from vitprune.core.progress import Reporter
from vitprune.model import families, size
from vitprune.model.load import opening
from vitprune.model.sites import attention
from vitprune.model.sites.attention import attention_sites
from vitprune.recipe.recipe import Recipe
from vitprune.runs import pipeline
from vitprune.runs.stages.prune import exported_mask
from vitprune.runs.state.run import Run


@pytest.fixture(scope="module", name="content")
def small_recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole")
    made = recipe_dict(model_folder(folder / "model"), image_folder(folder / "images", 20), folder / "out")
    for key in ("keep", "recovery", "criterion"):
        del made[key]
    return made | {"criterion": {"probe_per_class": 100}, "budget": {"macs": 0.5}, "export": {"latency_batches": [1]}}


def run(content: dict[str, Any], out: Path, until: str = "evaluate", **changed: Any) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        return pipeline.run(Recipe.model_validate({**content, "out": str(out), **changed}), until)


@pytest.fixture(scope="module", name="half")
def half_run(content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("half")
    return out / "tiny", run(content, out, "run")


def test_the_road_ends_within_the_budget(content: dict[str, Any], half: tuple[Path, dict[str, Any]]) -> None:
    folder, made = half
    dense, slim = (
        opening.open_model(Recipe.model_validate(content).model, torch.device("cpu")).model,
        vitprune.load(folder),
    )
    file = json.loads((folder / "stages" / "export" / "all.json").read_text())["files"][0]
    assert file["macs"] == size.macs(slim, shortcut=True) < size.macs(slim) and file["shortcut"]
    assert 0.4 < file["macs"] / size.macs(dense) <= 0.5
    assert made["model"]["macs_exported"] == file["macs"] and made["model"]["macs_slim"] == size.macs(slim)
    said = [
        note for note in made["notes"] if note.startswith("Budget: 50 % of the multiply-adds is that of the ONNX files")
    ]
    assert len(said) == 1 and f"{100 * size.macs(slim) / size.macs(dense):.1f} %" in said[0]
    held = [check for check in made["checks"] if check["name"] == "budget of the ONNX file"]
    assert [(check["value"], check["limit"]) for check in held] == [(file["macs"] / size.macs(dense), 0.5)]
    told = json.loads((folder / "config.json").read_text())["vitprune"]
    sizes = {site.path: [site.heads, site.dim] for site in attention_sites(slim)}
    whole = {site.path: [site.heads, site.dim] for site in attention_sites(dense)}
    assert sizes != whole and told["attention"] == sizes and told["budget"] == {"macs": 0.5} and told["keep"] is None
    assert all(check["passed"] for check in made["checks"]), made["checks"]
    small = {path: sizes[path] for path in sizes if sizes[path] != whole[path]}
    assert {path: size_of["slim"] for path, size_of in made["model"]["attention"].items()} == small
    ours = [row for row in made["rows"] if row["criterion"] == "fisher-obs"]
    assert {row["keep"] for row in made["rows"] if row["criterion"] != "dense"} == {None}
    assert {row["allocation"] for row in made["rows"] if row["criterion"] != "dense"} == {"whole"}
    assert {row["macs"] for row in made["rows"] if row["criterion"] != "dense"} == {size.macs(slim)}
    assert [row["recovery"] for row in ours] == ["none", "layerwise+head"]


@pytest.mark.parametrize("export", [{"onnx": False}, {"shortcut": False, "latency_batches": [1]}])
def test_without_the_shortcut_the_checkpoint_is_within_the_budget(
    content: dict[str, Any], tmp_path: Path, export: dict[str, Any]
) -> None:
    made = run(content, tmp_path, export=export)
    assert made["model"]["macs_slim"] <= 0.5 * made["model"]["macs_dense"]


def test_masked_is_sliced_where_attention_is_small(half: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = half
    found = json.loads((folder / "stages" / "prune" / "all.json").read_text())
    assert found["attention"] and found["masked_vs_sliced"] < 1e-4


def test_the_plan_that_is_read_again_is_the_exported_one(
    content: dict[str, Any], half: tuple[Path, dict[str, Any]]
) -> None:
    folder, _ = half
    made = Recipe.model_validate({**content, "out": str(folder.parent)})
    with Run.open(made, "cpu", Reporter(quiet=True)) as opened:
        plan = exported_mask(opened, None, opened.classes.every())
        slim = vitprune.load(folder)
        assert plan.widths == {site.name: site.size for site in families.ffn_sites(slim)}
        sizes = {site.name: (site.heads, site.dim) for site in attention_sites(slim)}
        assert {name: (cut.heads, cut.dim) for name, cut in plan.attention.items()}.items() <= sizes.items()


def test_the_same_command_does_nothing_and_another_budget_keeps_the_curves(
    content: dict[str, Any], tmp_path: Path
) -> None:
    run(content, tmp_path)
    curves = tmp_path / "tiny" / "stages" / "discover" / "attention-of-all.safetensors"
    before = curves.stat().st_mtime_ns
    weights = load_file(tmp_path / "tiny" / "model.safetensors")
    run(content, tmp_path)
    assert all(torch.equal(x, weights[k]) for k, x in load_file(tmp_path / "tiny" / "model.safetensors").items())
    run(content, tmp_path, budget={"params": 0.6})
    dense = opening.open_model(Recipe.model_validate(content).model, torch.device("cpu")).model
    assert size.parameters(vitprune.load(tmp_path / "tiny")) <= 0.6 * size.parameters(dense)
    assert curves.stat().st_mtime_ns == before


def test_ffn_alone_leaves_attention_whole(content: dict[str, Any], tmp_path: Path) -> None:
    run(content, tmp_path, budget={"macs": 0.8}, prune=["ffn"])
    told = json.loads((tmp_path / "tiny" / "config.json").read_text())["vitprune"]
    assert "attention" not in told and not (tmp_path / "tiny/stages/discover/attention-of-all.safetensors").exists()
    with pytest.raises(UserError, match=r"budget: macs: 0.05 is below what is left of this model"):
        run(content, tmp_path, budget={"macs": 0.05}, prune=["ffn"])


def test_a_family_without_such_attention_prunes_its_ffns_and_says_so(content: dict[str, Any], tmp_path: Path) -> None:
    small = {"img_size": 16, "window_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]}
    made = run(of_timm(content, "swin_tiny_patch4_window7_224", small), tmp_path)
    assert any(note.startswith("Default prune: [ffn] and not [ffn, attention]") for note in made["notes"])
    with pytest.raises(UserError, match="attention"):
        run(of_timm(content, "swin_tiny_patch4_window7_224", small), tmp_path, prune=["ffn", "attention"])


def of_timm(content: dict[str, Any], name: str, small: dict[str, Any], macs: float = 0.8) -> dict[str, Any]:
    """The recipe with a fresh model of timm's."""
    model = {"name": name, "args": small | {"in_chans": 1, "num_classes": 3}}
    content = {**content, "model": model, "baselines": [], "budget": {"macs": macs}}
    return content | {"data": {**content["data"], "labels": "by-order"}}


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "vit_relpos_small_patch16_rpn_224"])
def test_other_families_go_the_road_too(content: dict[str, Any], tmp_path: Path, name: str) -> None:
    """Values narrower than queries under rotary embeddings; blocks that do not come in halves, so repaired by `affine`."""
    small = {"img_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 8}
    made = run(of_timm(content, name, small, 0.5), tmp_path, "run")
    assert all(check["passed"] for check in made["checks"]), made["checks"]
    slim = vitprune.load(tmp_path / "tiny")
    found = json.loads((tmp_path / "tiny" / "config.json").read_text())["vitprune"]["attention"]
    assert found == {path: list(state) for path, state in attention.slim(slim).items()}
    told = {path: one["slim"] for path, one in made["model"]["attention"].items()}
    assert told and told.items() <= found.items()
    again = json.loads((tmp_path / "tiny" / "stages" / "prune" / "all.json").read_text())
    assert again["masked_vs_sliced"] < 1e-4
    assert {len(state) for state in found.values()} <= ({2, 3} if name.startswith("eva") else {2})


def test_queries_may_keep_other_dimensions_than_values(content: dict[str, Any], tmp_path: Path) -> None:
    made = run(content, tmp_path, attention_dims="free", budget={"macs": 0.45})
    slim = vitprune.load(tmp_path / "tiny")
    assert any(len(one["slim"]) == 3 for one in made["model"]["attention"].values()), made["model"]["attention"]
    dense = opening.open_model(Recipe.model_validate(content).model, torch.device("cpu")).model
    assert size.macs(slim, shortcut=True) <= 0.45 * size.macs(dense)
    asked = {**content, "out": str(tmp_path), "attention_dims": "free", "budget": {"macs": 0.45}}
    with Run.open(Recipe.model_validate(asked), "cpu", Reporter(quiet=True)) as opened:
        plan = exported_mask(opened, None, opened.classes.every())
        told = {name: list(cut.curve.site.state(*cut.sizes)) for name, cut in plan.attention.items()}
    assert told == {path: one["slim"] for path, one in made["model"]["attention"].items()}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"keep": 0.5}, "give `keep` or a mapping"),
        ({"rounds": 2}, "`rounds` does not go with"),
        ({"allocation": "uniform"}, "`allocation` does not go with"),
        ({"criterion": {"name": "jas"}}, "`jas` scores hidden units alone"),
        ({"criterion": {"name": "auto"}}, "`auto` scores hidden units alone"),
        ({"budget": {"macs": 0.5, "params": 0.5}}, "a budget of one thing"),
        ({"budget": {}}, "a budget of one thing"),
        ({"budget": {"macs": 1.5}}, "less than or equal to 1"),
        ({"budget": {"flops": 0.5}}, "Extra inputs"),
        ({"prune": ["attention"]}, "`prune` is"),
        ({"prune": ["ffn", "depth"]}, "`prune` is"),
        ({"prune": ["ffn", "attention", "depth"], "budget": {"latency": 0.5}}, "`prune: depth` does not go with"),
        ({"prune": ["ffn"], "attention_dims": "free"}, "`attention_dims` goes with"),
        ({"whole": {"macs": 0.5}}, "not both"),
    ],
)
def test_what_does_not_go_together_is_refused(content: dict[str, Any], changed: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Recipe.model_validate(content | changed)


def test_attention_needs_a_budget_of_the_whole(content: dict[str, Any]) -> None:
    plain = {key: value for key, value in content.items() if key != "budget"} | {"keep": 0.5}
    with pytest.raises(ValueError, match="goes with a budget of the whole model"):
        Recipe.model_validate(plain | {"prune": ["ffn", "attention"]})
