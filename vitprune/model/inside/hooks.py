"""Reading and changing hidden units inside a model; the only place that registers a hook.

The hidden units are taken at the input of fc2, as it reads them (after the activation, the gate, and the norm that some
families have there): hidden_BTN (B images, T tokens, N units; a grid of tokens comes as one row of them).
Every context removes its hooks in `finally`, also when entering or the forward pass fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from vitprune.model.plain import OURS
from vitprune.model.sites import ffn
from vitprune.model.sites.ffn import FfnSite

Edit = Callable[[int, Tensor], Tensor | None]


def _ours(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The same, marked: a hook of somebody else's on an FFN is refused."""
    setattr(hook, OURS, True)
    return hook


@contextmanager
def hidden_units(model: nn.Module, sites: Sequence[FfnSite], edit: Edit) -> Iterator[None]:
    """Call `edit(position in sites, hidden_BTN)` on every forward; a returned tensor takes the hidden units' place."""
    handles: list[torch.utils.hooks.RemovableHandle] = []

    def hook_for(position: int) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...] | None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            changed = _in_its_shape(edit(position, _as_rows(inputs[0])), inputs[0])
            return None if changed is None else (changed, *inputs[1:])

        return hook

    try:
        for position, site in enumerate(sites):
            handles.append(model.get_submodule(site.fc2).register_forward_pre_hook(_ours(hook_for(position))))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def layers(
    model: nn.Module, paths: Sequence[str], read: Edit | None = None, written: Edit | None = None
) -> Iterator[None]:
    """Call `read(position in paths, input)` and `written(position, output)` on every forward of a layer; a returned tensor
    takes the place."""
    handles: list[torch.utils.hooks.RemovableHandle] = []

    def before(position: int) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...] | None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            changed = None if read is None else read(position, inputs[0])
            return None if changed is None else (changed, *inputs[1:])

        return hook

    try:
        for position, path in enumerate(paths):
            layer = model.get_submodule(path)
            if read is not None:
                handles.append(layer.register_forward_pre_hook(_ours(before(position))))
            if written is not None:
                after = lambda _, __, out, position=position: written(position, out)  # noqa: E731
                handles.append(layer.register_forward_hook(_ours(after)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def ffn_outputs(model: nn.Module, sites: Sequence[FfnSite], edit: Edit) -> Iterator[None]:
    """Call `edit(position in sites, out_BTD)` with fc2's output on every forward; a returned tensor takes its place."""
    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        for position, site in enumerate(sites):
            hook = lambda _, __, out, position=position: _in_its_shape(edit(position, _as_rows(out)), out)  # noqa: E731
            handles.append(model.get_submodule(site.fc2).register_forward_hook(_ours(hook)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _as_rows(x: Tensor) -> Tensor:
    return x.flatten(1, -2) if x.ndim > 2 else x[:, None]


def _in_its_shape(changed: Tensor | None, like: Tensor) -> Tensor | None:
    return None if changed is None else changed.reshape(like.shape)


def _norm_over(small: nn.Module, units: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> Tensor:
        return ffn.norm_over(small, units, inputs[0])

    return hook


@contextmanager
def masked(model: nn.Module, sites: Sequence[FfnSite], keep: Sequence[Tensor]) -> Iterator[None]:
    """Zero the hidden units that `keep` (per block bool [n]) drops, at every token.

    A norm between the hidden units and fc2 is taken over the kept units alone, so that masking is what slicing does.
    """

    def edit(position: int, hidden_BTN: Tensor) -> Tensor:
        return hidden_BTN * keep[position].to(hidden_BTN)

    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        for site, kept in zip(sites, keep, strict=True):
            if site.norm is not None:
                norm, units = model.get_submodule(site.norm), kept.nonzero().flatten()
                handles.append(norm.register_forward_hook(_ours(_norm_over(ffn.norm_of(norm, units), units))))
        with hidden_units(model, sites, edit):
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def masked_class_token(model: nn.Module, sites: Sequence[FfnSite], keep_BN: Sequence[Tensor]) -> Iterator[None]:
    """Zero hidden units of the class token only, image by image: `keep_BN` per block bool [B, n] (the paper's mask)."""

    def edit(position: int, hidden_BTN: Tensor) -> Tensor:
        first = hidden_BTN[:, :1] * keep_BN[position].to(hidden_BTN)[:, None]
        return torch.cat([first, hidden_BTN[:, 1:]], 1)

    with hidden_units(model, sites, edit):
        yield


@contextmanager
def outputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """A list that holds, in their order, what the calls of `module` inside return."""
    seen: list[Tensor] = []
    handle = module.register_forward_hook(_ours(lambda _, __, out: seen.append(out)))
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """A list that holds, in their order, what the calls of `module` inside are given."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(_ours(lambda _, inputs: seen.append(inputs[0])))
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def keywords_of(modules: Sequence[nn.Module]) -> Iterator[list[dict[str, Any]]]:
    """A list with the keyword arguments of each module's latest call inside."""
    given: list[dict[str, Any]] = [{} for _ in modules]
    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        for kept, module in zip(given, modules, strict=True):
            hook = lambda _, __, keywords, kept=kept: kept.update(keywords)  # noqa: E731
            handles.append(module.register_forward_pre_hook(_ours(hook), with_kwargs=True))
        yield given
    finally:
        for handle in handles:
            handle.remove()


class _Reached(Exception):  # noqa: N818 (a signal)
    """The pass has come far enough."""


def input_of(module: nn.Module, forward: Callable[[], object]) -> Tensor:
    """The first positional input of `module` in `forward()`, which goes no further than there."""
    seen: list[Tensor] = []

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])
        raise _Reached

    handle = module.register_forward_pre_hook(_ours(hook))
    try:
        with suppress(_Reached):
            forward()
    finally:
        handle.remove()
    return seen[0]
