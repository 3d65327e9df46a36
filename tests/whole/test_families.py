"""Every family of `vitprune models` goes the whole road as a tiny model with random weights; what passed is written down.

With VITPRUNE_FAMILY_TABLE set to a path, the stages that each name passed go there as JSON: `make docs-table` makes the
table of the docs from it.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import family_table
import pytest
import torch
from small import image_folder, plan_for, quicken, recipe_dict
from torch import Tensor, nn
from torch.onnx._internal.exporter import _registration
from typer.testing import CliRunner

import vitprune
from vitprune.cli import app, listing
from vitprune.core.errors import UserError
from vitprune.criteria.attribution.jas import jas
from vitprune.criteria.attribution.jas_plain import jas_plain
from vitprune.criteria.attribution.settings import Jas
from vitprune.criteria.catalog import CRITERIA
from vitprune.deploy.onnx import exporting
from vitprune.deploy.onnx import precision as onnx_precision
from vitprune.model import classifier, families
from vitprune.model.inside import blockwise
from vitprune.model.load import opening, saving
from vitprune.model.load.loaded import Loaded
from vitprune.model.sites import attention
from vitprune.pruning import surgery
from vitprune.pruning.plan import Plan
from vitprune.recipe import inputs, recipe
from vitprune.runs import pipeline

PLAIN = {"img_size": 16, "patch_size": 8, "in_chans": 3, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
SWIN = {
    "img_size": 16, "patch_size": 4, "window_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2],
    "num_classes": 5,
}  # fmt: skip
HF = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 16,
    "patch_size": 8, "num_classes": 5,
}  # fmt: skip
DINO = {k: v for k, v in HF.items() if k != "intermediate_size"} | {"mlp_ratio": 2}
TINY: dict[str, dict[str, Any]] = {
    "vit_giant_patch14_dinov2": PLAIN | {"mlp_ratio": 4.0},
    "naflexvit_base_patch16_gap": PLAIN | {"pos_embed_grid_size": [2, 2]},
    "naflexvit_base_patch16_siglip": PLAIN | {"pos_embed_grid_size": [2, 2]},
    "hiera_tiny_224": {
        "img_size": 32, "embed_dim": 8, "stages": [1, 1], "q_pool": 1, "num_heads": 1, "num_classes": 5,
    },
    "swin_tiny_patch4_window7_224": SWIN,
    "swinv2_tiny_window8_256": SWIN,
    "torchvision:vit_b_16": {
        "image_size": 16, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 24,
        "num_classes": 5,
    },
    "transformers:ViTForImageClassification": HF,
    "transformers:DeiTForImageClassificationWithTeacher": HF,
    "transformers:Dinov2ForImageClassification": DINO,
    "transformers:Dinov2WithRegistersForImageClassification": DINO,
}  # fmt: skip
FAMILY_OF = {name: family for family, row in families.FAMILIES.items() for name in row.names}
NAMES = list(FAMILY_OF)
LABELS = torch.arange(10) % 5
ROWS = {row["family"]: row for row in listing.families()}
passed: dict[str, dict[str, str]] = {}

each_name = pytest.mark.parametrize("name", NAMES)


def spec(name: str, depth: int = 2) -> inputs.Model:
    args = TINY.get(name, PLAIN)
    return inputs.Model(name=name, args=args | {"depth": depth} if "depth" in args else args)


@functools.cache
def opened(name: str, depth: int = 2) -> Loaded:
    """The tiny model of a name with weights that are not trivial, as a recipe opens it; float32."""
    if name.startswith("transformers:"):
        pytest.importorskip("transformers", reason="the extra `transformers` is not installed")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        loaded = opening.open_model(spec(name, depth))
    draw = torch.Generator().manual_seed(4)
    for key, weight in loaded.model.named_parameters():
        scale = 1 / weight[0].numel() ** 0.5 if weight.ndim > 1 and "token" not in key and "pos" not in key else 0.3
        weight.add_(scale * torch.randn(weight.shape, generator=draw))
    return loaded


@functools.cache
def double(name: str) -> nn.Module:
    return opening.open_model(spec(name)).model.double()


def in_double(name: str) -> nn.Module:
    """The same in float64."""
    single = opened(name).model
    made = double(name)
    made.load_state_dict(single.state_dict())
    return made.eval().requires_grad_(False)


def images_for(model: nn.Module, count: int = 10) -> Tensor:
    weight = next(model.parameters())
    draw = torch.Generator().manual_seed(5)
    return torch.randn(count, *families.input_shape(model), generator=draw).to(weight)


def ragged(model: nn.Module) -> Plan:
    """About half of each FFN's units, as many of none as of another where the widths are the same."""
    draw, blocks = torch.Generator().manual_seed(6), []
    for i, site in enumerate(families.ffn_sites(model)):
        keep = torch.zeros(site.size, dtype=torch.bool)
        keep[torch.randperm(site.size, generator=draw)[: site.size // 2 + i]] = True
        blocks.append(keep)
    return plan_for(model, blocks)


@each_name
def test_a_specialists_head_has_its_rows(name: str, tmp_path: Path) -> None:
    """`head: own`: the outputs that stay are what they were, or the classifier is refused by its kind."""
    model = copy.deepcopy(opened(name).model)
    images = images_for(model, 2)
    whole = model(images)
    classifier.narrow(model, [3, 1])
    assert model.num_classes == 2
    torch.testing.assert_close(model(images), whole[:, [3, 1]])
    loaded = dataclasses.replace(opened(name), model=model, labels=["three", "one"])
    saving.save(tmp_path / "own", loaded, model, {})
    torch.testing.assert_close(vitprune.load(tmp_path / "own")(images), whole[:, [3, 1]])


@functools.cache
def slim_of(name: str, depth: int = 2) -> nn.Module:
    """What the later stages work with: half of the units, refitted."""
    model = opened(name, depth).model
    found = vitprune.discover(model, images_for(model), LABELS, criterion="variance", t=1)
    return vitprune.prune(model, found, keep=0.5, images=images_for(model), recovery="affine")


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    """Writes what passed where it is asked for."""
    yield
    if path := os.environ.get("VITPRUNE_FAMILY_TABLE"):
        rows = [{**row, "stages": {n: passed.get(n, {}) for n in row["names"]}} for row in ROWS.values()]
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(rows, indent=1) + "\n")


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Callable[[str, str, str], None]:
    def write(name: str, stage: str, seen: str) -> None:
        passed.setdefault(name, {})[stage] = seen

    return write


@each_name
def test_discover(name, note):
    """What the table says applies does, and gives finite scores of every unit; the rest is refused before any work."""
    row, model = ROWS[FAMILY_OF[name]], opened(name).model
    images = images_for(model)
    done = 0
    for criterion in [*CRITERIA, "random"]:
        quick = {"t": 3, "nodes": 2, "epochs": 1, "batch": 5}
        quick |= {"shortlist": 2} if criterion == "knowledge-attribution" else {}
        if criterion not in row["criteria"]:
            with pytest.raises(UserError, match=criterion):
                vitprune.discover(model, images, LABELS, criterion=criterion, **quick)
        if criterion in row["all_tokens_only"]:
            quick["tokens"] = "all"
        elif criterion not in row["criteria"]:
            continue
        if criterion in ("hessian", "vit-slim", "fisher-obs", "joint-gates", "influence-gradient", "taylor"):
            images_, labels = images[:5], LABELS[:5]
        else:
            images_, labels = images, LABELS
        found = vitprune.discover(model, images_, labels, criterion=criterion, **quick)
        assert [b.shape[1] for b in found.rows] == [site.size for site in families.ffn_sites(model)], criterion
        assert all(bool(b.isfinite().all()) for b in found.rows), criterion
        assert criterion == "vit-slim" or any(float(b.std()) > 0 for b in found.rows), criterion
        done += 1
    note(name, "discover", f"{done} criteria")


@each_name
def test_halves_are_the_model(name):
    """Where blocks come in halves, both together are the model, and the fast engine finds what full passes find."""
    model = in_double(name)
    parts = blockwise.halves(model)
    assert (parts is not None) == families.FAMILIES[FAMILY_OF[name]].halves
    if parts is None:
        return
    images = images_for(model, 2)
    x = parts.stream_into_blocks(images)
    for i in range(len(parts.blocks)):
        z = parts.attend(i, x)
        assert torch.allclose(parts.attend_first(i, x), z[:, :1], atol=1e-12)
        x = parts.add_ffn(i, z, parts.hidden(i, z))
    assert relative(parts.logits(x), model(images)) < 1e-12
    how = Jas(tokens="all", quadrature="right", nodes=2)
    fast = jas(model, families.ffn_sites(model), images, LABELS[:2], ts=[3], how=how)[3]
    slow = jas_plain(model, families.ffn_sites(model), images, LABELS[:2], t=3, how=how)
    assert all(relative(a, b) < 1e-8 for a, b in zip(fast, slow, strict=True))


@each_name
def test_masked_is_sliced(name, note):
    """The slim model is the masked one, in both precisions; keeping everything changes nothing."""
    for model, bound in ((opened(name).model, 1e-5), (in_double(name), 1e-10)):
        images, mask = images_for(model, 4), ragged(model)
        seen = surgery.masked_vs_sliced(model, mask, images)
        slim = surgery.slim(model, mask)
        assert seen < bound
        assert [site.size for site in families.ffn_sites(slim)] == list(mask.widths.values())
        assert relative(slim(images), model(images)) > 1e-4  # what was removed did something
        everything = plan_for(model, [torch.ones_like(keep) for keep in mask.masks])
        assert torch.equal(surgery.slim(model, everything)(images), model(images))
        assert sum(p.numel() for p in slim.parameters()) < sum(p.numel() for p in model.parameters())
    note(name, "prune", f"{seen:.0e}")


@each_name
def test_repairs(name, note):
    """Every repair of the table comes closer to the dense model than none; the others are refused."""
    row, model = ROWS[FAMILY_OF[name]], in_double(name)
    images = images_for(model, 24)
    found = vitprune.discover(model, images[:10], LABELS, criterion="variance", t=1)
    gap, dense = {}, model(images)
    for how in ("none", "affine", "sequential", "layerwise"):
        if how not in row["repairs"]:
            with pytest.raises(UserError, match="block by block"):
                vitprune.prune(model, found, keep=0.5, recovery=how, images=images)
            continue
        slim = vitprune.prune(model, found, keep=0.5, recovery=how, images=images)
        gap[how] = float((slim(images) - dense).norm())
    assert all(value < 0.8 * gap["none"] for how, value in gap.items() if how != "none"), gap
    note(name, "repair", ", ".join(how for how in gap if how != "none"))


@each_name
def test_save_and_load(name, note, tmp_path):
    """A folder gives the same model back, even and ragged widths; loaded and saved again it is the same bytes."""
    loaded = opened(name)
    for where, slim in (("even", slim_of(name)), ("ragged", surgery.slim(loaded.model, ragged(loaded.model)))):
        saving.save(tmp_path / where, loaded, slim, {"note": "tiny"})
        back = vitprune.load(tmp_path / where)
        images = images_for(loaded.model, 3)
        assert torch.equal(back(images), slim(images))
        again = opening.open_model(inputs.Model(name=f"local-dir:{tmp_path / where}"))
        assert (again.outputs, families.input_shape(again.model)) == (5, families.input_shape(loaded.model))
        saving.save(tmp_path / "again", again, again.model, again.about)
        for file in ("config.json", "model.safetensors"):
            assert (tmp_path / where / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    note(name, "save, load", "the same")


@pytest.fixture
def one_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter reads all its operators' sources at every export, a third of the time: once is enough here."""
    monkeypatch.setattr(_registration.ONNXRegistry, "from_torchlib", staticmethod(operators))


from_torchlib = _registration.ONNXRegistry.from_torchlib


@functools.cache
def operators(opset_version: int) -> Any:
    return from_torchlib(opset_version=opset_version)


@pytest.mark.parametrize("name", [row.names[0] for row in families.FAMILIES.values()])
@pytest.mark.usefixtures("one_registry")
@pytest.mark.sample(6)
def test_onnx_parity(name, note, tmp_path, monkeypatch):
    """Every precision once per family, one block where there is a choice: the conversion is what takes long here."""
    monkeypatch.setattr(onnx_precision, "opens", lambda path: None)  # a crash would be seen here as well
    slim = slim_of(name, 1)
    images, files = images_for(slim, 14), {p: tmp_path / f"{p}.onnx" for p in ("ONNX", "fp16", "int8")}
    vitprune.export(slim, files["ONNX"])
    onnx_precision.to_fp16(files["ONNX"], files["fp16"])
    labels, parts = slim(images).argmax(1).numpy(), [images[:7].numpy(), images[7:].numpy()]
    onnx_precision.to_int8(files["ONNX"], files["int8"], parts, parts, labels, 100.0)
    for precision, bound in (("ONNX", 1e-4), ("fp16", 1e-2), ("int8", 0.2)):
        differences = exporting.parity(slim, files[precision], images[:7])
        assert set(differences) == {1, 2, 7}
        worst = max(differences.values()) / float(slim(images).abs().max())
        assert worst < bound, precision
        note(name, precision, f"{worst:.0e}")


@pytest.mark.usefixtures("one_registry")
@pytest.mark.slow
def test_int8_of_a_fresh_model_with_many_blocks(tmp_path):
    """Equal biases are stored once; onnxruntime's copies of the shared `cat_1` were called `cat_12`, as a value was."""
    args = PLAIN | {"depth": 6}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = opening.open_model(inputs.Model(name="eva02_tiny_patch14_224", args=args)).model
    images = images_for(model, 4)
    exporting.export(model, tmp_path / "m.onnx", {})
    parts, labels = [images.numpy()], model(images).argmax(1).numpy()
    sweep = onnx_precision.to_int8(tmp_path / "m.onnx", tmp_path / "int8.onnx", parts, parts, labels, 100.0)
    assert sweep.quantized == 26 and not sweep.excluded


def test_the_command_lists_what_is_tested_here():
    shown = CliRunner().invoke(app.app, ["models", "--json"])
    rows = json.loads(shown.stdout)
    assert {row["family"] for row in rows} == set(families.FAMILIES)
    assert sorted(name for row in rows for name in row["names"]) == sorted(NAMES)
    by_name = {row["family"]: row for row in rows}
    assert set(by_name["vit"]["criteria"]) == {*CRITERIA, "random"}
    assert "jas" in by_name["swin"]["all_tokens_only"]
    assert "activation" not in by_name["swin"]["criteria"] + by_name["swin"]["all_tokens_only"]
    assert set(by_name["vit"]["repairs"]) - set(by_name["swin"]["repairs"]) == {
        "sequential", "layerwise", "layerwise+head", "sequential+distill", "layerwise+distill",
    }  # fmt: skip
    lines = CliRunner().invoke(app.app, ["models"]).stdout
    assert all(name in lines for name in NAMES)


@each_name
def test_the_table_says_what_of_the_attention_stays(name):
    row, found = ROWS[FAMILY_OF[name]], attention.stays(opened(name).model)
    assert row["sites"] == {"ffn": None} | {kind: found.get(kind) for kind in ("values", "query_keys", "heads")}


def test_vit_deit_dinov2_clip_and_siglip_have_every_kind_of_site():
    for family in ("vit", "deit", "deit-distilled", "deit3", "dinov2", "dinov2-reg", "clip", "siglip"):
        assert set(ROWS[family]["sites"].values()) == {None}


def test_the_docs_tables_are_current():
    docs = Path(__file__).parents[2] / "docs"
    rows = json.loads((docs / "families.json").read_text())
    assert [{key: value for key, value in row.items() if key != "stages"} for row in rows] == list(ROWS.values())
    assert (docs / "families.md").read_text() == family_table.markdown(rows)


def test_the_docs_table_says_what_passed_and_what_did_not():
    rows = [{**row, "stages": {name: {} for name in row["names"]}} for row in ROWS.values()]
    rows[0]["stages"]["vit_tiny_patch16_224"] = {"prune": "3e-16", "ONNX": "2e-07"}
    text = family_table.markdown(rows)
    assert "| ViT, class token | `vit_tiny_patch16_224` | – | 3e-16 | – | – | 2e-07 |" in text
    assert all(f"`{name}`" in text for name in NAMES)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "eva02_base_patch14_224"])
def test_a_whole_run(name, tmp_path, monkeypatch):
    """From a recipe to a folder that loads; a criterion that cannot look at the model is refused before any work."""
    quicken(monkeypatch)
    content = recipe_dict("", image_folder(tmp_path / "images", 6, "RGB"), tmp_path / "out")
    content["model"] = {"name": name, "args": TINY.get(name, PLAIN) | {"num_classes": 3}}
    content["baselines"] = ["random"]
    content["criterion"] |= {"tokens": "cls"}
    with pytest.raises(UserError, match=r"criterion `jas`: .*take tokens: all"):
        pipeline.run(recipe.Recipe.model_validate(content))
    assert not (tmp_path / "out" / "tiny" / "stages" / "discover").exists()
    content["criterion"] |= {"name": "auto", "among": ["activation", "jas", "variance", "mean-activation"]}
    content["criterion"].pop("tokens")
    made = pipeline.run(recipe.Recipe.model_validate(content))
    assert made["recipe"]["criterion"]["name"] in ("jas", "variance", "mean-activation")
    assert made["recipe"]["criterion"]["tokens"] == "all"
    assert any("`auto` does not try `activation`" in note for note in made["notes"])
    slim = vitprune.load(tmp_path / "out" / "tiny")
    loaded = opened(name)
    assert [2 * site.size for site in families.ffn_sites(slim)] == loaded.widths
    baselines = content | {"baselines": ["activation"]}
    with pytest.raises(UserError, match=r"criterion `activation`: .*vitprune models"):
        pipeline.run(recipe.Recipe.model_validate(baselines))
