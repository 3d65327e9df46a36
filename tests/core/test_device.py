"""Where float64 lives, how tensors move, and in what products are made; devices are simulated (helpers/simulated)."""

from __future__ import annotations

import pytest
import simulated
import torch

from vitprune.core import device
from vitprune.core.least_squares import SecondMoments, Stream


@pytest.mark.parametrize(("kind", "home"), [("cpu", "cpu"), ("cuda", "cuda"), ("mps", "cpu")])
def test_float64_lives_where_it_can(kind: str, home: str) -> None:
    assert device.wide(torch.device(kind)).type == home
    if kind == "cpu":
        return
    with simulated.device(kind) as own:
        made = device.widened(torch.ones(3).to(own))
        assert made.dtype == torch.float64 and made.device.type == home


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_least_squares_on_a_device_have_the_processors_bits(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, targets = (torch.randn(40, n, generator=generator) for n in (6, 4))
    layer = torch.nn.Linear(6, 4)

    def solved(h: torch.Tensor, t: torch.Tensor, old: torch.Tensor) -> list[torch.Tensor]:
        moments, stream = SecondMoments(), Stream()
        for part in (slice(0, 25), slice(25, 40)):
            moments.add(h[part], t[part])
            stream.add(h[None, part])
        found = stream.finish()
        return [*moments.solve(old, 1e-3), moments.shift(old), found.mean, found.covariance]

    here = solved(inputs, targets, layer.weight.detach().double())
    with simulated.device(kind) as own:
        old = device.widened(layer.weight.detach().to(own))
        there = [x.cpu() for x in solved(inputs.to(own), targets.to(own), old)]
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


def test_a_copy_in_host_memory_is_one_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinned where that is asked for and memory can be pinned; plain where it cannot; never the tensor itself."""
    x = torch.arange(6.0).requires_grad_()
    copy = device.host_copy(x, pinned=True)
    assert torch.equal(copy, x) and copy.data_ptr() != x.data_ptr() and not copy.requires_grad
    asked: list[bool] = []
    plain = torch.empty

    def empty(*shape: object, **how: object) -> torch.Tensor:
        asked.append(bool(how.pop("pin_memory", False)))
        if len(asked) == 2:
            raise RuntimeError("CUDA error: out of memory")
        return plain(*shape, **how)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(torch, "empty", empty)
    with simulated.device("cuda") as own:
        far = torch.arange(6.0).to(own)
        for _ in range(2):
            copy = device.host_copy(far, pinned=True)
            assert copy.device.type == "cpu" and torch.equal(copy, torch.arange(6.0))
        device.host_copy(far, pinned=False)
    assert asked == [True, True]


def test_what_goes_to_cuda_is_pinned_and_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    how: list[object] = []
    plain = torch.Tensor.to

    def to(self: torch.Tensor, *where: object, **more: object) -> torch.Tensor:
        how.append(more.get("non_blocking", False))
        return plain(self, *where, **more)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(torch.Tensor, "to", to)
    for kind, waits in (("cuda", True), ("mps", False)):
        with simulated.device(kind) as own:
            assert device.moved(torch.ones(2), own).device == own and how.pop() is waits


def test_products_are_of_their_kind_inside_and_as_before_outside() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = True
    x, own = torch.randn(8, 8), torch.device("cpu")
    flags = lambda: (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)  # noqa: E731
    with device.products("tf32", own):
        assert flags() == (True, True) and (x @ x).dtype == torch.float32
        with device.products("float32", own):  # as an exam, or a sum, inside a pass
            assert flags() == (False, False)
        assert flags() == (True, True)
    with device.products("bfloat16", own):
        assert (x @ x).dtype == torch.bfloat16 and flags() == (False, False)
        with device.products("float32", own):
            assert (x @ x).dtype == torch.float32
    with pytest.raises(ZeroDivisionError), device.products("tf32", own):
        raise ZeroDivisionError
    assert flags() == (False, True)
    stream = Stream()
    with device.products("bfloat16", own):  # what a pass in bfloat16 gives is summed as float32 products
        half = x @ x
        stream.add(half[None])
    expected = Stream()
    expected.add(half.float()[None])
    assert torch.equal(stream.finish().covariance, expected.finish().covariance)
