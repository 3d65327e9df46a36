"""Block-by-block repair against numpy's least squares on the stacked streams of a model run the long way."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import reference
import torch
from small import mend, plan_of
from torch import Tensor, nn

from vitprune.core import memory
from vitprune.core.errors import UserError
from vitprune.core.least_squares import RIDGES, SecondMoments, fit
from vitprune.model import families, tokens
from vitprune.model.inside import blockwise, moments
from vitprune.pruning import slimming, surgery
from vitprune.pruning.plan import Plan
from vitprune.pruning.repair import fold, layerwise, names, repair, walk
from vitprune.pruning.repair import streams as repair_streams
from vitprune.runs.costs import formulas
from vitprune.runs.costs.facts import Layer, Shape

N = 32
SHAPES = [{}, {"init_values": 0.2, "reg_tokens": 1}, {"global_pool": "avg"}]
shapes = pytest.mark.parametrize("changed", SHAPES, ids=str)


def mask_for(model: nn.Module, width: int = 6) -> Plan:
    draw = torch.Generator().manual_seed(4)
    blocks = []
    for _ in families.ffn_sites(model):
        keep = torch.zeros(N, dtype=torch.bool)
        keep[torch.randperm(N, generator=draw)[:width]] = True
        blocks.append(keep)
    return plan_of(blocks)


def streams(model: nn.Module, images: Tensor) -> dict[str, list[Tensor]]:
    """By hand, block by block: x into it, normed, a into proj, z after attention, h the hidden units, y after the block."""
    found: dict[str, list[Tensor]] = {name: [] for name in ("x", "n", "a", "z", "h", "y")}
    parts = blockwise.halves(model)
    assert parts is not None
    x = parts.stream_into_blocks(images)
    for block in model.blocks:
        n = block.norm1(x)
        attn, (B, T, D) = block.attn, n.shape
        q, k, v = attn.qkv(n).reshape(B, T, 3, attn.num_heads, D // attn.num_heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * attn.head_dim**-0.5).softmax(-1)
        a = (weights @ v).transpose(1, 2).reshape(B, T, D)
        z = x + block.ls1(attn.proj(a))
        h = block.mlp.act(block.mlp.fc1(block.norm2(z)))
        y = z + block.ls2(block.mlp.fc2(h))
        for name, value in zip(found, (x, n, a, z, h, y), strict=True):
            found[name].append(value)
        x = y
    return found


def ridge_fit(inputs: Tensor, targets: Tensor, old: Tensor, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """lstsq on the stacked rows, the ridge as extra rows of centred data."""
    h, t = inputs.reshape(-1, inputs.shape[-1]).numpy(), targets.reshape(-1, targets.shape[-1]).numpy()
    hc, tc = h - h.mean(0), t - t.mean(0)
    strength = ridge * (hc**2).mean(0).mean() * len(h)
    top = np.concatenate([hc, np.sqrt(strength) * np.eye(h.shape[1])])
    below = np.concatenate([tc - hc @ old.numpy().T, np.zeros((h.shape[1], t.shape[1]))])
    weight = old.numpy() + np.linalg.lstsq(top, below, rcond=None)[0].T
    return weight, t.mean(0) - weight @ h.mean(0)


@shapes
@pytest.mark.parametrize("attention", [False, True])
def test_every_layer_is_the_least_squares_fit_of_what_it_sees(tiny_vit, make_images, changed, attention):
    """Layer by layer: freeze what is in front as repaired, and solve the layer again by lstsq from the stacked streams."""
    model, images = tiny_vit(**changed), make_images(9)
    mask = mask_for(model)
    start, slim = surgery.slim(model, mask), surgery.slim(model, mask)
    layerwise.repair(slim, model, images.split(4), attention=attention, ridge=1e-3)
    ours, dense = streams(slim, images), streams(model, images)
    for i, (block, before) in enumerate(zip(slim.blocks, start.blocks, strict=True)):
        read = tokens.tokens_read(model) if i == len(slim.blocks) - 1 else slice(None)
        gamma1, gamma2 = (getattr(ls, "gamma", torch.ones(16)).double() for ls in (block.ls1, block.ls2))
        x, z, d_z, d_y = ours["x"][i], ours["z"][i], dense["z"][i], dense["y"][i]
        expected = {"fc2": (ours["h"][i][:, read], (d_y - z)[:, read], before.mlp.fc2, block.mlp.fc2, gamma2)}
        if attention:
            wanted = model.blocks[i].attn.qkv(dense["n"][i])
            expected["qkv"] = (ours["n"][i], wanted, before.attn.qkv, block.attn.qkv, torch.ones(48))
            expected["proj"] = (ours["a"][i][:, read], (d_z - x)[:, read], before.attn.proj, block.attn.proj, gamma1)
        else:
            assert torch.equal(block.attn.qkv.weight, before.attn.qkv.weight)
            assert torch.equal(block.attn.proj.weight, before.attn.proj.weight)
        for name, (inputs, targets, old, new, gamma) in expected.items():
            weight, bias = ridge_fit(inputs, targets, gamma[:, None] * old.weight, 1e-3)
            np.testing.assert_allclose(
                (gamma[:, None] * new.weight).numpy(), weight, rtol=1e-5, atol=1e-7, err_msg=name
            )
            np.testing.assert_allclose((gamma * new.bias).numpy(), bias, rtol=1e-5, atol=1e-7, err_msg=name)


@shapes
@pytest.mark.parametrize("how", ["sequential", "layerwise"])
def test_nothing_pruned_changes_nothing(tiny_vit, make_images, changed, how):
    model, images = tiny_vit(**changed), make_images(9)
    everything = plan_of([torch.ones(N, dtype=torch.bool) for _ in model.blocks])
    slim = surgery.slim(model, everything)
    layerwise.repair(slim, model, images.split(4), attention=how == "layerwise")
    torch.testing.assert_close(slim(images), model(images), rtol=1e-7, atol=1e-8)
    slim = surgery.slim(model, everything)
    mend(slim, model, everything, how, images=lambda: images.split(4))
    assert all(map(torch.equal, slim.state_dict().values(), model.state_dict().values()))


@shapes
def test_sequential_is_at_most_affines_error_on_the_same_inputs(tiny_vit, make_images, changed):
    """λ → 0, fc2 of one block solved both ways on the same pruned stream: the squared error against y*."""
    model, images = tiny_vit(**changed), make_images(9)
    mask = mask_for(model)
    slim = surgery.slim(model, mask)
    layerwise.repair(slim, model, images.split(4), attention=False, ridge=1e-12)
    stats = moments.moments(model, families.ffn_sites(model), [images])
    ours, dense = streams(slim, images), streams(model, images)
    for i, block in enumerate(slim.blocks):
        read = tokens.tokens_read(model) if i == len(slim.blocks) - 1 else slice(None)
        original = model.blocks[i].mlp.fc2
        weight, bias = fold.refit(original.weight, original.bias, mask.masks[i], stats[i], "affine", 1e-12)
        z, h, y = ours["z"][i][:, read], ours["h"][i][:, read], dense["y"][i][:, read]
        affine = (z + block.ls2(h @ weight.T + bias) - y).square().sum()
        assert float((ours["y"][i][:, read] - y).square().sum()) <= float(affine) * (1 + 1e-9)


def test_layerwise_comes_closer_to_the_dense_model_than_fc2_alone(tiny_vit, make_images):
    model, images, fresh = tiny_vit(), make_images(40), make_images(50)[40:]
    mask, losses = mask_for(model, 3), {}
    for how in ("none", "affine", "sequential", "layerwise"):
        slim = surgery.slim(model, mask)
        stats = moments.moments(model, families.ffn_sites(model), [images])
        mend(slim, model, mask, how, moments=stats, images=lambda: images.split(8))
        losses[how] = float((slim(fresh) - model(fresh)).square().mean())
    assert losses["layerwise"] < losses["sequential"] < losses["none"]
    assert losses["affine"] < losses["none"]


def test_the_batches_size_and_the_place_of_the_streams_play_no_part(tiny_vit, make_images, monkeypatch, tmp_path):
    model, images = tiny_vit(), make_images(11)
    mask, made = mask_for(model), []
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for size, room in ((11, 2 << 30), (3, 2 << 30), (4, 0), (4, 40_000)):
        monkeypatch.setattr(repair_streams, "IN_MEMORY", room)
        slim = surgery.slim(model, mask)
        layerwise.repair(slim, model, images.split(size), attention=True)
        made.append(slim(images))
    for other in made[1:]:
        torch.testing.assert_close(other, made[0], rtol=1e-7, atol=1e-9)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("attention", [False, True])
def test_kept_dense_streams_change_nothing_and_are_computed_once(tiny_vit, make_images, monkeypatch, attention):
    model, images = tiny_vit(**SHAPES[1]), make_images(7)
    kept = repair_streams.DenseStreams()
    first, second = mask_for(model, 6), mask_for(model, 9)
    made = []
    for mask, given in ((first, None), (first, kept), (second, kept), (second, None)):
        slim = surgery.slim(model, mask)
        with monkeypatch.context() as patch:
            if given and given.tensors:  # the dense model does not run again
                patch.setattr(model.blocks[0].mlp, "forward", None)
                patch.setattr(model.blocks[0].mlp.act, "forward", None)
                patch.setattr(model.patch_embed, "forward", None)
            layerwise.repair(slim, model, images.split(3), attention=attention, kept=given)
        made.append(slim)
    for a, b in (made[:2], made[2:]):
        assert all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))
    dense, halves = streams(model, images), 2 * len(model.blocks)
    assert set(kept.tensors) == {(place, n) for place in range(halves + 1) for n in range(3)}
    for half in range(halves):
        whole = torch.cat([kept.tensors[half + 1, n] for n in range(3)])
        torch.testing.assert_close(whole, dense["z" if half % 2 == 0 else "y"][half // 2])


@pytest.mark.parametrize("attention", [False, True])
def test_the_number_of_parts_plays_no_part(tiny_vit, make_images, monkeypatch, attention):
    """In float64 the solution of one part and of any number of them is the same, also where a part has nothing held out."""
    model, images = tiny_vit(**SHAPES[1]), make_images(17)
    plan, made = mask_for(model), []
    for most in (1, 2, 3, 8):
        monkeypatch.setattr(walk, "PARTS", most)
        slim = surgery.slim(model, plan)
        layerwise.repair(slim, model, images.split(2), attention=attention)
        made.append(slim.state_dict())
    for other in made[1:]:
        for name, value in made[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-10, atol=1e-10)


def test_a_part_led_again_or_by_another_gives_the_same_bits(tiny_vit, make_images):
    """At every step: led on from the step before, led the whole way at once, and asked twice."""
    model, images = tiny_vit(dtype=torch.float32, **SHAPES[1]), make_images(9, dtype=torch.float32)
    slim, part = surgery.slim(model, mask_for(model)), range(2, 4)
    layerwise.repair(slim, model, images.split(2), attention=True)
    led = walk.Walk(slim, model, True)
    led.start(images[4:8].split(2), 2, 4)
    for k in range(len(led.road)):
        assert led.holds(part, k) and (k == 0 or not led.holds(part, k - 2))
        again = walk.Walk(slim, model, True, repair_streams.DenseStreams())
        assert not again.holds(part, 0)
        again.start(images[4:8].split(2), 2, 4)
        found = [led.moments(part, k).sums()]
        if k < len(led.road) - 1:
            found.append(led.moments(part, k).sums())
        found.append(again.moments(part, k).sums())
        for other in found[1:]:
            assert list(other) == list(found[0]) and all(map(torch.equal, other.values(), found[0].values()))
    assert not led.at and not led.streams.kept  # after the last step nothing is held


def test_what_a_step_holds_out_is_every_fifth_of_all_images(tiny_vit, make_images):
    model, images = tiny_vit(), make_images(9)
    slim = surgery.slim(model, mask_for(model))
    led, x = walk.Walk(slim, model, True), streams(slim, images)["n"][0]
    assert led.start(images[:3].split(2)) == led.start(images[3:].split(2), 2, 3) - 1 == 2
    for part, chosen in ((range(2), []), (range(2, 5), [4])):
        seen = led.moments(part, 0)
        assert seen.held_out.rows == len(chosen) * x.shape[1]
        if chosen:
            mean = seen.held_out.origin[0] + seen.held_out.gram[-1, :-1] / seen.held_out.rows
            torch.testing.assert_close(mean, x[chosen].mean((0, 1)))


def test_sums_around_another_origin_are_those_of_the_rows():
    draw = torch.Generator().manual_seed(2)
    h, t = (torch.randn(50, n, generator=draw, dtype=torch.float64) + 3 for n in (7, 4))
    origin = h[30:].mean(0), t[30:].mean(0)
    here, there = SecondMoments(), SecondMoments()
    here.add(h[:30], t[:30])
    there.add(h[:30], t[:30], origin)
    moved = here.around(origin)
    row = torch.cat([h[:30] - origin[0], torch.ones(30, 1)], 1)
    torch.testing.assert_close(moved.gram, row.T @ row)
    for name in ("gram", "cross", "square"):
        torch.testing.assert_close(getattr(moved, name), getattr(there, name))
    assert moved.rows == 30 and here.around(here.origin) is here and moved.around(origin) is moved
    rest, whole = SecondMoments(), SecondMoments()
    rest.add(h[30:], t[30:])
    whole.add(h, t)
    old = h.new_zeros(4, 7)
    again = SecondMoments.of(rest.sums("a"), "a", torch.device("cpu"))
    assert again.rows == 20 and torch.equal(again.gram, rest.gram) and torch.equal(again.origin[1], rest.origin[1])
    rest += here
    for one, other in zip(rest.solve(old, 1e-3), whole.solve(old, 1e-3), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_the_bytes_that_are_told_of_a_repair_are_those_of_its_streams(tiny_vit, make_images, monkeypatch):
    model, images = tiny_vit(dtype=torch.float32), make_images(10, dtype=torch.float32)
    real, most = repair_streams.Streams.put, []

    def put(self, *given):
        real(self, *given)
        most.append(sum(value.nbytes for value in self.kept.values()))

    monkeypatch.setattr(repair_streams.Streams, "put", put)
    layerwise.repair(surgery.slim(model, mask_for(model)), model, images.split(4), attention=True)
    sites = families.ffn_sites(model)
    counts, widths = tokens.tokens_per_site(model, sites), [tokens.stream_width(model, site) for site in sites]
    ffns = tuple(Layer(t, site.size, w) for t, site, w in zip(counts, sites, widths, strict=True))
    told = formulas.carried_bytes(Shape(ffns, (), 5, 0, 0, 0, 0.6), 10)
    assert told == max(most) and formulas.spilled(told, told) == 0 and formulas.spilled(told + 1, told) == 1


@pytest.mark.parametrize("bias", [False, True])
def test_targets_through_a_layer_need_not_be_made_row_by_row(bias):
    draw = torch.Generator().manual_seed(2)
    h, t = (torch.randn(50, n, generator=draw, dtype=torch.float64) + 3 for n in (7, 4))
    old, layer = torch.randn(6, 7, generator=draw, dtype=torch.float64), nn.Linear(4, 6, bias=bias).double()
    layer.requires_grad_(False)
    before, direct = SecondMoments(), SecondMoments()
    for rows in (slice(0, 20), slice(20, 50)):
        before.add(h[rows], t[rows])
        direct.add(h[rows], layer(t[rows]))
    found, errors = before.through(layer), []
    for ridge in (1e-9, 1e-2):
        for one, other in zip(found.solve(old, ridge), direct.solve(old, ridge), strict=True):
            torch.testing.assert_close(one, other)
        errors.append(found.error(*found.solve(old, ridge)) - direct.error(*direct.solve(old, ridge)))
    assert errors[0] == pytest.approx(errors[1])  # less a constant
    empty = SecondMoments()
    assert empty.through(layer) is empty


def test_a_layer_scale_of_zero_and_a_layer_without_bias_are_left_alone(tiny_vit, make_images):
    model, images = tiny_vit(init_values=0.2, qkv_bias=False), make_images(6)
    model.blocks[0].ls2.gamma[3] = 0.0
    mask = mask_for(model)
    start, slim = surgery.slim(model, mask), surgery.slim(model, mask)
    layerwise.repair(slim, model, [images], attention=True, ridge=1e-3)
    assert torch.equal(slim.blocks[0].mlp.fc2.weight[3], start.blocks[0].mlp.fc2.weight[3])
    assert not torch.equal(slim.blocks[0].mlp.fc2.weight[2], start.blocks[0].mlp.fc2.weight[2])
    assert torch.equal(slim.blocks[1].attn.qkv.weight, start.blocks[1].attn.qkv.weight)
    assert all(bool(p.isfinite().all()) for p in slim.parameters())


def test_the_ridge_is_the_one_that_held_out_rows_like_best():
    draw = torch.Generator().manual_seed(1)
    h = torch.randn(60, 20, generator=draw, dtype=torch.float64)
    truth = torch.randn(5, 20, generator=draw, dtype=torch.float64)
    old = truth + 0.3 * torch.randn(5, 20, generator=draw, dtype=torch.float64)
    t = h @ truth.T + 4 * torch.randn(60, 5, generator=draw, dtype=torch.float64) + 7
    train, held = SecondMoments(), SecondMoments()
    train.add(h[:40], t[:40])
    held.add(h[40:], t[40:], train.origin)
    errors = {}
    for ridge in RIDGES:
        weight, bias = ridge_fit(h[:40], t[:40], old, ridge)
        errors[ridge] = float((t[40:] - h[40:] @ torch.tensor(weight).T - torch.tensor(bias)).square().sum()) / 20
        assert held.error(*train.solve(old, ridge)) == pytest.approx(errors[ridge], rel=1e-8)
    best = min(errors, key=errors.__getitem__)
    weight, bias = ridge_fit(h, t, old, best)
    found = fit(train, held, old, None)
    np.testing.assert_allclose(found[0].numpy(), weight, rtol=1e-8)
    np.testing.assert_allclose(found[1].numpy(), bias, rtol=1e-8)


def test_distillation_brings_the_logits_closer_and_leaves_the_model_frozen(tiny_vit, make_images):
    model, images = tiny_vit(dtype=torch.float32), make_images(32, dtype=torch.float32)
    mask = mask_for(model, 8)
    plain, trained = surgery.slim(model, mask), surgery.slim(model, mask)
    before = copy.deepcopy(plain.state_dict())
    mend(trained, model, mask, "distill", images=lambda: images.split(8), epochs=20)

    def distance(slim: nn.Module) -> float:
        p = model(images).log_softmax(-1)
        return float((p.exp() * (p - slim(images).log_softmax(-1))).sum(1).mean())

    assert distance(trained) < 0.7 * distance(plain)
    assert not trained.training and not any(p.requires_grad for p in trained.parameters())
    changed = {k for k, v in trained.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all(".mlp." in k or "norm" in k for k in changed)


@pytest.mark.parametrize("how", names.RECOVERIES)
def test_one_state_serves_several_slim_models(tiny_vit, make_images, how, monkeypatch):
    """Prepared once, the dense model is looked at once; every slim model is what a state of its own makes of it."""
    model, images = tiny_vit(dtype=torch.float32), make_images(6, dtype=torch.float32)
    plans, alone = [mask_for(model, width) for width in (6, 9, 6)], []
    for plan in plans:
        alone.append(surgery.slim(model, plan))
        mend(alone[-1], model, plan, how, lambda: images.split(4), epochs=1)
    repairer, streams = repair.Repairer(how, epochs=1), repair_streams.DenseStreams()
    state = repairer.prepare(model, lambda: images.split(4), streams=streams)
    monkeypatch.setattr(repair, "moments_of", None)  # not again
    for plan, expected in zip(plans, alone, strict=True):
        made = slimming.slim(plan, repairer, state)
        assert all(map(torch.equal, made.state_dict().values(), expected.state_dict().values()))
    assert bool(streams.tensors) == (names.closed_form(how) in ("sequential", "layerwise"))


def test_streams_are_kept_where_they_take_at_most_half_of_what_is_free(tiny_vit, monkeypatch):
    model = tiny_vit()
    site = families.ffn_sites(model)[0]
    one = 4 * tokens.tokens_per_site(model, [site])[0] * tokens.stream_width(model, site)
    whole = 5 * (2 * len(model.blocks) + 1) * one
    for free, kept in ((2 * whole, True), (2 * whole - 1, False)):
        monkeypatch.setattr(memory, "free", lambda device, free=free: free)
        assert (repair_streams.DenseStreams.if_room(model, 5) is not None) == kept


def test_dense_streams_beyond_a_processors_room_lie_in_a_file(tiny_vit, make_images, monkeypatch, tmp_path):
    model, images = tiny_vit(dtype=torch.float32), make_images(12, dtype=torch.float32)

    def repaired(kept: repair_streams.DenseStreams | None) -> list[torch.Tensor]:
        slim = surgery.slim(model, mask_for(model))
        layerwise.repair(slim, model, images.split(4), attention=True, kept=kept)
        return list(slim.state_dict().values())

    expected = repaired(None)
    every = repair_streams.DenseStreams.if_room(model, 12, 2, tmp_path)
    assert every.room == (128 << 20) // 2  # of two processes each has a half
    repaired(every)
    size = sum(value.nbytes for value in every.tensors.values())
    assert not every.filed.places
    monkeypatch.setattr(repair_streams, "KEPT_IN_MEMORY", size // 3)
    some = repair_streams.DenseStreams.if_room(model, 12, 1, tmp_path)
    for _ in range(2):
        assert all(map(torch.equal, repaired(some), expected))
        assert sum(value.nbytes for value in some.tensors.values()) <= size // 3
        assert len(some.tensors) + len(some.filed.places) == len(every.tensors)  # and none twice
    assert some.tensors and not list(tmp_path.iterdir())  # the file has no name


def test_a_repair_that_needs_images_says_so(tiny_vit):
    model = tiny_vit()
    mask = mask_for(model)
    for how in ("sequential", "layerwise", "distill", "affine+distill"):
        with pytest.raises(UserError, match="needs images"):
            mend(surgery.slim(model, mask), model, mask, how)
    with pytest.raises(UserError, match="no images"):
        mend(surgery.slim(model, mask), model, mask, "sequential", images=lambda: [])


@pytest.mark.parametrize("how", names.RECOVERIES)
def test_every_recovery_says_what_it_needs(tiny_vit, make_images, how):
    model, images = tiny_vit(dtype=torch.float32), make_images(6, dtype=torch.float32)
    mask = mask_for(model)
    slim, before = surgery.slim(model, mask), reference.snapshot(model)
    stats = moments.moments(model, families.ffn_sites(model), [images]) if names.needs_moments(how) else None
    batches = (lambda: [images]) if names.needs_images(how) else None
    mend(slim, model, mask, how, moments=stats, images=batches, epochs=1)
    assert bool(slim(images).isfinite().all())
    assert reference.same_state(before, reference.snapshot(model))
