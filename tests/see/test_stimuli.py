"""Stimulus images against what is known by hand: parametrisations, moves, objectives, and units whose best image is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import hypergeom
from small import tiny_model
from test_maps import planted
from torch import nn

from vitprune.core.errors import UserError
from vitprune.exam.metrics import wilson
from vitprune.model import families
from vitprune.see.pictures.stimuli import ascent, canvas, objective, transforms, verdicts
from vitprune.see.pictures.stimuli.ascent import Settings, Stimulus
from vitprune.see.pictures.stimuli.objective import Target
from vitprune.see.pictures.stimuli.space import Space

METHODS = ("fourier", "maco", "pixel")


def space(channels: int = 1, size: tuple[int, int] = (28, 28), seed: int = 0) -> Space:
    images = torch.randn(12, channels, *size, generator=torch.Generator().manual_seed(seed)) + 0.3
    return Space.of([0.4, 0.5, 0.6][:channels], [0.2, 0.25, 0.3][:channels], images.split(5))


def made(model: nn.Module, wanted: list[tuple[Target, int]], own: Space, **how: Any) -> list[Stimulus]:
    return list(ascent.make(model, families.ffn_sites(model), wanted, own, Settings(**({"steps": 4} | how))))


def one(site: int, unit: int, output: int | None = None) -> Target:
    return Target(((site, unit),), output=output)


@pytest.mark.parametrize("size", [(28, 28), (7, 9), (8, 5)])
def test_maco_keeps_the_probe_images_spectrum(size: tuple[int, int]) -> None:
    own = space(3, size)
    phases = canvas.start("maco", own, [torch.Generator().manual_seed(i) for i in range(4)])
    images = canvas.image("maco", own, phases)
    found = torch.fft.rfft2(images).abs()
    assert (found - own.spectrum).abs().max() <= 1e-5 * own.spectrum.max()
    assert (torch.fft.rfft2(images)[..., 0, 0].real > 0).all()  # the mean has phase 0
    assert not torch.equal(images[0], images[1])


def test_the_spectrum_and_the_colours_are_those_of_the_images() -> None:
    images = torch.rand(9, 3, 6, 7, dtype=torch.float64)
    images[:, 1] = 0.7 * images[:, 0] + 0.1 * images[:, 1]
    own = Space.of([0.0] * 3, [1.0] * 3, images.split(4))
    torch.testing.assert_close(own.spectrum.double(), torch.fft.rfft2(images).abs().mean(0))
    expected = np.cov(images.transpose(0, 1).flatten(1), bias=True)
    root = own.colour.double().numpy()
    ratio = (root @ root.T) / expected
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-4)
    assert np.linalg.norm(root, axis=0).max() == pytest.approx(1)
    assert space(1).colour.tolist() == [[1.0]]


def test_fourier_by_hand() -> None:
    """The scale of every frequency, and the way back through rfft."""
    own = space(1, (6, 5))
    numbers = canvas.start("fourier", own, [torch.Generator().manual_seed(3)])
    assert numbers.shape == (1, 1, 6, 3, 2) and numbers.std().item() == pytest.approx(0.01, rel=0.4)
    scale = canvas.frequency_scale(6, 5)
    for y, fy in enumerate([0, 1, 2, 3, -2, -1]):
        for x in range(3):
            assert scale[y, x].item() == pytest.approx(1 / max(math.hypot(fy / 6, x / 5), 1 / 6))
    image = canvas.image("fourier", own, numbers)
    pixels = image * own.std[:, None, None] + own.mean[:, None, None]
    back = torch.fft.rfft2(4 * torch.logit(pixels.double()), norm="ortho")[0, 0]
    expected = torch.view_as_complex(numbers.double())[0, 0] * scale
    torch.testing.assert_close(back[:, 1:], expected[:, 1:], rtol=1e-3, atol=1e-5)  # the first column is its own mirror


def test_a_move_that_is_none_only_adds_the_border() -> None:
    images = torch.rand(2, 3, 32, 16)
    still = torch.tensor([[0.0, 0, 1 + 2 * transforms.BORDER - sum(transforms.SHIFTS), 0]] * 2)
    fill = torch.tensor([0.1, 0.2, 0.3])
    torch.testing.assert_close(transforms.moved(images, still, fill), images)
    turned = still.clone()
    turned[:, 3] = math.pi / 2
    square = images[..., :16, :]
    torch.testing.assert_close(transforms.moved(square, turned, fill), square.rot90(1, (2, 3)), rtol=1e-3, atol=1e-3)
    away = still.clone()
    away[:, 0] = 0.25
    found = transforms.moved(images, away, fill)
    torch.testing.assert_close(found[..., :12], images[..., 4:])
    torch.testing.assert_close(found[..., 13:], fill[:, None, None].expand(2, 3, 32, 3))


def test_moves_stay_in_their_limits_and_are_each_image_s_own() -> None:
    drawn = torch.cat([transforms.draw([torch.Generator().manual_seed(i)]) for i in range(300)])
    both = transforms.draw([torch.Generator().manual_seed(i) for i in (4, 9)])
    assert torch.equal(both, drawn[[4, 9]])
    assert drawn[:, :2].abs().max() <= 6 / 128 and drawn[:, 3].abs().max() <= math.radians(10)
    assert drawn[:, 2].min() >= 0.9 and drawn[:, 2].max() <= 1.1
    assert drawn.std(0).min() > 0.01


def test_likeness_of_one_image_is_its_number_of_tokens_and_has_no_gradient() -> None:
    hidden = torch.randn(1, 7, 5, dtype=torch.float64, requires_grad=True)
    found = objective.likeness(hidden)
    assert found.item() == pytest.approx(7)
    assert torch.autograd.grad(found, hidden)[0].abs().max() < 1e-12
    three = torch.randn(3, 2, 5, dtype=torch.float64)
    by_hand = sum(
        torch.cosine_similarity(three[m, t], three[n, t], 0) for m in range(3) for n in range(3) for t in range(2)
    )
    torch.testing.assert_close(objective.likeness(three), torch.as_tensor(by_hand))


def test_weights_of_several_units() -> None:
    units = [(0, 1), (1, 2), (1, 3)]
    assert objective.mixed(units, [3, 1, -2], "equal").weights == pytest.approx((1 / 3,) * 3)
    assert objective.mixed(units, [3, 1, -2], "score").weights == (0.75, 0.25, 0)
    assert objective.mixed(units, [-3, -1, -2], "score").weights == pytest.approx((1 / 3,) * 3)
    e = np.exp([3.0, 1, -2])
    assert objective.mixed(units, [3, 1, -2], "softmax").weights == pytest.approx(tuple(e / e.sum()))
    found = {0: torch.rand(2, 4, 5), 1: torch.rand(2, 4, 5)}
    spans = {0: slice(0, None), 1: slice(0, 1)}
    value = objective.value(objective.mixed(units, [3, 1, -2], "score"), 1, found, spans)
    assert value.item() == pytest.approx(0.75 * found[0][1, :, 1].mean().item() + 0.25 * found[1][1, 0, 2].item())


def test_a_unit_that_is_a_patch_s_mean_is_white_there_and_grey_elsewhere() -> None:
    model: Any = planted((28, 28))
    grid = torch.eye(16)
    model.pos_embed[0, 1:, 1] = grid[5]  # only patch 5 says so
    for block in model.blocks:
        block.mlp.fc1.weight[0, 1], block.mlp.fc1.bias[0] = 100, -100
    own = Space.of([0.0], [1.0], [torch.rand(4, 1, 28, 28)])
    for method in ("pixel", "fourier"):
        found = made(model, [(one(0, 0), 0)], own, steps=60, activation="post", method=method, rate=0.3)[0]
        assert found.pixels is not None and found.pixels.shape == (28, 28, 1)
        cell = found.pixels[7:14, 7:14].astype(float)
        rest = found.pixels.astype(float)
        rest[5:16, 5:16] = np.nan
        assert cell.mean() > 230 and (method == "fourier" or abs(np.nanmean(rest) - 127) < 4)
        assert found.value is not None and found.value > 0.03


def test_a_linear_unit_s_image_is_the_best_in_the_box(monkeypatch: pytest.MonkeyPatch) -> None:
    """w·x over pixels from 0 to 1 is highest where every pixel is white or black by the sign of its weight."""
    monkeypatch.setattr(transforms, "moved", lambda images, *_: images)
    model: Any = planted((28, 28))
    w = torch.randn(7, 7, generator=torch.Generator().manual_seed(0)) / 49
    model.patch_embed.proj.weight[0, 0] = w
    own = Space.of([0.2], [0.4], [torch.rand(4, 1, 28, 28)])
    pixels = made(model, [(one(1, 0), 0)], own, steps=40, method="pixel", tokens="all", rate=0.3)[0].pixels
    assert pixels is not None
    assert ((pixels[..., 0] > 250) == (w > 0).repeat(4, 4).numpy()).all()
    assert ((pixels[..., 0] < 5) == (w < 0).repeat(4, 4).numpy()).all()


@pytest.mark.parametrize("method", METHODS)
def test_no_step_leaves_the_first_image(method: canvas.Method) -> None:
    own, target = space(3), one(1, 5)
    model = tiny_model(3)
    found = made(model, [(target, 7)], own, steps=0, method=method)[0]
    generator = torch.Generator().manual_seed(ascent._number(target, 7))
    first = canvas.image(method, own, canvas.start(method, own, [generator]))
    assert found.pixels is not None and (found.pixels == own.quantised(first)[0]).all()


@pytest.mark.parametrize("method", METHODS)
def test_an_image_is_the_same_alone_or_among_others(method: canvas.Method) -> None:
    model, own = tiny_model(3), space(3)
    wanted = [(one(1, 5), 0), (one(0, 3), 0), (one(1, 5), 1), (one(1, 60), 0), (one(0, 2), 4)]
    for at_once in (1, 3):
        together = made(model, wanted, own, method=method, at_once=at_once)
        for request, image in zip(wanted, together, strict=True):
            alone = made(model, [request], own, method=method, at_once=at_once)[0]
            assert alone.pixels is not None and image.pixels is not None
            assert (alone.pixels == image.pixels).all() and (image.target, image.seed) == request
    first, third = together[0].pixels, together[2].pixels
    assert first is not None and third is not None and (first != third).any()  # another seed


def test_what_becomes_non_finite_fails_alone() -> None:
    model: Any = tiny_model()
    model.blocks[1].mlp.fc1.bias[5] = float("nan")
    wanted = [(one(1, 4), 0), (one(1, 5), 0), (one(1, 6), 0)]
    broken = made(model, wanted, space(), at_once=3)
    assert [s.failed for s in broken] == [None, ascent.FAILED, None] and broken[1].pixels is None
    rate = verdicts.rate(broken, [None if s.failed else 0 for s in broken])
    assert (rate.n, rate.failed, rate.share) == (0, 1, None)  # no target has a class
    whole = made(tiny_model(), wanted, space(), at_once=3)
    for i in (0, 2):
        assert (broken[i].pixels == whole[i].pixels).all()  # type: ignore[attr-defined]


def test_ascent_raises_the_unit_and_leaves_the_model_as_it_was() -> None:
    model: Any = tiny_model(drop_path_rate=0.3).train()
    model.head.weight.requires_grad_(True)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    target = [(one(1, 9), 0)]
    start, end = (made(model, target, space(), steps=steps)[0].value for steps in (0, 40))
    assert start is not None and end is not None and end > start + 0.1
    assert model.training and model.head.weight.requires_grad and not model.head.bias.requires_grad
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


def test_the_pass_goes_no_further_than_its_last_unit() -> None:
    model: Any = tiny_model()
    model.blocks[1].norm1.register_forward_hook(lambda *_: pytest.fail("went on"))
    sites = families.ffn_sites(tiny_model())
    found = next(iter(ascent.make(model, sites, [(one(0, 1), 0)], space(), Settings(steps=2))))
    assert found.value is not None


def test_diversity_moves_the_images_of_a_unit_apart() -> None:
    model, wanted = tiny_model(), [(one(0, 9), 0), (one(0, 9), 1)]

    def alike(diversity: float) -> float:
        found = made(model, wanted, space(), steps=30, diversity=diversity, method="pixel", rate=0.2)
        pixels = np.stack([s.pixels for s in found if s.pixels is not None]).reshape(2, -1).astype(float)
        return float(np.corrcoef(pixels)[0, 1])

    assert alike(1.0) < alike(0.0) - 0.05


def test_tokens_that_are_not_there_are_refused() -> None:
    with pytest.raises(UserError, match="reads no class token"):
        made(tiny_model(global_pool="avg"), [(one(0, 0), 0)], space(), tokens="cls")


def test_rates_by_hand() -> None:
    stimuli = [
        Stimulus(one(0, i, output), 0, np.zeros((28, 28, 1), np.uint8), 1.0) for i, output in enumerate([0, 1, 2, 1])
    ]
    rate = verdicts.rate(stimuli, [0, 1, 0, 0])
    assert (rate.right, rate.n) == (2, 4) and (rate.low, rate.high) == wilson(2, 4)
    mapped = verdicts.rate(stimuli, [5, 3, 0, 3], [5, 3, None])  # the judge has no class 2
    assert (mapped.right, mapped.n) == (3, 3)
    p = verdicts.apart(verdicts.Rate(18, 30, 0, 1), verdicts.Rate(9, 20, 0, 1))
    known = hypergeom(50, 27, 30).pmf(range(7, 28))
    assert p == pytest.approx(known[known <= known[18 - 7] * (1 + 1e-9)].sum()) and 0.3 < p < 0.5
    assert verdicts.apart(verdicts.Rate(0, 0, None, None), rate) is None


def test_verdicts_are_of_the_pixels_that_are_shown() -> None:
    model, own = tiny_model(3), space(3)
    found = made(model, [(one(1, 5), 0), (one(1, 6), 0)], own)
    shown = [model(own.seen(s.pixels[None])).argmax().item() for s in found if s.pixels is not None]
    assert verdicts.own_verdicts(model, found, own) == shown
    grey = tiny_model(1)
    seen = []

    def transform(image: Any) -> torch.Tensor:
        seen.append(image.mode)
        return torch.from_numpy(np.asarray(image.resize((28, 28)), np.float32)[None] / 255)

    assert len(verdicts.judged(grey, found, transform, 1)) == 2 and seen == ["L", "L"]
