"""Nothing that changes a result is missing from the digest by which old results are taken for new ones."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import load_file, save_file
from small import FOLDERS, image_folder, model_folder, picture, quicken, recipe_dict, rows_of

from vitprune.criteria.attribution.settings import Jas
from vitprune.criteria.catalog import CRITERIA, how_of, settings
from vitprune.model import families
from vitprune.recipe import parse
from vitprune.recipe.recipe import Recipe
from vitprune.runs import pipeline
from vitprune.runs.pipeline import STAGES
from vitprune.runs.stages import image_scores, versions
from vitprune.runs.state import precise

SPLIT, DISCOVER, MOMENTS, PRUNE, EVALUATE, EXPORT = (stage.name for stage in STAGES)
BASE: dict[str, Any] = {
    "name": "a", "model": {"name": "vit", "checkpoint": "first.pth"}, "data": {"path": "i"}, "paper_protocol": {"t": [1]},
    "criterion": {"name": "jas", "candidates": "each", "t": 2}, "keep": 0.5, "recovery": "affine",
}  # fmt: skip
# Key → another value, and the stages that it does again.
AFTER_DISCOVER = [DISCOVER, PRUNE, EVALUATE, EXPORT]
AFTER_PRUNE = [PRUNE, EVALUATE, EXPORT]
EVERY = [stage.name for stage in STAGES]
CHANGED: dict[str, tuple[Any, list[str]]] = {
    "model.name": ("other", EVERY),
    "model.pretrained": (True, EVERY),
    "model.checkpoint": ("w.pth", EVERY),
    "model.args": ({"img_size": 32}, EVERY),
    "model.checkpoint_key": ("teacher", EVERY),
    "model.preprocess.input_size": (32, EVERY),
    "model.preprocess.mean": ([0.4], EVERY),
    "model.preprocess.std": ([0.4], EVERY),
    "model.preprocess.interpolation": ("box", EVERY),
    "model.preprocess.crop_pct": (0.5, EVERY),
    "model.head": ("none", EVERY),
    "model.features": ("pooled", EVERY),
    "data.path": ("other", EVERY),
    "data.dataset": ("torch/x", EVERY),
    "data.dataset_split": ("train", EVERY),
    "data.labels": ("l.txt", EVERY),
    "data.on_corrupt": ("skip", EVERY),
    "data.limit_per_class": (5, EVERY),
    "split.seed": (1, EVERY),
    "split.probe": (0.7, EVERY),
    "classes": (["a"], EVERY[1:]),
    "groups": ({"g": ["a"]}, EVERY[1:]),
    "head": ("all", AFTER_PRUNE),
    "criterion.name": ("obs", AFTER_DISCOVER),
    "criterion.t": (3, AFTER_DISCOVER),  # for `auto` see below
    "criterion.probe_per_class": (3, AFTER_DISCOVER),
    "criterion.exact_per_class": (3, AFTER_DISCOVER),
    "criterion.formula": ("joint-ig", AFTER_DISCOVER),
    "criterion.candidates": ("parallel", AFTER_DISCOVER),
    "criterion.shortlist": (9, AFTER_DISCOVER),
    "criterion.quadrature": ("left", AFTER_DISCOVER),
    "criterion.nodes": (3, AFTER_DISCOVER),
    "criterion.tokens": ("all", AFTER_DISCOVER),
    "criterion.objective": ("logit", AFTER_DISCOVER),
    "criterion.precision": ("bfloat16", AFTER_DISCOVER),
    "criterion.low": (0.5, AFTER_DISCOVER),
    "criterion.form": ("squared", AFTER_DISCOVER),
    "criterion.labels": ("sampled", AFTER_DISCOVER),
    "criterion.seed": (1, AFTER_DISCOVER),
    "criterion.epochs": (3, AFTER_DISCOVER),
    "criterion.rate": (0.1, AFTER_DISCOVER),
    "criterion.pressure": (0.1, AFTER_DISCOVER),
    "criterion.train_weights": (True, EVERY[1:]),  # with `recovery: none`, which goes with it
    "precision": ("bfloat16", EVERY[1:]),
    "keep": (0.25, AFTER_PRUNE),
    "allocation": ("global", AFTER_PRUNE),
    "budget": ("parameters", AFTER_PRUNE),
    "floor": (2, AFTER_PRUNE),
    "rounds": (2, AFTER_PRUNE),
    "round_to": (8, AFTER_PRUNE),
    "recovery": ("mean", [MOMENTS, PRUNE, EVALUATE, EXPORT]),
    "ridge": (0.1, AFTER_PRUNE),
    "refit_images": (10, [MOMENTS, *AFTER_PRUNE]),
    "distill_epochs": (1, AFTER_PRUNE),
    "baselines": ([], AFTER_DISCOVER),
    "random_draws": (1, [EVALUATE]),
    "paper_protocol.t": ([2], AFTER_DISCOVER),
    "paper_protocol.quadrature": ("left", AFTER_DISCOVER),
    "paper_protocol.nodes": (3, AFTER_DISCOVER),
    "paper_protocol.probe_per_class": (3, AFTER_DISCOVER),
    "export.onnx": (False, [EXPORT]),
    "export.shortcut": (False, [EXPORT]),
    "export.precisions": (["fp32", "fp16"], [EXPORT]),
    "export.int8_floor_points": (1.0, [EXPORT]),
    "export.latency_batches": ([2], [EXPORT]),
}
# Where results go and how fast; what the choice, the comparison and the tables read has digests of its own; a pair of
# folders in the place of `path` is another source; a budget of the whole model stands in the place of `keep`, see below;
# which budget of a frontier is exported is said by the recipe of each; labels of pixels are for `see` alone;
# `reference` needs other settings beside it.
ELSEWHERE = {
    "version", "name", "out", "data.source", "data.probe", "data.test", "data.workers", "criterion.among",
    "criterion.reference", "clusters", "compare", "paper", "whole.macs", "whole.params", "whole.latency", "whole.size_mb",
    "whole.loss_points", "prune", "attention_dims", "export.budget", "see", "data.attributes", "data.masks", "engine",
    "workers", "address", "track",
}  # fmt: skip


def leaves(section: type[BaseModel], before: str = "") -> list[str]:
    """Every key of a recipe, `criterion.t`."""
    found: list[str] = []
    for key, about in section.model_fields.items():
        inner = [about.annotation, *getattr(about.annotation, "__args__", ())]
        part = next((a for a in inner if isinstance(a, type) and issubclass(a, BaseModel)), None)
        deeper = part is not None and f"{before}{key}" not in ELSEWHERE
        found += leaves(part, f"{before}{key}.") if deeper and part is not None else [f"{before}{key}"]
    return found


def digests(content: dict[str, Any], **known: str) -> dict[str, str]:
    """Stage → the digest of its inputs."""
    run = SimpleNamespace(recipe=Recipe.model_validate(content), device=torch.device("cpu"), keeps=())
    run.sites = [SimpleNamespace(size=size) for size in (96, 64)]
    run.__dict__.update({"model_digest": "m", "data_digest": "d"} | known)
    found: dict[str, str] = {}
    for stage in STAGES:
        found[stage.name] = pipeline.stage_digest(stage, run, found)  # type: ignore[arg-type]
    return found


def changed(key: str, value: Any) -> dict[str, Any]:
    content = copy.deepcopy(BASE)
    *sections, last = key.split(".")
    at = content
    for section in sections:
        at = at.setdefault(section, {})
    at[last] = value
    if key == "criterion.train_weights":
        content["recovery"] = "none"
    return content


def test_every_key_of_a_recipe_says_what_it_changes() -> None:
    """A new key belongs into `CHANGED`, with the stages it does again, or into `ELSEWHERE`."""
    assert set(leaves(Recipe)) == CHANGED.keys() | ELSEWHERE
    assert not CHANGED.keys() & ELSEWHERE


@pytest.mark.parametrize("key", CHANGED)
def test_another_value_does_again_what_depends_on_it(key: str) -> None:
    value, redone = CHANGED[key]
    before, after = digests(BASE), digests(changed(key, value))
    assert [name for name in before if before[name] != after[name]] == redone


@pytest.mark.parametrize(
    ("other", "redone"),
    [
        ({"budget": {"macs": 0.25}}, AFTER_PRUNE),
        ({"budget": {"params": 0.5}}, AFTER_PRUNE),
        ({"budget": {"loss_points": 1.0}}, AFTER_PRUNE),
        ({"prune": ["ffn"]}, AFTER_DISCOVER),
        ({"prune": ["ffn", "attention", "depth"]}, AFTER_PRUNE),
        ({"export": {"shortcut": False}}, AFTER_PRUNE),  # the price of the last block is another
        ({"export": {"onnx": False}}, AFTER_PRUNE),
        ({"attention_dims": "free"}, AFTER_PRUNE),
        ({"budget": "flops", "keep": 0.5}, AFTER_DISCOVER),
    ],
)
def test_another_budget_of_the_whole_model_does_again_what_depends_on_it(
    other: dict[str, Any], redone: list[str]
) -> None:
    plain = {k: v for k, v in BASE.items() if k != "keep"} | {"criterion": {"name": "fisher-obs"}}
    before, after = digests(plain | {"budget": {"macs": 0.5}}), digests(plain | {"budget": {"macs": 0.5}} | other)
    assert [name for name in before if before[name] != after[name]] == redone


def test_a_precision_counts_where_the_device_has_it() -> None:
    """tf32 on a processor is float32, and float32 is what there was before there was a choice."""
    assert digests(BASE) == digests(BASE | {"precision": "float32"}) == digests(BASE | {"precision": "tf32"})
    made = Recipe.model_validate(BASE | {"precision": "tf32"})
    assert precise.told(made, torch.device("cuda", 1)) == {"passes": "tf32"}
    assert Recipe.model_validate(BASE | {"precision": "bfloat16"}).criterion.precision == "bfloat16"
    own = Recipe.model_validate(BASE | {"criterion": {"name": "jas", "precision": "bfloat16"}})
    assert own.precision == "float32" and own.criterion.how("jas").precision == "bfloat16"
    assert parse.parse(parse.dump(own)).fingerprint() == own.fingerprint()


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("name: a\nkeep: 0.25\n", "7cc9bccd2c7cac89"),
        ("name: a\ncriterion: {name: jas}\n", "09e7654f3f45613a"),
        ("name: a\nkeep: 25 units\nallocation: budgeted\nbudget: latency\nfloor: 2\nround_to: 8\n", "7e8a78ca55a87246"),
    ],
)
def test_the_hash_of_a_recipe_by_keep_stays(text: str, known: str) -> None:
    assert parse.parse(text).fingerprint()[:16] == known


@pytest.mark.parametrize(
    ("keep", "t"), [({"keep": 0.5}, 32), ({"keep": 0.01}, 1), ({"keep": "25 units"}, 25), ({"keep": 400}, 64)]
)
def test_t_auto_is_the_t_that_it_comes_to(keep: dict[str, Any], t: int) -> None:
    """`keep` of the smallest block's units; a digest has the number, so that another budget is another discovery."""
    plain = {k: v for k, v in BASE.items() if k not in ("keep", "criterion")} | keep | {"baselines": ["activation"]}
    auto, asked = ({"criterion": {"name": "jas"} | more} for more in ({}, {"t": t}))
    assert digests(plain | auto) == digests(plain | auto | {"criterion": {"name": "jas", "t": "auto"}})
    assert digests(plain | auto)[DISCOVER] == digests(plain | asked)[DISCOVER]
    other = digests(plain | auto | {"keep": 0.25})
    assert [name for name, made in digests(plain | auto).items() if made != other[name]] == AFTER_DISCOVER


def test_what_needs_no_t_is_not_discovered_again_for_another_budget() -> None:
    plain = {k: v for k, v in BASE.items() if k != "criterion"}
    for made in ({"name": "fisher-obs"}, {"name": "fisher"}):
        content = plain | {"criterion": made, "baselines": ["mean-activation"]}
        asked = content | {"criterion": made | {"t": 50}}
        before, after = digests(content), digests(content | {"keep": 0.25})
        assert [name for name in before if before[name] != after[name]] == AFTER_PRUNE
        assert before[DISCOVER] == digests(asked)[DISCOVER]  # as it was when 50 was the default


@pytest.mark.parametrize("known", ["model_digest", "data_digest"])
def test_another_model_and_other_images_do_everything_again(known: str) -> None:
    before, after = digests(BASE), digests(BASE, **{known: "other"})
    assert all(before[name] != after[name] for name in before)


@pytest.mark.parametrize("stage", EVERY)
def test_another_version_of_a_stage_does_it_and_what_follows_again(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digests(BASE)
    monkeypatch.setitem(versions.OWN, stage, "next")
    after = digests(BASE)
    follow = {SPLIT: EVERY, DISCOVER: AFTER_DISCOVER, MOMENTS: [MOMENTS, *AFTER_PRUNE], PRUNE: AFTER_PRUNE}
    assert [name for name in before if before[name] != after[name]] == follow.get(stage, [stage])


@pytest.mark.parametrize("key", [k for k, (_, redone) in CHANGED.items() if PRUNE in redone])
def test_the_recipes_hash_in_a_result_follows_what_the_model_depends_on(key: str) -> None:
    """The hash that config.json, the ONNX metadata and the report carry."""
    made = Recipe.model_validate(changed(key, CHANGED[key][0]))
    beside = key == "baselines" or key.startswith("paper_protocol.")  # examined beside the model, not in it
    assert (made.fingerprint() == Recipe.model_validate(BASE).fingerprint()) == beside


OTHER = {
    "formula": "joint-ig", "candidates": "each", "shortlist": 3, "quadrature": "left", "nodes": 6, "tokens": "all",
    "objective": "logit", "reference": True, "precision": "bfloat16", "low": 0.4, "form": "absolute", "labels": "sampled",
    "seed": 5, "epochs": 2, "rate": 0.02, "pressure": 0.5, "train_weights": True,
}  # fmt: skip

CHANGES = {
    "jas": ("quadrature", "nodes", "objective", "tokens", "formula", "candidates"),
    "joint-gates": ("quadrature", "nodes", "objective", "low", "form", "labels"),
    "knowledge-attribution": ("quadrature", "nodes", "objective", "tokens", "shortlist"),
    "fisher": ("seed",), "fisher-obs": ("seed",), "vit-slim": ("rate", "epochs", "pressure"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CRITERIA))
def test_a_criterion_names_every_setting_that_changes_it(tiny_vit, make_images, name: str) -> None:
    """It is given nothing but its own settings, so that one which it reads and does not declare is an error; and another
    value of one is another discovery: a shard or a note of one is never taken for one of the others."""
    model, images, row = tiny_vit(dtype=torch.float32), make_images(6, dtype=torch.float32), CRITERIA[name]
    sites, labels = families.ffn_sites(model), torch.arange(6) % 3
    how = {"nodes": 2, "epochs": 1, "rate": 0.05}

    def scores(**changed: Any) -> list[torch.Tensor]:
        made = how_of(name, **(how | changed))
        if row.score:
            return row.score(model, sites, images, labels, ts=[4], how=made)[4]
        assert row.whole
        return rows_of(row.whole(model, sites, lambda: iter([(images, labels)]), how=made))

    def told(**changed: Any) -> dict[str, Any]:
        return image_scores.Discovery(name, how_of(name, **changed), 50, (2,)).settings

    base = scores()
    for setting in OTHER:
        assert (setting in row.uses) == (told(**{setting: OTHER[setting]}) != told()), setting
    for setting in CHANGES.get(name, ()):
        assert not all(map(torch.equal, base, scores(**{setting: OTHER[setting]}))), setting
    assert asdict(how_of(name)).keys() == set(row.uses) and settings().keys() == OTHER.keys()


# ---- the content of images and weights


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    quicken(monkeypatch)
    content = recipe_dict(model_folder(tmp_path / "model"), image_folder(tmp_path / "images"), tmp_path / "out")
    return {key: content[key] for key in ("name", "data", "model", "export", "out", "split")} | {
        "criterion": {"t": 3}, "baselines": []
    }  # fmt: skip


def done(content: dict[str, Any]) -> list[str]:
    made = pipeline.run(Recipe.model_validate(content), "prune", device="cpu")
    return [stage["name"] for stage in made["stages"] if not stage["skipped"]]


@pytest.mark.parametrize(
    "road", [{}, {"criterion": {"name": "jas", "t": 3, "nodes": 2}, "recovery": "affine"}], ids=str
)
def test_other_pixels_and_other_weights_are_noticed(
    small: dict[str, Any], tmp_path: Path, road: dict[str, Any]
) -> None:
    """A file of the same name; whether its size and its time are the same depends on the disk."""
    content = small | road
    everything = done(content)
    assert everything == EVERY[:4] and done(content) == []
    picture(0, 4711).save(tmp_path / "images" / FOLDERS[0] / "03.png")
    assert done(content) == everything
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["blocks.1.attn.qkv.bias"][3] += 0.25
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    assert done(content) == everything and done(content) == []


def test_the_parts_of_a_discovery_are_of_exactly_its_job() -> None:
    """Another image, order, setting, t, batch, model or data set: other parts; and no part is that of another place."""

    def of(batch: int) -> SimpleNamespace:
        return SimpleNamespace(images_per_batch=lambda _: batch)

    index, found = torch.arange(150).numpy(), image_scores.Discovery("jas", Jas(), 50, (2,))
    run = {"model_digest": "m", "data_digest": "d", "device": torch.device("cpu"), "batching": of(8)}
    run["recipe"] = Recipe.model_validate(BASE)

    def keys(index: Any = index, found: Any = found, **changed: Any) -> list[str]:
        made = image_scores.job(SimpleNamespace(**(run | changed)), found, index)  # type: ignore[arg-type]
        return [made.key(position) for position in range(len(made.items))]

    assert keys() == keys() and len(keys()) == 3
    others = [keys(index[::-1]), keys(index + 1), keys(index[:-1]), keys(batching=of(16))]
    others += [keys(model_digest="n"), keys(data_digest="e"), keys(found=replace(found, ts=(2, 3)))]
    others += [keys(found=replace(found, how=Jas(nodes=6)))]
    assert len({key for own in [keys(), *others] for key in own}) == 3 * 9
