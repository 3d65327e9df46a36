"""Small timm models with weights that are not trivial, and images to go with them."""

from __future__ import annotations

import atexit
import gc
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import timm
import torch
from small import quicken
from torch import Tensor, nn

TinyVit = Callable[..., nn.Module]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test marked `sample(n)` n of its cases, spread evenly from the first, are quick; the others are slow."""
    cases: dict[tuple[str, str], list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("sample"):
            cases[str(item.path), item.nodeid.partition("[")[0]].append(item)
    for every in cases.values():
        sample = every[0].get_closest_marker("sample")
        assert sample is not None
        few = min(sample.args[0], len(every))
        quick = {n * len(every) // few for n in range(few)}
        for place, item in enumerate(every):
            if place not in quick:
                item.add_marker("slow")


atexit.register(gc.unfreeze)
gc.freeze()  # every stage of a run collects garbage first: what the libraries made at import is none, and is many


@pytest.fixture(scope="module", autouse=True)
def known_to_be_no_garbage() -> None:
    """So it is for what was imported since: a collection looks at the module's own objects only."""
    gc.collect()
    gc.freeze()


def make_tiny_vit(*, seed: int = 0, dtype: torch.dtype = torch.float64, **changed: Any) -> nn.Module:
    """A timm VisionTransformer for 28 × 28 grey images, all weights noisy, frozen, in eval mode."""
    args: dict[str, Any] = {
        "img_size": 28, "patch_size": 7, "in_chans": 1, "embed_dim": 16, "depth": 3, "num_heads": 2,
        "num_classes": 5, "mlp_ratio": 2.0,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model("vit_tiny_patch16_224", **(args | changed)).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            if name.endswith("gamma"):
                weight.add_(0.3 * noise)
            elif weight.ndim > 1 and "token" not in name and "pos_embed" not in name:
                weight.add_(1.2 * noise / weight[0].numel() ** 0.5)
            else:
                weight.add_(0.3 * noise)
    return model.to(dtype).eval().requires_grad_(False)


def make_images(count: int, *, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 28, 28, generator=generator, dtype=torch.float64).to(dtype)


@pytest.fixture(name="tiny_vit")
def tiny_vit_fixture() -> TinyVit:
    return make_tiny_vit


@pytest.fixture(name="make_images")
def make_images_fixture() -> Callable[..., Tensor]:
    return make_images


@pytest.fixture(scope="module", name="quick")
def quick_fixture() -> Iterator[None]:
    """Whole runs of tiny models in one thread, with what is only costly at their size cut short."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        yield


@pytest.fixture(autouse=True)
def few_threads() -> None:
    torch.set_num_threads(1)
