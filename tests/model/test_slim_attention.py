"""Slim attention on disk, in ONNX and at the library's door: what is saved comes back, what does not fit is one line."""

from __future__ import annotations

import copy
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from small import LABELS, change_json, config, image_folder, model_folder, recipe_dict, tiny_model
from torch import Tensor, nn

import vitprune
from vitprune.core.errors import UserError
from vitprune.criteria.statistics import attention as statistics
from vitprune.criteria.statistics import attention_curve
from vitprune.deploy import predict, runtime
from vitprune.deploy.onnx import exporting, precision
from vitprune.model import families
from vitprune.model import size as model_size
from vitprune.model.load import opening, saving
from vitprune.model.load.loaded import Loaded
from vitprune.model.sites import attention
from vitprune.model.sites.base import resize
from vitprune.model.sites.ffn import linear
from vitprune.pruning import slim_attention
from vitprune.recipe import inputs, model_files
from vitprune.recipe.recipe import Recipe
from vitprune.report.card import write_cards
from vitprune.runs import pipeline
from vitprune.runs.state import skeleton
from vitprune.runs.state.run import Run

States = list[tuple[int, int]]
DEPTH = 4
DIFFERENT: States = [(2, 4), (1, 8), (2, 8), (1, 4)]
EVERY: list[States] = [DIFFERENT, [(1, 4)] * 4, [(2, 4), (0, 0), (1, 8), (2, 8)]]


def images(count: int = 7, channels: int = 1) -> Tensor:
    return torch.randn(count, channels, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four blocks of two heads of eight dimensions, as timm writes them."""
    path = tmp_path / "model"
    path.mkdir()
    made = config()
    made["model_args"]["depth"] = DEPTH
    save_file(tiny_model(depth=DEPTH).state_dict(), path / "model.safetensors", {"format": "pt"})
    (path / "config.json").write_text(json.dumps(made))
    return path


def opened(folder: Path) -> Loaded:
    return opening.open_model(inputs.Model(name=f"local-dir:{folder}"))


def made_slim(model: nn.Module, states: States, seed: int = 1) -> nn.Module:
    """A copy with attention of these shapes, its weights drawn anew."""
    slim = copy.deepcopy(model)
    draw = torch.Generator().manual_seed(seed)
    for site, (heads, dim) in zip(attention.attention_sites(model), states, strict=True):
        attention.resize(slim, site, heads, dim)
        for weight in slim.get_submodule(site.path).parameters():
            weight.requires_grad_(False).copy_(0.4 * torch.randn(weight.shape, generator=draw))
    return slim.eval().requires_grad_(False)


def saved(folder: Path, target: Path, states: States = DIFFERENT, widths: tuple[int, ...] = ()) -> nn.Module:
    loaded = opened(folder)
    slim = made_slim(loaded.model, states)
    for site, width in zip(families.ffn_sites(slim), widths, strict=False):
        resize(slim, site, width)
    saving.save(target, loaded, slim, {"classes": ["circle"]})
    return slim


def refusal(action: Any) -> str:
    with pytest.raises(UserError) as caught:
        action()
    text = str(caught.value)
    assert len(text.splitlines()) == 1 and len(text) < 600
    return text


def unsigned(folder: Path, change: Any) -> None:
    """Change the configuration and take its checksums away."""

    def both(content: dict[str, Any]) -> None:
        content["vitprune"] = {k: v for k, v in content.get("vitprune", {}).items() if "sha256" not in k}
        change(content["vitprune"])

    change_json(folder / "config.json", both)


# ---- on disk


@pytest.mark.parametrize("widths", [(), (5, 64, 7, 64), (16, 16, 16, 16)], ids=str)
@pytest.mark.parametrize("states", EVERY, ids=str)
def test_slim_attention_comes_back_to_equal_outputs(
    folder: Path, tmp_path: Path, states: States, widths: tuple[int, ...]
) -> None:
    slim = saved(folder, tmp_path / "slim", states, widths)
    back = vitprune.load(tmp_path / "slim")
    assert torch.equal(back(images()), slim(images()))
    assert attention.slim(back) == {f"blocks.{i}.attn": state for i, state in enumerate(states)}
    assert [(a.heads, a.dim) for a in attention.attention_sites(back)] == [s for s in states if s != (0, 0)]
    block = json.loads((tmp_path / "slim" / "config.json").read_text())["vitprune"]
    assert block["attention"] == {f"blocks.{i}.attn": list(state) for i, state in enumerate(states)}
    bare = skeleton.opened(inputs.Model(name=f"local-dir:{tmp_path / 'slim'}"))
    assert attention.slim(bare.model) == attention.slim(back)
    assert {k: v.shape for k, v in bare.model.state_dict().items()} == {
        k: v.shape for k, v in back.state_dict().items()
    }


@pytest.mark.parametrize("states", EVERY, ids=str)
def test_saved_again_it_is_the_same_bytes(folder: Path, tmp_path: Path, states: States) -> None:
    saved(folder, tmp_path / "a", states)
    loaded = opened(tmp_path / "a")
    assert loaded.about == {"classes": ["circle"]}
    saving.save(tmp_path / "b", loaded, loaded.model, loaded.about)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("states", EVERY, ids=str)
@pytest.mark.parametrize("widths", [(), (16, 16, 16, 16)], ids=str)
def test_plain_timm_does_not_load_it_in_silence(
    folder: Path, tmp_path: Path, states: States, widths: tuple[int, ...]
) -> None:
    saved(folder, tmp_path / "slim", states, widths)
    with pytest.raises(TypeError, match="need_vitprune_load"):
        timm.create_model(f"local-dir:{tmp_path / 'slim'}", pretrained=True)


def test_whole_attention_is_saved_as_it_ever_was(folder: Path, tmp_path: Path) -> None:
    slim = saved(folder, tmp_path / "slim", [(2, 8)] * 4, (16, 16, 16, 16))
    assert "attention" not in json.loads((tmp_path / "slim" / "config.json").read_text())["vitprune"]
    theirs = timm.create_model(f"local-dir:{tmp_path / 'slim'}", pretrained=True).eval()
    assert torch.equal(theirs(images()), slim(images()))


@pytest.mark.parametrize("changed", [{"qk_norm": True}, {"qkv_bias": False}, {"proj_bias": False}], ids=str)
def test_heads_of_other_attentions_come_back(tmp_path: Path, changed: dict[str, Any]) -> None:
    folder = model_folder(tmp_path / "m")
    save_file(tiny_model(**changed).state_dict(), folder / "model.safetensors", {"format": "pt"})
    change_json(folder / "config.json", lambda c: c["model_args"].update(changed))
    slim = saved(folder, tmp_path / "slim", [(1, 8), (2, 8)])
    assert torch.equal(vitprune.load(tmp_path / "slim")(images()), slim(images()))


def test_a_run_knows_models_apart_that_differ_in_their_heads_alone(folder: Path, tmp_path: Path) -> None:
    saved(folder, tmp_path / "a", [(1, 8)] + [(2, 8)] * 3)
    saved(folder, tmp_path / "b", [(2, 4)] + [(2, 8)] * 3)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    digest: Any = Run.__dict__["model_digest"].func
    assert len({digest(SimpleNamespace(loaded=opened(tmp_path / name))) for name in "ab"}) == 2


# ---- hostile


@pytest.fixture
def frugal() -> Iterator[None]:
    """The test may neither take long nor fill the memory."""
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000
    assert time.monotonic() - started < 20


@pytest.mark.usefixtures("frugal")
@pytest.mark.parametrize(
    "given",
    [[], 3, "x", True, [[2, 4]], {"blocks.0.attn": 3}, {"blocks.0.attn": [2]}, {"blocks.0.attn": [2, 4, 4]},
     {"blocks.0.attn": [0, 8, 4]}, {"blocks.0.attn": [2, 8, 0]}, {"blocks.0.attn": [2, 9, 4]}, {"blocks.0.attn": [2, 8, 9]},
     {"blocks.0.attn": [2, 8, 4, 4]}, {"blocks.0.attn": [1 << 16, 1 << 16, 1]}, {"blocks.0.attn": [2, 8, True]},
     {"blocks.0.attn": "24"}, {"blocks.0.attn": [2.0, 4]}, {"blocks.0.attn": [True, 4]}, {"blocks.0.attn": [-1, 4]},
     {"blocks.0.attn": [0, 4]}, {"blocks.0.attn": [2, 0]}, {"blocks.0.attn": [None, None]}, {"blocks.0.attn": {"0": 1}},
     {"blocks.0.attn": [1 << 40, 1 << 40]}, {"blocks.0.attn": [1 << 16, 1 << 16]}, {"blocks.0.attn": [3, 4]},
     {"blocks.0.attn": [2, 9]}, {"blocks.0.attn": [1, 16]}, {"blocks.4.attn": [2, 4]}, {"blocks.0": [2, 4]},
     {"blocks.0.attn.qkv": [2, 4]}, {"": [2, 4]}, {"x\ny" * 5000: [2, 4]}, {f"b{i}": [1, 1] for i in range(5000)}],
    ids=lambda v: str(v)[:30],
)  # fmt: skip
def test_attention_that_no_model_has(folder: Path, given: Any) -> None:
    unsigned(folder, lambda block: block.update(attention=given))
    said = refusal(lambda: vitprune.load(folder))
    assert "config.json: vitprune.attention" in said
    assert refusal(lambda: skeleton.opened(inputs.Model(name=f"local-dir:{folder}"))) == said
    if given != {"blocks.0.attn": [1, 16]}:  # as many rows as two heads of eight have: that only the built model tells
        assert "vitprune.attention" in refusal(lambda: model_files.in_folder(folder, False))


@pytest.mark.parametrize("state", [[2, 8], [1, 4], [2, 2], [0, 0]], ids=str)
def test_attention_of_another_shape_than_the_weights(folder: Path, tmp_path: Path, state: list[int]) -> None:
    saved(folder, tmp_path / "slim")
    unsigned(tmp_path / "slim", lambda block: block["attention"].update({"blocks.0.attn": state}))
    assert "config.json says" in refusal(lambda: vitprune.load(tmp_path / "slim"))
    assert "vitprune.attention says" in refusal(lambda: model_files.in_folder(tmp_path / "slim", False))


def test_slim_weights_without_a_word_of_it(folder: Path, tmp_path: Path) -> None:
    saved(folder, tmp_path / "slim")
    unsigned(tmp_path / "slim", lambda block: block.pop("attention"))
    assert "blocks.0.attn" in refusal(lambda: vitprune.load(tmp_path / "slim"))


def test_dimensions_behind_a_norm_stay_whole(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    change_json(folder / "config.json", lambda c: c["model_args"].update(qk_norm=True))
    save_file(tiny_model(qk_norm=True).state_dict(), folder / "model.safetensors", {"format": "pt"})
    unsigned(folder, lambda block: block.update(attention={"blocks.0.attn": [2, 4]}))
    assert "blocks.0.attn has 2 heads of 8 dimensions, of which not all can go" in refusal(
        lambda: vitprune.load(folder)
    )


def test_a_model_of_another_attention(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    change_json(folder / "config.json", lambda c: c.update(architecture="swin_tiny_patch4_window7_224", model_args={}))
    unsigned(folder, lambda block: block.update(attention={"layers.0.blocks.0.attn": [2, 4]}))
    assert "config.json" in refusal(lambda: vitprune.load(folder))


# ---- what a check and the card say of it


def test_a_recipes_check_reads_it(folder: Path, tmp_path: Path) -> None:
    saved(folder, tmp_path / "slim", EVERY[2], (16, 16, 16, 16))
    found = model_files.model(inputs.Model(name=f"local-dir:{tmp_path / 'slim'}"))
    assert (found.outputs, found.widths, found.names) == (3, [16] * 4, list(LABELS))


def test_the_card_says_what_it_is_and_what_loads_it(folder: Path, tmp_path: Path) -> None:
    saved(folder, tmp_path / "slim", EVERY[2], (16, 16, 16, 16))
    (path,) = write_cards({"name": "tiny", "result": {"kept": 0.25}}, tmp_path / "slim")
    text = path.read_text()
    assert "heads × dimensions of a head by block: 2 × 4, none, 1 × 8, 2 × 8." in text
    assert "library_name: vitprune" in text and "vitprune.load" in text and "local-dir:" not in text
    assert "fewer heads or dimensions" in text


# ---- at the door


def test_the_library_takes_it(folder: Path, tmp_path: Path) -> None:
    saved(folder, tmp_path / "slim")
    model = vitprune.load(tmp_path / "slim")
    labels = model(images(12)).argmax(1)
    assert vitprune.evaluate(model, images(12), labels).top1 == 1.0
    scores = vitprune.discover(model, images(12), labels)
    smaller = vitprune.prune(model, scores, keep=0.5, images=images(12))
    assert sum(site.size for site in families.ffn_sites(smaller)) < 4 * 64
    assert attention.slim(smaller) == attention.slim(model) and [site.dim for site in attention.attention_sites(smaller)] == [
        4, 8, 8, 4,
    ]  # fmt: skip


def test_its_attention_is_made_smaller_again(folder: Path) -> None:
    model = made_slim(opened(folder).model, EVERY[2])
    sites, given = attention.attention_sites(model), images(24)
    assert [(site.block, site.heads, site.dim) for site in sites] == [(0, 2, 4), (2, 1, 8), (3, 2, 8)]
    batches = lambda: iter([(given, torch.arange(24) % 3)])  # noqa: E731
    _, moments = statistics.statistics(model, families.ffn_sites(model), sites, batches, 0)
    smaller = copy.deepcopy(model)
    for site, moment in zip(sites, moments, strict=True):
        curve = attention_curve.curve(site, linear(model, site.proj).weight.double(), moment, None)
        slim_attention.write(smaller, curve, 1, 4)
    assert list(attention.slim(smaller).values()) == [(1, 4), (0, 0), (1, 4), (1, 4)]
    assert smaller(given).isfinite().all()


@pytest.mark.usefixtures("quick")
def test_a_whole_run_prunes_it_again(folder: Path, tmp_path: Path) -> None:
    states = EVERY[2]
    saved(folder, tmp_path / "slim", states)
    content = recipe_dict(tmp_path / "slim", image_folder(tmp_path / "images", 6), tmp_path / "out")
    content |= {"criterion": {"name": "fisher-obs"}, "recovery": "layerwise", "baselines": []}
    content["export"] = {"onnx": True, "latency_batches": [1]}
    made = pipeline.run(Recipe.model_validate(content), device="cpu")
    assert made["checks"] and all(check["passed"] for check in made["checks"])
    assert made["notes"] == []
    out = next(path.parent for path in (tmp_path / "out").rglob("config.json"))
    assert attention.slim(vitprune.load(out)) == {f"blocks.{i}.attn": state for i, state in enumerate(states)}
    assert "fewer heads or dimensions" in (out / "README.md").read_text()
    files = sorted((tmp_path / "images").rglob("*.png"))[:3]
    answers = list(predict.predict(predict.open_model(out), files, 3, 2))
    assert len(answers) == 3 and answers[0]["top"]


@pytest.mark.parametrize("states", EVERY, ids=str)
def test_multiply_adds_and_parameters_are_those_of_the_slim_model(folder: Path, states: States) -> None:
    dense = opened(folder).model
    slim, sites = made_slim(dense, states), attention.attention_sites(dense)
    facts = model_size.size(slim)
    for counted, less in (
        (
            model_size.size(dense)["macs"]["total"] - facts["macs"]["total"],
            [s.macs(16, 17, 17, 2, 8) - s.macs(16, 17, 17, *state) for s, state in zip(sites, states, strict=True)],
        ),
        (
            model_size.parameters(dense) - model_size.parameters(slim),
            [s.parameters(dense, 2, 8) - s.parameters(dense, *state) for s, state in zip(sites, states, strict=True)],
        ),
    ):
        assert counted == sum(less)
    assert facts["widths"] == [64] * 4 and facts["macs"]["ffn"] == model_size.size(dense)["macs"]["ffn"]


# ---- in ONNX


@pytest.fixture(scope="module", params=EVERY, ids=str)
def onnx_file(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path, States]:
    model = made_slim(tiny_model(3, depth=DEPTH), request.param)
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    exporting.export(model, path, {"labels": list(LABELS)} | model_size.size(model))
    return model, path, request.param


def test_the_onnx_file_is_the_slim_model_in_every_batch(onnx_file: tuple[nn.Module, Path, States]) -> None:
    model, path, states = onnx_file
    found = exporting.parity(model, path, images(7, 3))
    assert found.keys() == {1, 2, 7} and max(found.values()) < 1e-4
    nodes, left = exporting.facts(path)["nodes"], sum(heads > 0 for heads, _ in states)
    assert (nodes["Attention"], nodes["Split"]) == (left, left) and not {"Softmax", "Slice"} & nodes.keys()
    assert json.loads(exporting.metadata(path)["macs"])["total"] == model_size.macs(model)


def test_half_precision_and_int8_of_it_are_checked(onnx_file: tuple[nn.Module, Path, States], tmp_path: Path) -> None:
    _, path, states = onnx_file
    given = images(48, 3).numpy()
    expected = runtime.predict(runtime.session(path), given)
    labels = expected.argmax(1)
    precision.to_fp16(path, tmp_path / "fp16.onnx")
    half = runtime.predict(runtime.session(tmp_path / "fp16.onnx"), given)
    assert np.abs(half - expected).max() < 0.05 * np.abs(expected).max()
    sweep = precision.to_int8(path, tmp_path / "int8.onnx", [given[:24], given[24:]], [given], labels, 5.0)
    small = runtime.predict(runtime.session(tmp_path / "int8.onnx"), given)
    assert 100 * (small.argmax(1) != labels).mean() <= 5.0
    assert sweep.quantized + len(sweep.excluded) == 1 + 2 * DEPTH + 2 * sum(heads > 0 for heads, _ in states) + 1
    for name in ("fp16", "int8"):
        assert exporting.metadata(tmp_path / f"{name}.onnx")["macs"] == exporting.metadata(path)["macs"]
