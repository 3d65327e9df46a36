"""Costs of a backbone: the gradient is along random directions of its features; slow float64 replicas."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch
from small import tiny_model
from torch import Tensor, nn

from vitprune.criteria import sampling
from vitprune.criteria.settings import Seeded
from vitprune.criteria.statistics import attention, fisher_obs
from vitprune.model import families, tokens
from vitprune.model.inside import backbone, hooks
from vitprune.model.sites.attention import attention_sites

T, D = 17, 16  # of the tiny model: one class token and 16 patches


def headless(**changed: object) -> nn.Module:
    return tiny_model(outputs=0, **changed).double()  # type: ignore[arg-type]


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 1, 28, 28, generator=torch.Generator().manual_seed(1)).double()


def drawn(image: Tensor, count: int, seed: int) -> Tensor:
    """The numbers of one image, written out."""
    generator = np.random.Generator(np.random.Philox(zlib.crc32(image.numpy().tobytes(), seed)))
    return torch.from_numpy(generator.standard_normal(count, np.float32)).double()


def jacobian(model: nn.Module, path: str, image: Tensor, along: str) -> Tensor:
    """∂(all numbers of the output)/∂(what the layer writes), [numbers, T, D], one image, by changing what is written."""
    seen: dict[int, Tensor] = {}
    with hooks.layers(model, [path], written=lambda i, x: seen.__setitem__(i, x.detach())):
        model(image[None])

    def of(written_TD: Tensor) -> Tensor:
        handle = model.get_submodule(path).register_forward_hook(lambda *_: written_TD[None])
        try:
            every = model.forward_features(image[None])[0]  # type: ignore[operator]
            pooled = model.forward_head(every[None])[0]  # type: ignore[operator]
        finally:
            handle.remove()
        return pooled if along == "pooled" else every.flatten()

    return torch.autograd.functional.jacobian(of, seen[0][0], vectorize=True)  # type: ignore[no-untyped-call,no-any-return]


def written_out(model: nn.Module, path: str, along: str, seed: int) -> Tensor:
    """G [D, D]: E over images and tokens of g gᵀ, g = Σ √w u·∂f/∂(what the layer writes)."""
    total = torch.zeros(D, D, dtype=torch.float64)
    every = images()
    for image in every:
        if along == "pooled":
            u = drawn(image, D, seed)
        else:
            u = drawn(image, T * D, seed)
            u[:D] *= (T - 1) ** 0.5  # the class token weighs as much as all patches together
        g_TD = torch.einsum("f,ftd->td", u, jacobian(model, path, image, along))
        total += g_TD.T @ g_TD
    return total / (len(every) * T)


def batches(x: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return [(part, torch.zeros(len(part), dtype=torch.int64)) for part in x.split(size)]


@pytest.mark.parametrize("along", ["tokens", "pooled"])
def test_the_metric_is_that_of_random_directions(along: str) -> None:
    model = headless()
    backbone.draw_along(model, along)  # type: ignore[arg-type]
    ffns, attentions = families.ffn_sites(model), attention_sites(model)
    ours, theirs = attention.statistics(model, ffns, attentions, lambda: batches(images(), 2), 5)
    for site, moments in zip(ffns, ours, strict=True):
        assert torch.allclose(moments.fisher, written_out(model, site.fc2, along, 5), rtol=1e-6, atol=1e-12)
        assert moments.tokens == T
    for of, found in zip(attentions, theirs, strict=True):
        assert torch.allclose(found.fisher, written_out(model, of.proj, along, 5), rtol=1e-6, atol=1e-12)
    alone = fisher_obs.statistics(model, ffns, lambda: batches(images(), 3), 5)[1]  # and of FFNs alone
    assert all(torch.allclose(one, two.fisher, rtol=1e-6) for one, two in zip(alone, ours, strict=True))


def test_the_rows_of_the_output_are_what_the_last_block_counts() -> None:
    """The class token as often as there are patches; where the pooled vector alone is read, the class token alone."""
    model = headless()
    ffns, x = families.ffn_sites(model), images()
    hidden: dict[int, Tensor] = {}
    with hooks.hidden_units(model, ffns, hidden.__setitem__):
        model(x)
    weight = torch.ones(T, dtype=torch.float64)
    weight[0] = T - 1
    for reads, of_last in (("tokens", weight), ("pooled", torch.eye(T, dtype=torch.float64)[0])):
        with backbone.reading(model, reads):  # type: ignore[arg-type]
            covariances = fisher_obs.statistics(model, ffns, lambda: batches(x, 2), 0)[0]
        for i, found in enumerate(covariances):
            w = of_last if i == len(ffns) - 1 else torch.ones(T, dtype=torch.float64)
            rows = hidden[i]
            share = (w / w.sum() / len(rows))[None, :, None]
            centred = rows - (share * rows).sum((0, 1))
            assert torch.allclose(found, torch.einsum("btn,btm->nm", share * centred, centred), rtol=1e-9, atol=1e-14)


def test_directions_hang_on_the_image_alone() -> None:
    x = images(5)
    found = sampling.directions(x, 7, 3)
    assert torch.equal(
        torch.cat([sampling.directions(x[2:], 7, 3), sampling.directions(x[:2], 7, 3)]).roll(2, 0), found
    )
    assert torch.equal(found[1].double(), drawn(x[1], 7, 3))
    assert not torch.equal(found, sampling.directions(x, 7, 4))
    many = sampling.directions(x[:1], 200_000, 0)
    assert abs(float(many.mean())) < 0.01 and abs(float(many.std()) - 1) < 0.01


def test_parts_add_up_to_the_sums_of_all_images() -> None:
    model, x = headless(), images(6)
    sites, how = families.ffn_sites(model), Seeded(2)
    whole = fisher_obs.sums(model, sites, lambda: batches(x, 2), classes=[0], how=how)
    parts = [
        fisher_obs.sums(model, sites, lambda p=p: batches(p, 2), classes=[0], how=how, first=whole) for p in x.split(2)
    ]
    for i in range(len(sites)):
        assert torch.equal(sum((part[f"fisher.{i}"] for part in parts), torch.zeros(())), whole[f"fisher.{i}"])


@pytest.mark.parametrize(("pool", "weight"), [("token", T - 1), ("avg", T - 1)])
def test_the_image_vector_weighs_as_much_as_all_rows(pool: str, weight: float) -> None:
    model = headless(global_pool=pool)
    found = backbone.of(model)
    assert found is not None
    told = found.features(images())
    out = found.output(told)
    assert out.weight == weight and torch.equal(out.vector, told.tokens[:, 0]) and out.rows.shape == (2, T - 1, D)
    pooled = found.output(told, "pooled")
    assert pooled.weight == 1 and torch.equal(pooled.vector, told.pooled) and pooled.rows.shape == (2, 0, D)


def test_without_a_class_token_the_pooled_vector_is_counted_beside_the_rows() -> None:
    model = headless(class_token=False, global_pool="avg")
    found = backbone.of(model)
    assert found is not None and not found.class_token
    out = found.output(found.features(images()))
    assert out.weight == T - 1 and out.rows.shape == (2, T - 1, D)
    assert torch.equal(out.vector, found.features(images()).pooled)
    assert tokens.tokens_read(model) == slice(0, None)
