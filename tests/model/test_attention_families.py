"""Attention of every family that has it as a site: rotated, masked, cut, repaired, saved; what has not is refused by name."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.onnx._internal.exporter import _registration
from torch.utils.flop_counter import FlopCounterMode

from vitprune.criteria.heads import scores
from vitprune.criteria.heads.obs import obs
from vitprune.criteria.settings import Seeded
from vitprune.criteria.statistics import attention_curve, ranks
from vitprune.criteria.statistics.attention import statistics, sums
from vitprune.deploy.onnx import exporting
from vitprune.model import families, size
from vitprune.model.inside import blockwise, hooks
from vitprune.model.load import opening, saving
from vitprune.model.sites import attention, attention_layers
from vitprune.model.sites.attention import AttentionSite, attention_sites
from vitprune.model.sites.ffn import linear
from vitprune.model.sites.own_attention import OwnAttention
from vitprune.model.tokens import tokens_per_site
from vitprune.pruning import slim_attention, surgery
from vitprune.pruning.plan import Plan
from vitprune.pruning.repair import layerwise
from vitprune.pruning.repair.repair import Repairer
from vitprune.pruning.slim_attention import Cut
from vitprune.recipe import inputs

TINY = {"img_size": 16, "patch_size": 8, "in_chans": 3, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
ROPE = {k: v for k, v in TINY.items() if k != "img_size"} | {"img_size": 16}
# by a word for it: timm's name, what differs, and what can go: values, queries and keys, heads
CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "vit": ("vit_tiny_patch16_224", {}, "vqh"),
    "qk-norm": ("vit_tiny_patch16_224", {"qk_norm": True}, "vh"),
    "norm behind": ("vit_tiny_patch16_224", {"scale_attn_norm": True}, "h"),
    "beit": ("beit_base_patch16_224", {}, "vqh"),
    "beit, shared": ("beit_base_patch16_224", {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True}, "v"),
    "relpos": ("vit_relpos_small_patch16_224", {}, "vqh"),
    "relpos, table": ("vit_relpos_small_patch16_224", {"rel_pos_type": "bias", "qk_norm": True}, "vh"),
    "relpos, class token": ("vit_relpos_base_patch16_cls_224", {}, "vqh"),
    "relpos, shared": ("vit_relpos_base_patch16_clsgap_224", {"shared_rel_pos": True}, "v"),
    "eva": ("eva_giant_patch14_224", {"embed_dim": 16}, "vqh"),
    "eva02": ("eva02_tiny_patch14_224", {}, "vh"),
    "eva02, three layers": ("eva02_base_patch14_224", {}, "vh"),
    "eva02, norm behind": ("eva02_base_patch16_clip_224", {}, "h"),
    "dinov3": ("vit_small_patch16_dinov3", {}, "vh"),
    "rope, axial": ("vit_small_patch16_rope_224", {}, "vh"),
    "rope, mixed": ("vit_small_patch16_rope_mixed_224", {}, "v"),
    "gated": ("naflexvit_base_patch16_gap", {"pos_embed_grid_size": [2, 2], "attn_gated": True}, "h"),
    "post-norm": ("vit_base_patch16_rpn_224", {}, "vqh"),
    "post-norm, relpos": ("vit_relpos_small_patch16_rpn_224", {}, "vqh"),
    "post-norm, eva": ("eva02_base_patch14_224", {"use_post_norm": True}, "vh"),
    "side by side": ("vit_small_patch16_18x2_224", {}, "vqh"),
    "naflexvit": ("naflexvit_base_patch16_gap", {"pos_embed_grid_size": [2, 2]}, "vqh"),
}  # fmt: skip
each = pytest.mark.parametrize("case", CASES)


@functools.cache
def opened(case: str) -> Any:
    name, changed, _ = CASES[case]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        loaded = opening.open_model(inputs.Model(name=name, args=TINY | changed))
    draw = torch.Generator().manual_seed(4)
    for key, weight in loaded.model.named_parameters():
        scale = 1 / weight[0].numel() ** 0.5 if weight.ndim > 1 and "token" not in key and "pos" not in key else 0.3
        weight.data.add_(scale * torch.randn(weight.shape, generator=draw))
    return loaded


def tiny(case: str) -> Any:
    """In float64."""
    return copy.deepcopy(opened(case).model).double().eval().requires_grad_(False)


@pytest.fixture
def one_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter reads all its operators' sources at every export: once is enough here."""
    monkeypatch.setattr(_registration.ONNXRegistry, "from_torchlib", staticmethod(operators))


from_torchlib = _registration.ONNXRegistry.from_torchlib


@functools.cache
def operators(opset_version: int) -> Any:
    return from_torchlib(opset_version=opset_version)


def images_for(model: nn.Module, count: int = 24) -> Tensor:
    draw = torch.Generator().manual_seed(5)
    return torch.randn(count, *families.input_shape(model), generator=draw).to(next(model.parameters()))


@functools.cache
def curves(case: str) -> list[attention_curve.AttentionCurve]:
    return curves_of(tiny(case))


def curves_of(model: nn.Module) -> list[attention_curve.AttentionCurve]:
    x, sites = images_for(model, 40), attention_sites(model)
    _, moments = statistics(model, families.ffn_sites(model), sites, lambda: iter([(x, torch.arange(40) % 5)]), 0)
    measured = ranks.ranks(model, sites, moments, iter([x]))
    weights = [linear(model, site.proj).weight for site in sites]
    return [attention_curve.curve(*parts) for parts in zip(sites, weights, moments, measured, strict=True)]


def smallest(site: AttentionSite) -> tuple[int, int]:
    return site.counts[0], site.dims[0]


def cut(case: str, model: nn.Module | None = None) -> tuple[nn.Module, dict[str, Cut]]:
    """The model with all attentions as small as they may be, not repaired."""
    slim = tiny(case) if model is None else copy.deepcopy(model)
    cuts = {curve.site.name: Cut(curve, *smallest(curve.site)) for curve in curves(case)}
    for one in cuts.values():
        one.write(slim)
    return slim, cuts


@each
def test_what_can_go(case: str) -> None:
    for site in attention_sites(tiny(case)):
        assert (site.values, site.query_keys, site.whole_heads) == tuple(x in CASES[case][2] for x in "vqh")
        assert (site.heads, site.dim) == (2, 8) and site.dims == ((4, 8) if site.values else (8,))


@each
def test_at_full_rank_the_rotations_change_nothing(case: str) -> None:
    """Queries, keys, values and proj's columns in the curve's basis, all of them: the logits are the dense model's."""
    model = tiny(case)
    x, turned = images_for(model), tiny(case)
    for curve in curves(case):
        site, values = curve.site, curve.values[-1]
        attn: Any = turned.get_submodule(site.path)
        q, k, v = slim_attention._per_head(attn)
        if site.query_keys:
            q, k = curve.queries @ q, curve.keys @ k
        columns = slim_attention._columns(attn.proj, site.heads)
        if site.values:
            v, columns = values.front @ v, columns @ values.behind
        attention.put_own(turned, site, torch.arange(2), (q, k, v), columns, attn.proj.bias)
    assert any(isinstance(module, OwnAttention) for module in turned.modules())
    torch.testing.assert_close(turned(x), model(x), rtol=0, atol=1e-7)


@each
@pytest.mark.parametrize("kind", ["values", "heads", "both"])
def test_masked_is_sliced(case: str, kind: str) -> None:
    model = tiny(case)
    cuts = {}
    for curve in curves(case):
        heads, dim = smallest(curve.site)
        one = Cut(curve, 2 if kind == "values" else heads, 8 if kind == "heads" else dim)
        if not one.whole:
            cuts[curve.site.name] = one
    plan = Plan({site.name: torch.ones(site.size, dtype=torch.bool) for site in families.ffn_sites(model)}, (), cuts)
    x = images_for(model, 4)
    assert surgery.masked_vs_sliced(model, plan, x) < 1e-10
    if cuts:
        slim = surgery.slim(model, plan)
        assert float((slim(x) - model(x)).abs().max()) > 1e-4
        assert sum(p.numel() for p in slim.parameters()) < sum(p.numel() for p in model.parameters())


def by_criteria(case: str) -> dict[str, list[attention_curve.AttentionCurve]]:
    """The curves of every other criterion that knows heads."""
    model = tiny(case)
    sites, ffns, x = attention_sites(model), families.ffn_sites(model), images_for(model, 40)

    def batches() -> list[tuple[Tensor, Tensor]]:
        return [(x, torch.arange(40) % 5)]

    found = sums(model, ffns, batches, classes=range(5), how=Seeded(), fisher=False)
    made = {name: of(model, batches, found, how=Seeded()) for name, of in
            (("magnitude-l2", scores.magnitude), ("taylor", scores.taylor), ("variance", scores.variance))}  # fmt: skip
    chosen = {name: [one.curve for one in parts] for name, parts in made.items()}
    chosen["random"] = [one.curve for one in scores.random(sites, seed=1)]
    return chosen | {"obs": obs(model, batches, found, how=Seeded())}


@each
def test_every_criterion_of_heads_cuts_it(case: str) -> None:
    model = tiny(case)
    x, orders = images_for(model, 4), set()
    keep = {site.name: torch.ones(site.size, dtype=torch.bool) for site in families.ffn_sites(model)}
    for name, found in by_criteria(case).items():
        assert all(bool(torch.isfinite(one.ranks).all()) for one in found), name
        for heads in (False, True):
            cuts = {}
            for one in found:
                count, dim = smallest(one.site)
                made = Cut(one, count if heads else 2, dim)
                cuts |= {} if made.whole else {one.site.name: made}
            assert surgery.masked_vs_sliced(model, Plan(keep, (), cuts), x) < 1e-10, name
        orders.add(tuple(found[0].values[-1].order.flatten().tolist()))
    assert len(orders) > 1  # they do not agree


@pytest.mark.parametrize("case", ["beit", "eva02, three layers"])
def test_scores_of_weights_are_a_slow_sum(case: str) -> None:
    """Magnitude and Taylor of the first attention, entry by entry: a value's row and the column that reads it, halved."""
    model = tiny(case)
    x, labels = images_for(model, 40), torch.arange(40) % 5
    site = attention_sites(model)[0]
    attn: Any = model.get_submodule(site.path)
    layers = [attn.q_proj, attn.k_proj, attn.v_proj] if attn.qkv is None else [attn.qkv]
    for layer in (*layers, attn.proj):
        layer.weight.requires_grad_(True)
    loss = nn.functional.cross_entropy(model(x), labels)
    grads = torch.autograd.grad(loss, [layer.weight for layer in (*layers, attn.proj)])
    batches = lambda: [(x, labels)]  # noqa: E731
    for of, counted in (
        (scores.magnitude, lambda w, g: float(w) ** 2),
        (scores.taylor, lambda w, g: abs(float(w) * float(g))),
    ):
        rows = torch.cat([layer.weight for layer in layers]).detach(), torch.cat(grads[:-1])
        columns = attn.proj.weight.detach(), grads[-1]
        found = of(tiny(case), batches, None, how=Seeded())[0]
        for h in range(2):
            for d in range(8):
                at = 32 + h * 8 + d
                row = sum(counted(w, g) for w, g in zip(rows[0][at], rows[1][at], strict=True))
                column = sum(
                    counted(w, g) for w, g in zip(columns[0][:, h * 8 + d], columns[1][:, h * 8 + d], strict=True)
                )
                assert float(found.values[h, d]) == pytest.approx((row + column) / 2, rel=1e-9)


@pytest.mark.parametrize("case", [case for case, (_, _, can) in CASES.items() if "v" in can])
def test_a_slim_head_by_hand(case: str) -> None:
    """The values that are left, rotated, under the dense heads' own weights of attention (or those of the lower rank)."""
    model = tiny(case)
    curve = curves(case)[0]
    site, values = curve.site, curve.values[-1]
    slim = copy.deepcopy(model)
    Cut(curve, site.counts[-1], 4).write(slim)
    own: Any = slim.get_submodule(site.path)
    asked = site.asking(4)
    assert attention_layers.shape(own) == (2, asked, 4)
    q, k, v = slim_attention._per_head(model.get_submodule(site.path))
    if site.query_keys:  # their product at the dense kernel's scale
        logits = [curve.keys[h, :4].mT @ curve.queries[h, :4] @ q[h] for h in range(2)]
        torch.testing.assert_close(
            [slim_attention._per_head(own)[1][h].mT @ slim_attention._per_head(own)[0][h] / 4**0.5 for h in range(2)],
            [k[h].mT @ logits[h] / 8**0.5 for h in range(2)],
        )
    kept = values.kept(4)
    expected = torch.stack([(values.front[h] @ v[h])[kept[h]] for h in range(2)])
    torch.testing.assert_close(slim_attention._per_head(own)[2], expected)


@pytest.mark.parametrize(("heads", "dim", "queries"), [(2, 4, 8), (1, 8, 4), (2, 8, 4)])
def test_queries_and_values_of_different_sizes(heads: int, dim: int, queries: int, tmp_path: Path) -> None:
    """Where both can go they need not go together: masked as sliced, priced as counted, saved and loaded."""
    model = tiny("vit")
    cuts = {curve.site.name: Cut(curve, heads, dim, queries) for curve in curves("vit")}
    plan = Plan({site.name: torch.ones(site.size, dtype=torch.bool) for site in families.ffn_sites(model)}, (), cuts)
    x = images_for(model, 4)
    assert surgery.masked_vs_sliced(model, plan, x) < 1e-10
    slim = surgery.slim(model, plan)
    tokens, sites = tokens_of(model), [cut.curve.site for cut in cuts.values()]
    asked = (heads, dim, queries)
    gone = sum(site.parameters(model, 2, 8) - site.parameters(model, *asked) for site in sites)
    assert size.parameters(model) - size.parameters(slim) == gone
    macs = sum(site.macs(16, tokens, tokens, 2, 8) - site.macs(16, tokens, tokens, *asked) for site in sites)
    assert size.macs(model) - size.macs(slim) == macs
    for curve in curves("vit"):
        free, share = curve.table(free=True), heads / 2
        assert curve.table().items() <= free.items() and len(free) == 1 + 2 * 4
        assert free[asked] == pytest.approx(
            curve.cost(heads, dim) + share * float(curve.ranks[queries] - curve.ranks[dim])
        )
    single = surgery.slim(opened("vit").model, plan)
    saving.save(tmp_path / "a", opened("vit"), single, {})
    again = opening.open_model(inputs.Model(name=f"local-dir:{tmp_path / 'a'}"))
    assert set(attention.slim(again.model).values()) == {(heads, queries, dim)}
    assert torch.equal(again.model(x.float()), single(x.float()))


@pytest.mark.parametrize("case", ["qk-norm", "beit", "relpos, class token", "eva02", "side by side"])
def test_what_was_cut_is_cut_again(case: str) -> None:
    """First the values, then a head of what is left: masked is sliced, priced as counted."""
    model = tiny(case)
    for curve in curves(case):
        Cut(curve, 2, 4).write(model)
    again = curves_of(model)
    assert [(c.site.heads, c.site.dim, c.site.asking(4)) for c in again] == [
        (2, 4, c.site.asking(4)) for c in curves(case)
    ]
    cuts = {curve.site.name: Cut(curve, 1, 4) for curve in again}
    plan = Plan({site.name: torch.ones(site.size, dtype=torch.bool) for site in families.ffn_sites(model)}, (), cuts)
    assert surgery.masked_vs_sliced(model, plan, images_for(model, 4)) < 1e-10
    gone = size.parameters(model) - size.parameters(surgery.slim(model, plan))
    assert gone == sum(c.site.parameters(model, 2, 4) - c.site.parameters(model, 1, 4) for c in again)


@each
@pytest.mark.usefixtures("one_registry")
@pytest.mark.sample(2)
def test_onnx_gives_the_same(case: str, tmp_path: Path) -> None:
    slim, _ = cut(case, opened(case).model.eval())
    exporting.export(slim, tmp_path / "m.onnx", {})
    differences = exporting.parity(slim, tmp_path / "m.onnx", images_for(slim, 7))
    assert set(differences) == {1, 2, 7} and max(differences.values()) < 1e-4 * float(
        slim(images_for(slim, 7)).abs().max()
    )
    assert {node.domain for node in onnx.load(tmp_path / "m.onnx").graph.node} == {""}


@each
def test_macs_and_parameters_are_those_that_are_counted(case: str) -> None:
    model = tiny(case)
    slim, _ = cut(case)
    seen: dict[str, tuple[int, int]] = {}
    for made in (model, slim):
        for site in attention_sites(made):
            attn: Any = made.get_submodule(site.path)
            x = torch.randn(1, 5, 16, dtype=torch.float64)
            tokens = tokens_of(made)
            x, given = x[:, :1].expand(1, tokens, 16), given_to(made, attn)
            with (
                torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
                FlopCounterMode(display=False) as n,
            ):
                attn(x, **given)
            dense = next(s for s in attention_sites(model) if s.name == site.name)
            bias = flops_of_positions(attn)
            assert n.get_total_flops() - bias == 2 * dense.macs(16, tokens, tokens, site.heads, site.dim)
            assert sum(p.numel() for p in attn.parameters()) == dense.parameters(model, site.heads, site.dim)
            seen[made is slim, site.name] = (site.heads, site.dim)  # type: ignore[index]
    assert {seen[True, s.name] for s in attention_sites(model)} == {smallest(s) for s in attention_sites(model)}  # type: ignore[index]


def given_to(model: nn.Module, attn: nn.Module) -> dict[str, Any]:
    with hooks.keywords_of([attn]) as given:
        model(images_for(model, 1))
    return given[0]


def tokens_of(model: Any) -> int:
    return tokens_per_site(model, families.ffn_sites(model)[:1])[0]


def flops_of_positions(attn: Any) -> int:
    """Those of the small network that makes a bias by position, which is there once for all images."""
    if isinstance(attn, OwnAttention) or not hasattr(getattr(attn, "rel_pos", None), "mlp"):
        return 0
    with FlopCounterMode(display=False) as n:
        attn.rel_pos.get_bias()
    return n.get_total_flops()


@each
def test_the_repair_comes_closer(case: str) -> None:
    model = tiny(case)
    if blockwise.halves(model) is None:
        return
    x = images_for(model, 60)
    slim, _ = cut(case)
    before = float((slim(x) - model(x)).norm())
    layerwise.repair(slim, model, iter([x[:30], x[30:]]), attention=True)
    assert float((slim(x) - model(x)).norm()) < 0.8 * before


@each
def test_the_repair_of_its_projection_alone_comes_closer(case: str) -> None:
    """`affine` and `mean`, for blocks of any form; without heads the bias is right in the mean."""
    model = tiny(case)
    x = images_for(model, 60)
    sites = attention_sites(model)
    gap = {}
    for how in ("none", "mean", "affine"):
        slim, cuts = cut(case)
        plan = Plan(
            {site.name: torch.ones(site.size, dtype=torch.bool) for site in families.ffn_sites(model)}, (), cuts
        )
        repairer = Repairer(how)  # type: ignore[arg-type]
        repairer.repair(slim, plan, repairer.prepare(model, lambda: [x[:30], x[30:]]))
        gap[how] = float((slim(x) - model(x)).norm())
    assert gap["affine"] < 0.85 * gap["none"], gap
    assert gap["mean"] < gap["none"]
    assert len(cuts) == len(sites)


@each
def test_saved_and_loaded_it_is_the_same(case: str, tmp_path: Path) -> None:
    loaded = opened(case)
    single, _ = cut(case, loaded.model.eval())
    single = single.eval().requires_grad_(False)
    saving.save(tmp_path / "a", loaded, single, {})
    again = opening.open_model(inputs.Model(name=f"local-dir:{tmp_path / 'a'}"))
    x = images_for(single, 3)
    assert torch.equal(again.model(x), single(x))
    assert attention.slim(again.model) == attention.slim(single) != {}
    saving.save(tmp_path / "b", again, again.model, again.about)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
