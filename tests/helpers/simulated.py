"""A device that is not there: tensors that say they are on it and are worked out by the processor, to the same bits.

What a real one refuses is refused here too: a product of its tensors with the processor's, numpy on its memory, and on mps
float64. Speed, streams and memory are not simulated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map


class RefusedError(AssertionError):
    """What a real device would not do."""


def is_there(x: Any) -> bool:
    """Whether a tensor says that it is on the simulated device."""
    return getattr(x, "_there", False)


HOST = {"numpy", "item", "tolist", "__float__", "__int__", "__bool__", "__index__", "is_pinned"}
BOTH = {"__get__", "__set__", "copy_", "to", "__setitem__", "__getitem__", "index", "type", "set_"}


class _Mode(TorchFunctionMode):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.device = torch.device(name)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        there = [x for x in given if is_there(x)]
        if func == Tensor.device.__get__:
            return self.device if there else torch.device("cpu")
        if name in ("pin_memory", "is_pinned"):
            return args[0] if name == "pin_memory" else False
        if name == "numpy" and there:
            raise RefusedError("numpy on the device's memory")
        to = self.asked(name, args, kwargs)
        if there and name not in HOST | BOTH and any(self.foreign(x) for x in given):
            raise RefusedError(f"{name}: a tensor of the device with one of the processor")
        lands = bool(there) if to is None else to.type == self.device.type
        lands = is_there(args[0]) if name == "copy_" else lands
        args, kwargs = self.plain(args), self.plain(kwargs)
        with torch._C.DisableTorchFunction():
            made = func(*args, **kwargs)
            if name == "to" and made is args[0] and not there and not made.requires_grad:
                made = made.detach()  # what is on the processor stays there beside its copy
        if name in HOST or (name == "__get__" and not isinstance(made, Tensor)):
            return made
        return tree_map(lambda x: self.laid(x, lands), made)

    def asked(self, name: str, args: Any, kwargs: Any) -> torch.device | None:
        """The device that a call names."""
        if name == "cpu":
            return torch.device("cpu")
        found = kwargs.get("device")
        if name == "to":
            found = found or next((a for a in args[1:] if isinstance(a, torch.device | str | Tensor)), None)
        if isinstance(found, Tensor):
            return self.device if is_there(found) else torch.device("cpu")
        return None if found is None else torch.device(found)

    def plain(self, value: Any) -> Any:
        """The same arguments, for the processor."""

        def one(x: Any) -> Any:
            if isinstance(x, torch.device):
                return torch.device("cpu") if x.type == self.device.type else x
            return x

        made = tree_map(one, value)
        if isinstance(made, dict):
            made = {k: (torch.device("cpu") if k == "device" and v is not None else v) for k, v in made.items()}
            made = {k: False if k == "pin_memory" else v for k, v in made.items()}
        return made

    def foreign(self, x: Tensor) -> bool:
        return x.ndim > 0 and not is_there(x) and not torch._C._functorch.is_functorch_wrapped_tensor(x)

    def laid(self, x: Any, lands: bool) -> Any:
        if not isinstance(x, Tensor) or is_there(x) == lands:
            return x
        if lands and self.device.type == "mps" and x.dtype == torch.float64:
            raise RefusedError("float64 on mps")
        if not lands:
            x = x.detach() if not x.requires_grad else x.view_as(x)
        x._there = lands
        return x


@contextmanager
def device(name: str) -> Iterator[torch.device]:
    """Inside, the device `name` is there; `there` puts a model on it."""
    plain = nn.Parameter.__new__

    def made(cls: type, data: Tensor | None = None, requires_grad: bool = True) -> Any:
        parameter = plain(cls, data, requires_grad)
        if is_there(data):
            parameter._there = True
        return parameter

    nn.Parameter.__new__ = made
    try:
        with _Mode(name) as mode:
            yield mode.device
    finally:
        nn.Parameter.__new__ = plain


def there(model: nn.Module) -> nn.Module:
    """The model with its weights on the simulated device."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor._there = True
    return model
