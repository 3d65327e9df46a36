"""What a width of a site costs: parameters, multiply-adds, or seconds measured here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from vitprune.core.device import device_of
from vitprune.model.sites import ffn
from vitprune.model.sites.ffn import FfnSite

Price = Literal["parameters", "flops", "latency"]
Prices = Callable[[str, np.ndarray], np.ndarray]  # a site's name, its admissible sizes → what each costs

ROWS, REPEATS = 512, 7


def of_sites(model: nn.Module, sites: Sequence[FfnSite], of: Price) -> Prices:
    """What sizes of the sites cost, asked for by a site's name."""
    by_name = {site.name: site for site in sites}
    return lambda name, sizes: price(model, by_name[name], sizes, of)


def price(model: nn.Module, site: FfnSite, choice: np.ndarray, of: Price) -> np.ndarray:
    """What one FFN of each width costs: parameters, multiply-adds per token, or seconds measured on the model's device."""
    if of == "latency":
        return _seconds(model, site, choice)
    costs = [site.cost(model, int(size)) for size in choice]
    return np.array([cost.parameters if of == "parameters" else cost.macs for cost in costs], float)


@torch.inference_mode()
def _seconds(model: nn.Module, site: FfnSite, choice: np.ndarray) -> np.ndarray:
    """Median seconds of an FFN of each width on 512 tokens, without its norm, never falling from one width to the next."""
    device, act = device_of(model), model.get_submodule(site.act)
    depth, made = ffn.linear(model, site.fc1).in_features, site.parts + (site.gate is not None)
    rows = torch.randn(ROWS, depth, device=device)
    layers = [(nn.Linear(depth, made * int(k), device=device), nn.Linear(int(k), depth, device=device)) for k in choice]
    times = np.empty((REPEATS, len(layers)))
    for repeat in range(-1, REPEATS):  # the first round warms up; widths take turns, so that drift cancels
        for column, (first, second) in enumerate(layers):
            started = time.perf_counter()
            hidden, *gate = first(rows).chunk(made, -1)
            out: Tensor = second(act(hidden) * gate[0] if gate else act(hidden))
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            assert out.shape == rows.shape
            if repeat >= 0:
                times[repeat, column] = time.perf_counter() - started
    return np.maximum.accumulate(np.median(times, 0))
