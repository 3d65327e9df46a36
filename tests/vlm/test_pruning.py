"""What units of a vision-language model cost, which go, the repair, and the exam by modality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_types import planted
from vlms import FAMILIES, folder, pairs, samples, tiny

from vitprune.core.errors import UserError
from vitprune.criteria.curves import Curve
from vitprune.exam import by_modality
from vitprune.model.inside import hooks
from vitprune.model.vlm import opening, saving, sites, tokens
from vitprune.model.vlm.pairs import read_pairs
from vitprune.pruning.plan import Plan
from vitprune.pruning.vlm import choosing, costs, repair
from vitprune.see.types import typing
from vitprune.see.types.rules import TEXT


def batches(family: str, count: int = 12, size: int = 4, config: Any = None) -> list[tokens.Batch]:
    """Batches of random samples."""
    return [batch for _, batch in tokens.batches(samples(family, count), config or tiny(family).config, size)]


def test_costs_are_those_of_a_slow_replica() -> None:
    """C and G sample by sample and token by token; the draw is the model's own next token."""
    model, made = tiny("llava"), batches("llava", 3, 3)
    every = [sites.ffns(model, "vision")[0], sites.ffns(model, "language")[1]]
    found = costs.statistics(model, every, made, seed=5)
    batch = made[0]
    log_p = model(**batch.inputs).logits[:, :-1][batch.kinds.text[:, 1:]].log_softmax(-1)
    chance = torch.rand(len(log_p), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    drawn = [int((c >= row.double().exp().cumsum(-1)).sum()) for c, row in zip(chance, log_p, strict=True)]
    for site, (covariance, fisher, rows) in zip(every, found, strict=True):
        hidden, grads, at = [], [], 0
        for sample in samples("llava", 3):
            one = tokens.collate([sample], model.config)
            kept: dict[str, torch.Tensor] = {}

            def read(_: int, x: torch.Tensor, kept: dict[str, torch.Tensor] = kept) -> None:
                kept["h"] = x.detach()[0]

            def write(_: int, y: torch.Tensor, kept: dict[str, torch.Tensor] = kept) -> torch.Tensor:
                kept["y"] = y.detach().requires_grad_()
                return kept["y"]

            with torch.enable_grad(), hooks.layers(model, [site.fc2], read, write):
                logits = model(**one.inputs).logits[0].log_softmax(-1)
                texts = one.kinds.text[0].nonzero().flatten().tolist()
                loss = sum(logits[t - 1, drawn[at + i]] for i, t in enumerate(texts))
                at += len(texts)
                (gradient,) = torch.autograd.grad(loss, [kept["y"]])
            hidden.append(kept["h"])
            grads.append(gradient[0])
        h, g = torch.cat(hidden).double(), torch.cat(grads).double()
        torch.testing.assert_close(covariance, torch.cov(h.T, correction=0), atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(fisher, g.T @ g / len(g), atol=1e-9, rtol=1e-3)
        assert rows == len(h) / 3


def test_a_dead_vision_block_is_not_ranked() -> None:
    model = tiny("llava")
    with pytest.raises(UserError, match=r"layers\.2\.mlp: no logit depends on it"):
        costs.fisher_obs(model, sites.ffns(model, "vision"), batches("llava", 2))


def curves(model: Any, seed: int = 0) -> dict[str, Curve]:
    """Random curves of the language units."""
    draw = torch.Generator().manual_seed(seed)
    return {s.name: Curve.ranked(torch.rand(s.size, generator=draw)) for s in sites.ffns(model, "language")}


def test_choosing_by_hand() -> None:
    curve = Curve.ranked(torch.tensor([0.1, 0.9, 0.2, 0.8, 0.3, 0.7]))
    types = {"a": torch.tensor([0, 0, 1, 1, 2, 3], dtype=torch.int8)}
    assert choosing.by_cost({"a": curve}, 0.5).keep["a"].int().tolist() == [0, 1, 0, 1, 0, 1]
    assert choosing.by_type({"a": curve}, types, 0.5).keep["a"].int().tolist() == [0, 1, 0, 1, 1, 0]
    shared = choosing.by_share({"a": curve}, types, {"visual": 0.5, "text": 0.0, "unknown": 0.0})
    assert shared.keep["a"].int().tolist() == [0, 1, 0, 0, 1, 0]
    nothing = choosing.by_share({"a": curve}, types, dict.fromkeys(("visual", "text", "multimodal", "unknown"), 0.0))
    assert nothing.keep["a"].int().tolist() == [0, 1, 0, 0, 0, 0]  # one unit stays, the one that is removed last
    control = choosing.at_random(shared, 0)
    assert control.widths == shared.widths and choosing.at_random(shared, 0).keep["a"].equal(control.keep["a"])
    with pytest.raises(UserError, match="`pictures` is no type"):
        choosing.by_type({"a": curve}, types, 0.5, ["pictures"])
    with pytest.raises(UserError, match=r"keep_types\.text: 2"):
        choosing.by_share({"a": curve}, types, {"text": 2})
    with pytest.raises(UserError, match="no such site"):
        choosing.cut(tiny("llava"), Plan({"a": torch.tensor([True, False])}))


@pytest.mark.sample(2)
@pytest.mark.parametrize("family", FAMILIES)
def test_typed_pruning_reloads_to_the_masked_dense_model(family: str, tmp_path: Path) -> None:
    tiny(family).save_pretrained(tmp_path / "dense")
    vlm = opening.open_vlm(tmp_path / "dense")
    every, (batch,) = sites.ffns(vlm.model, "language"), batches(family, 4, 4)
    found = typing.types_of(vlm.model, every, samples(family, 12))
    for n, plan in enumerate((
        choosing.by_type(curves(vlm.model), found.labels["test"], 0.5),
        choosing.by_share(curves(vlm.model), found.labels["test"], {"text": 0.4, "unknown": 0.1}),
    )):  # fmt: skip
        with hooks.masked(vlm.model, every, [plan.keep[site.name] for site in every]):
            masked = vlm.model(**batch.inputs).logits
        saving.save(vlm, choosing.cut(vlm.model, plan), tmp_path / f"slim{n}", {})
        again = opening.open_vlm(tmp_path / f"slim{n}")
        assert (again.model(**batch.inputs).logits - masked).abs().max() <= 1e-5
        assert {s.name: s.size for s in sites.ffns(again.model, "language")} == plan.widths


def test_text_units_gone_leave_what_is_visual_as_it_is() -> None:
    """A planted model without attention: without its text units the logits at visual tokens stay to the bit, the text alone
    is no longer what it was."""
    model = planted("llava")
    draw = torch.Generator().manual_seed(0)
    every = sites.ffns(model, "language")
    first = every[0]
    model.get_submodule(first.fc2).weight.copy_(torch.randn(32, 48, generator=draw))
    made = samples("llava", 8)
    types = typing.types_of(model, [first], made).labels["test"]
    plan = Plan({first.name: types[first.name] != TEXT})
    assert int(plan.keep[first.name].sum()) == 36
    slim, batch = choosing.cut(model, plan), tokens.collate(made, model.config)
    before, after = (m(**batch.inputs).logits for m in (model, slim))
    seen = batch.kinds.visual
    assert (before[seen] - after[seen]).abs().max() <= 1e-6
    alone = [tokens.Sample(torch.cat([s.ids[:1], s.ids[s.start :]]), 1) for s in made]
    assert (by_modality.nll(model, alone) - by_modality.nll(slim, alone)).abs().mean() > 0.01


@pytest.mark.parametrize("how", ["affine", "layerwise"])
def test_a_repair_makes_good_what_others_can_take_over(how: Any) -> None:
    """Every second unit is a twin of the one before: without it, and repaired, the model computes what it did."""
    model = tiny("qwen2vl")
    for which in sites.TOWERS:
        for site in sites.ffns(model, which):
            for path in (site.fc1, *([site.gate] if site.gate else [])):
                layer = model.get_submodule(path)
                layer.weight[1::2] = layer.weight[::2]
                if layer.bias is not None:
                    layer.bias[1::2] = layer.bias[::2]
    keep = {s.name: torch.arange(s.size) % 2 == 0 for s in sites.every_ffn(model)}
    plan, seen = Plan(keep), batches("qwen2vl", 40, 5)
    slim = choosing.cut(model, plan)
    fresh = tokens.collate(samples("qwen2vl", 4, seed=9), model.config)
    expected = model(**fresh.inputs).logits
    before = (slim(**fresh.inputs).logits - expected).abs().max()
    assert len(repair.repair(model, slim, plan, seen, how)) == 4
    after = (slim(**fresh.inputs).logits - expected).abs().max()
    assert after < 0.02 * before


def test_nothing_removed_is_nothing_repaired() -> None:
    model = tiny("llava")
    plan = Plan({s.name: torch.ones(s.size, dtype=torch.bool) for s in sites.every_ffn(model)})
    slim = choosing.cut(model, plan)
    assert repair.repair(model, slim, plan, batches("llava", 4)) == []
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), slim.parameters(), strict=True))


def test_layer_by_layer_sees_what_came_before() -> None:
    """Units at random gone: on other samples the repaired stream is nearer to the dense one, block by block most of all."""
    model = tiny("llava")
    for site in sites.ffns(model, "language"):
        model.get_submodule(site.fc2).weight.mul_(20)
        model.get_submodule(site.fc1).weight.mul_(10)
    plan = choosing.at_random(choosing.by_cost(curves(model), 0.5), 3)
    fresh = tokens.collate(samples("llava", 8, seed=9), model.config)
    expected, errors = model(**fresh.inputs).logits, {}
    for how in ("none", "affine", "layerwise"):
        slim = choosing.cut(model, plan)
        repair.repair(model, slim, plan, batches("llava", 60, 10), how)  # type: ignore[arg-type]
        errors[how] = float((slim(**fresh.inputs).logits - expected)[fresh.kinds.real].square().mean())
    assert errors["layerwise"] < errors["affine"] < errors["none"]


def test_the_solver_is_the_ridge_of_its_docstring() -> None:
    draw = torch.Generator().manual_seed(0)
    h, t = (torch.randn(50, n, generator=draw).double() for n in (6, 4))
    old, sums = torch.randn(4, 6, generator=draw).double(), repair.Products()
    sums.add(h, t)
    weight = sums.solve(old, 0.1)
    strength = 0.1 * (h.T @ h).diagonal().median()
    rows = torch.cat([h, strength.sqrt() * torch.eye(6).double()])
    wanted = torch.linalg.lstsq(rows, torch.cat([t, strength.sqrt() * old.T])).solution.T
    torch.testing.assert_close(weight, wanted)
    assert sums.error(weight) == pytest.approx(float((t - h @ weight.T).square().sum()))


def test_the_exam_by_modality(tmp_path: Path) -> None:
    vlm = opening.open_vlm(folder(tmp_path / "model"))
    found = read_pairs(pairs(tmp_path / "data", 6))
    made = by_modality.prepared(vlm.preparer, found)
    exam = by_modality.examine(vlm.model, made, batch=4)
    for way in by_modality.WAYS:
        for sample, ours in zip(made[way], exam.nll[way], strict=True):
            log_p = vlm.model(**tokens.collate([sample], vlm.config).inputs).logits[0].double().log_softmax(-1)
            asked = range(max(sample.start, 1), len(sample.ids))
            slow = -sum(float(log_p[t - 1, sample.ids[t]]) for t in asked) / len(asked)
            assert float(ours) == pytest.approx(slow, abs=1e-5)
    mean = exam.mean
    assert mean["reliance"] == pytest.approx(mean["shuffled"] - mean["right"])
    others = by_modality.derangement(found, 0)
    assert all(found[i].image != p.image and found[i].text != p.text for i, p in zip(others, found, strict=True))
    same = [type(found[0])(p.image, "a boot", p.prompt, p.where) for p in found]
    with pytest.raises(UserError, match="no other pair has another image and another text"):
        by_modality.derangement(same, 0)
