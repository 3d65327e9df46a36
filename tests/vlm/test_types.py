"""Types of language units: hand oracles, a slow replica, planted units in four families, and what must change nothing."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from vlms import FAMILIES, IMAGE, samples, tiny

from vitprune.core.errors import UserError
from vitprune.model.vlm import sites, tokens
from vitprune.see.types import reading, rules, typing
from vitprune.see.types.rules import MULTIMODAL, TEXT, UNKNOWN, VISUAL, Evidence, Settings


def test_hits_and_shares_by_hand() -> None:
    scaled = torch.tensor([2.0, 2.1, 9, 2.5, 3]).reshape(1, 5, 1)
    every = torch.ones(1, 5, dtype=torch.bool)
    found = rules.hits(scaled, every, 2.0)
    assert found.tolist() == [[4]]  # 2.0 itself is not above 2
    none = torch.zeros_like(found)
    assert rules.by_counts(found, none, Settings(n_visual=4)).tolist() == [[VISUAL]]
    assert rules.by_counts(found, none, Settings(n_visual=5)).tolist() == [[UNKNOWN]]
    kinds = torch.tensor([VISUAL, VISUAL, TEXT, UNKNOWN], dtype=torch.int8)[:, None]
    assert rules.shares(kinds).flatten().tolist() == [0.5, 0.25, 0, 0.25]
    assert rules.prone(rules.shares(kinds), torch.tensor([True])).tolist() == [VISUAL]
    tie = torch.tensor([[0.0, 0.5], [0.5, 0], [0.5, 0.5], [0, 0]], dtype=torch.float64)
    assert rules.prone(tie, torch.tensor([True, True])).tolist() == [TEXT, VISUAL]  # the earlier of two
    assert rules.prone(tie, torch.tensor([False, True])).tolist() == [UNKNOWN, VISUAL]
    assert rules.scaled(torch.zeros(2, 3), torch.zeros(3)).eq(0).all()  # a unit that never fires divides by nothing


def test_sign_flips_are_those_of_every_sign() -> None:
    d = torch.randn(10, 6, generator=torch.Generator().manual_seed(1)).double() + 0.3
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=10))).double()
    exact = ((signs @ d).abs() >= d.sum(0).abs() - 1e-9).double().mean(0)
    assert (rules.sign_flip(d, 20_000, 0) - exact).abs().max() < 0.012
    assert rules.sign_flip(torch.zeros(5, 1), 99, 0).tolist() == [1]
    sure = rules.sign_flip(torch.ones(400, 1), 99, 0)
    assert sure.item() == pytest.approx(2 * np.exp(-200))  # Hoeffding's bound, where no draw reaches it


def test_benjamini_and_hochberg_by_hand() -> None:
    p = torch.tensor([0.04, 0.001, 0.03, 0.9, 0.012])
    assert rules.significant(p, 0.05).tolist() == [True, True, True, False, True]
    assert rules.significant(torch.tensor([0.04, 0.9]), 0.05).tolist() == [False, False]
    assert rules.significant(torch.empty(0), 0.05).tolist() == []


def test_the_cut_weighs_both_modalities_alike() -> None:
    visual, text = torch.zeros(1, rules.BINS), torch.zeros(1, rules.BINS)
    visual[0, 10], visual[0, 500] = 9_000, 1_000  # a tenth of many visual tokens is strong: a twentieth of the weight
    text[0, 10] = 10
    assert rules.cut(visual, text, 0.95).tolist() == [500]
    assert rules.cut(visual, text, 0.94).tolist() == [10]
    x = torch.tensor([0.0, 0.1, 1, 1.01, 1.04, 1e6])
    assert rules.bins(x).diff().ge(0).all() and rules.bins(x)[0] == 0 and rules.bins(x)[2] != rules.bins(x)[4]


def test_equivalence_needs_evidence() -> None:
    draw = torch.Generator().manual_seed(0)
    quiet = 0.01 * torch.randn(100, 1, generator=draw).double()
    assert rules.equivalent(quiet, 0.03, 0.05).tolist() == [True]
    assert rules.equivalent(quiet[:2] * 100, 0.03, 0.05).tolist() == [False]  # few samples prove nothing
    assert rules.equivalent(quiet + 0.1, 0.03, 0.05).tolist() == [False]
    assert rules.equivalent(quiet[:1], 0.03, 0.05).tolist() == [False]


def null(units: int, count: int = 50, visual: int = 64, text: int = 16) -> tuple[Tensor, Tensor]:
    """Activations without any preference [S, T, H]: what tokens of one image and modality share is drawn alike for both."""
    draw = torch.Generator().manual_seed(3)
    made = []
    for n in (visual, text):
        shared = 2 * torch.randn(count, 1, units, generator=draw)
        made.append(torch.exp(shared + torch.randn(count, n, units, generator=draw)))
    return made[0], made[1]


def test_without_a_preference_few_are_called() -> None:
    """At alpha .05 the sign-flip over samples calls at most 8 %; comparing tokens calls most units."""
    visual, text = null(200)
    counts = []
    for part in (visual, text):
        held = torch.zeros(200, rules.BINS)
        at = rules.bins(part).reshape(-1, 200)
        held.scatter_add_(1, at.T, torch.ones_like(at.T, dtype=held.dtype))
        counts.append(held)
    cut = rules.cut(counts[0], counts[1], 0.95)
    rates = [rules.rate(rules.bins(p), torch.ones(p.shape[:2], dtype=torch.bool), cut) for p in (visual, text)]
    found = Evidence.of(rates[0], rates[1], Settings())
    assert (found.p < 0.05).double().mean() <= 0.08
    a, b = (r.mean(0) for r in rates)
    pooled = (a * 64 + b * 16) / 80
    z = (a - b).abs() / (pooled * (1 - pooled) * (1 / (50 * 64) + 1 / (50 * 16))).sqrt()
    assert (z > 1.96).double().mean() > 0.4  # the anti-example: tokens of an image are not independent


def planted(family: str) -> Any:
    """A model whose language units answer by plan: unit j to visual tokens, text, both, nothing, by j mod 4."""
    model: Any = tiny(family)
    inner, width = model.model, 32
    one = torch.eye(width)
    if family == "llava":
        last = inner.multi_modal_projector.linear_2
    elif family == "qwen2vl":
        last = inner.visual.merger.mlp[2]
    else:
        norm, last = inner.vision_model.post_layernorm, inner.connector.modality_projection.proj
        norm.weight.zero_()
        norm.bias.fill_(1)
    last.weight.zero_()
    if last.bias is None:
        last.weight[0] = 1 / last.in_features
    else:
        last.bias.copy_(one[0])
    model.get_input_embeddings().weight.copy_(one[1].expand(100, width))
    for group in sites.groups(model):
        model.get_submodule(group.reads).weight.zero_()
    for site in sites.ffns(model, "language"):
        gate, up = model.get_submodule(site.gate), model.get_submodule(site.fc1)
        gate.weight.copy_(torch.stack([one[0], one[1], one[0] + one[1], 0 * one[0]])[torch.arange(48) % 4])
        up.weight.copy_((one[0] + one[1]).expand(48, width))
        model.get_submodule(site.fc2).weight.zero_()
    return model


@pytest.mark.sample(4)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("of", ["gate", "product"])
def test_planted_units_exact(family: str, of: Any) -> None:
    model = planted(family)
    found = typing.types_of(model, sites.ffns(model, "language"), samples(family, 24), of=of)
    for rule in rules.RULES:
        for types in found.labels[rule].values():
            assert types.tolist() == [VISUAL, TEXT, MULTIMODAL, UNKNOWN] * 12, rule
        assert found.stability(rule) == 1


def replica(model: Any, site: Any, made: list[Any], how: Settings) -> tuple[list[int], list[list[float]]]:
    """Types by the test, and the shares of counts, one unit and one sample at a time."""
    strengths, masks = [], []
    for sample in made:
        batch = tokens.collate([sample], model.config)
        strengths.append(reading.strength(model, [site], batch, "gate")[0][0].double().numpy())
        masks.append(batch.kinds)
    rates: list[Any] = []
    shares = []
    for j in range(site.size):
        units = [s[:, j] for s in strengths]
        looked = [u[(m.real & ~m.sink)[0].numpy()] for u, m in zip(units, masks, strict=True)]
        most = max(x.max() for x in looked)
        seen = [(u[m.visual[0].numpy()], u[m.text[0].numpy()]) for u, m in zip(units, masks, strict=True)]
        order = sorted(range(len(made)), key=lambda i: (-max(x.max() for x in seen[i]), i))[: how.top]
        kinds = []
        for i in order:
            v = sum(10 * x / most > how.t_visual for x in seen[i][0]) >= how.n_visual
            t = sum(10 * x / most > how.t_text for x in seen[i][1]) >= how.n_text
            kinds.append(MULTIMODAL if v and t else VISUAL if v else TEXT if t else UNKNOWN)
        shares.append([kinds.count(k) / len(kinds) for k in range(4)])
        binned = [tuple(rules.bins(torch.from_numpy(x)).numpy() for x in pair) for pair in seen]
        every = [np.concatenate([pair[k] for pair in binned]) for k in (0, 1)]
        cut = max(b for b in range(1024) if sum((e >= b).mean() for e in every) / 2 >= 1 - how.quantile - 1e-12)
        rates.append(np.array([[(x >= max(cut, 1)).mean() for x in pair] for pair in binned]))
    d = [r[:, 0] - r[:, 1] for r in rates]
    p = [rules.sign_flip(torch.from_numpy(one)[:, None], how.flips, how.seed).item() for one in d]
    stands = max((x for x in p if x <= how.q * sum(y <= x for y in p) / len(p)), default=-1.0)
    labels = []
    for one, both, chance in zip(d, rates, p, strict=True):
        near = abs(one.mean()) + 1.6448536 * one.std(ddof=1) / len(one) ** 0.5 < how.delta
        clear = chance <= stands and abs(one.mean()) >= how.delta
        multi = MULTIMODAL if near and (both.mean(0) >= how.least).all() else UNKNOWN
        labels.append((VISUAL if one.mean() > 0 else TEXT) if clear else multi)
    return labels, shares


def test_a_slow_replica() -> None:
    model, made, how = tiny("llava"), samples("llava", 20), Settings(top=7, delta=0.097)
    site = sites.ffns(model, "language")[1]
    found = typing.types_of(model, [site], made, how=how, batch=3)
    labels, shares = replica(model, site, made, how)
    torch.testing.assert_close(found.verdicts[site.name].shares.T, torch.tensor(shares).double())
    assert found.labels["test"][site.name].tolist() == labels
    assert len(set(labels)) > 2


def test_pairs_of_one_image_count_once() -> None:
    """Writing every pair twice changes no type by the test; rates of an image are those of its pairs, averaged by hand."""
    model, made = tiny("llava"), samples("llava", 12)
    every = sites.ffns(model, "language")[:1]
    name, how = every[0].name, Settings(delta=0.097)
    one = typing.types_of(model, every, made, how=how)
    same = typing.types_of(model, every, made, how=how, images=[9, 3, *range(20, 30)][::-1])
    two = typing.types_of(model, every, [*made, *made], how=how, images=[*range(12)] * 2, batch=5)
    assert torch.equal(one.labels["test"][name], two.labels["test"][name])
    assert one.stability("test") == two.stability("test")
    for part in ("p", "difference", "visual", "text", "equal"):
        first, second = (getattr(x.verdicts[name].evidence, part) for x in (one, two))
        assert torch.equal(first, second), part
    assert same.samples == 12 and two.samples == 24
    wrong = typing.types_of(model, every, [*made, *made], how=how).verdicts[name].evidence
    assert bool((wrong.p < one.verdicts[name].evidence.p).any())  # as if they were independent
    rates, images = (
        torch.rand(7, 3, generator=torch.Generator().manual_seed(0)).double(),
        torch.tensor([4, 1, 4, 0, 1, 4, 2]),
    )
    slow = np.array([np.mean([rates[i].numpy() for i in range(7) if images[i] == g], 0) for g in (0, 1, 2, 4)])
    np.testing.assert_allclose(rules.by_image(rates, images).numpy(), slow, rtol=1e-14)
    assert torch.equal(rules.by_image(rates, torch.arange(7)), rates)
    with pytest.raises(UserError, match="pairs of 3 images; at least 4 are needed"):
        typing.types_of(model, every, made, images=[0, 1, 2] * 4)


def test_neither_batches_nor_memory_change_a_type() -> None:
    model, made = tiny("llava"), samples("llava", 13)
    every = sites.ffns(model, "language")
    one = typing.types_of(model, every, made, batch=16)
    other = typing.types_of(model, every, made, batch=2, memory=1)
    for rule in rules.RULES:
        for name in one.labels[rule]:
            assert torch.equal(one.labels[rule][name], other.labels[rule][name])
            assert torch.equal(one.verdicts[name].evidence.p, other.verdicts[name].evidence.p)


@pytest.mark.parametrize("of", ["gate", "product"])
def test_the_sign_of_a_gated_unit_changes_nothing(of: Any) -> None:
    model, made = tiny("llava"), samples("llava", 12)
    other, every = copy.deepcopy(model), sites.ffns(model, "language")
    for site in every:
        other.get_submodule(site.fc1).weight[::2] *= -1
        other.get_submodule(site.fc2).weight[:, ::2] *= -1
    batch = tokens.collate(made, model.config)
    assert torch.equal(model(**batch.inputs).logits, other(**batch.inputs).logits)
    one, two = (typing.types_of(m, every, made, of=of) for m in (model, other))
    for rule in rules.RULES:
        assert all(torch.equal(one.labels[rule][name], two.labels[rule][name]) for name in one.labels[rule])


def test_more_visual_tokens_move_counts_alone() -> None:
    """Every visual token twice: shares of tokens stay what they are, counts double."""
    strength = torch.rand(6, 8, 5, generator=torch.Generator().manual_seed(0))
    visual = torch.tensor([[True] * 4 + [False] * 4]).expand(6, -1)
    twice, tokens_twice = torch.cat([strength[:, :4], strength], 1), torch.cat([visual[:, :4], visual], 1)
    most = strength.amax((0, 1))
    how = Settings(n_visual=4)
    hits = [rules.hits(rules.scaled(s, most), v, 5.0) for s, v in ((strength, visual), (twice, tokens_twice))]
    assert torch.equal(2 * hits[0], hits[1])
    none, text = torch.zeros_like(hits[0]), torch.full((6,), 4)
    rated = [rules.by_rates(h, none, (v.sum(1), text), how) for h, v in zip(hits, (visual, tokens_twice), strict=True)]
    assert torch.equal(*rated)
    assert not torch.equal(*(rules.by_counts(h, none, how) for h in hits))


def test_what_cannot_be_typed_is_said() -> None:
    model = tiny("llava")
    every = sites.ffns(model, "language")
    with pytest.raises(UserError, match="at least 4 are needed"):
        typing.types_of(model, every, samples("llava", 3))
    blind = [tokens.Sample(s.ids[s.ids != IMAGE], 3) for s in samples("llava", 4)]
    with pytest.raises(UserError, match="has no visual token"):
        typing.types_of(model, every, blind)
    broken = copy.deepcopy(model)
    broken.get_submodule(every[1].gate).weight[0, 0] = torch.nan
    with pytest.raises(UserError, match=r"layers\.1.*not numbers"):
        typing.types_of(broken, every, samples("llava", 4))


def test_a_sink_takes_part_in_no_maximum() -> None:
    model = planted("llava")
    site = sites.ffns(model, "language")[0]
    model.get_input_embeddings().weight[1] = torch.eye(32)[2]
    model.get_submodule(site.gate).weight[0, 2] = 50  # unit 0 is loudest at the beginning of the text
    found = typing.types_of(model, [site], samples("llava", 8))
    assert found.labels["counts"][site.name][0] == VISUAL
    assert found.verdicts[site.name].at_sink.tolist() == [True] + [False] * 47
