"""Whether a module is what its class says and nothing more.

Weights can be cut or refitted only where they alone say what a layer does. A subclass with more inside (LoRA), a hook, a
method put in the place of the class's, a weight that is computed from others (parametrisations, weight norm, pruning
masks) or that serves two layers: each is found here, and said in words that follow the module's path.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from timm.layers import DropPath, LayerScale
from torch import Tensor, nn

from vitprune.core.errors import UserError

OURS = "hooked_by_vitprune"  # an attribute of our own hooks, which come and go around a pass
LINEAR = (nn.Linear,)
IDLE = (nn.Dropout, nn.Identity, DropPath)  # gives back what it is given, in eval mode
SCALES = (LayerScale, nn.Identity)
REMEDY = "merge or remove what was added to it first"
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def require(path: str, module: nn.Module | None, kinds: Iterable[type] = ()) -> None:
    """Raises UserError naming `path` where its module is not exactly one of `kinds` (none given: whatever it is, but
    untouched)."""
    kinds = tuple(kinds)
    reason = why_not(module, kinds or (type(module),)) if module is not None else "is missing"
    if reason is not None:
        raise UserError(f"{path}: {reason}")


def require_per_unit(path: str, act: nn.Module, width: int) -> None:
    """Raises UserError where an activation has something of its own for every unit, or mixes them."""
    require(path, act)
    if not per_unit(act, width):
        raise UserError(
            f"{path}: {type(act).__name__} does not treat every hidden unit alike and alone (a parameter per unit, or a "
            "function of several); an element-wise activation is needed"
        )


def why_not(module: nn.Module, kinds: Iterable[type]) -> str | None:
    """Why `module` is not exactly one of `kinds`, with weights of its own alone; None where it is."""
    kinds = tuple(kinds)
    if type(module) not in kinds:
        return f"{type(module).__name__} is not supported; a plain {kinds[0].__name__} is needed, {REMEDY}"
    return touched(module) or (_weights(module) if type(module) is nn.Linear else None)


def touched(module: nn.Module) -> str | None:
    """A hook that is not ours, or a method that was replaced."""
    for kind in HOOKS:
        for hook in getattr(module, kind).values():
            if not getattr(hook, OURS, False):
                return f"has a hook ({getattr(hook, '__name__', type(hook).__name__)}); remove it first"
    for name, value in vars(module).items():
        if callable(value) and callable(getattr(type(module), name, None)):
            return f"its `{name}` was replaced; {REMEDY}"
    if _home(type(module).forward) not in {_home(c) for c in type(module).__mro__}:
        return f"the `forward` of its class {type(module).__name__} was replaced; restore it first"
    return None


def _home(thing: object) -> str:
    """The package that something was written in."""
    return str(getattr(thing, "__module__", "")).partition(".")[0]


def _weights(layer: nn.Linear) -> str | None:
    """A linear layer has a weight, perhaps a bias, and nothing else."""
    own = {name for name, value in layer._parameters.items() if value is not None}
    others = [*(own - {"weight", "bias"}), *layer._buffers, *layer._modules]
    if others or "weight" not in own:
        return (
            f"holds more than a weight and a bias ({', '.join(sorted(others)) or 'its weight is computed'}); {REMEDY}"
        )
    expected = {"weight": (layer.out_features, layer.in_features), "bias": (layer.out_features,)}
    for name in own:
        value = layer._parameters[name]
        assert value is not None
        if type(value) is not nn.Parameter or value.layout is not torch.strided or not value.is_floating_point():
            return f"its {name} is a {type(value).__name__} of {value.dtype}; a plain parameter of floats is needed"
        if tuple(value.shape) != expected[name]:
            return f"its {name} is {list(value.shape)}, the layer says {list(expected[name])}"
    return None


def shared(model: nn.Module) -> dict[int, str]:
    """Every parameter that is in two places of the model, or lies on the same memory as another: its id, and where else."""
    places: dict[object, list[tuple[int, str]]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for name, weight in module.named_parameters(recurse=False):
            memory = id(weight) if weight.is_meta or not weight.numel() else weight.data_ptr()
            places.setdefault(memory, []).append((id(weight), f"{path}.{name}"))
    return {
        one: ", ".join(path for _, path in places_)
        for places_ in places.values()
        if len(places_) > 1
        for one, _ in places_
    }


@torch.no_grad()
def per_unit(act: nn.Module, width: int) -> bool:
    """Whether every output is the same function of the input in its own place: units that are alike are treated alike, and
    a change of one reaches no other. From a probe batch; on the meta device from the shapes alone."""
    held = [*act.parameters(), *act.buffers()]
    if any(width > 1 and width in value.shape for value in held):
        return False
    if any(value.is_meta for value in held):
        return all(value.numel() == 1 for value in held)
    like = next((value for value in held if value.is_floating_point()), torch.zeros((), device="cpu"))
    draw = torch.Generator(device="cpu").manual_seed(0)
    x = 3 * torch.randn(2, 3, 24, generator=draw, device="cpu")
    x[0, 0, :4] = torch.tensor([0.0, 30.0, -30.0, 1e-3], device="cpu")
    other = torch.where(torch.rand(x.shape, generator=draw, device="cpu") < 0.5, x, x.flip(0, 1, 2) + 1)
    order = torch.randperm(x.numel(), generator=draw, device="cpu")
    x, other, order = x.to(like), other.to(like), order.to(like.device)
    alone = copy.deepcopy(act).eval()
    try:
        made = alone(x.clone())
        mixed = alone(x.flatten()[order].view_as(x))
        return (
            _same(mixed, made.flatten()[order].view_as(made))
            and _same(torch.where(other == x, alone(other.clone()), made), made)
            and _same(alone(x[..., ::2].clone()), made[..., ::2])
        )
    except Exception:  # it takes another number of units, or whatever a module may raise
        return False


def _same(found: Tensor, expected: Tensor) -> bool:
    exact = 1e-2 if found.dtype in (torch.float16, torch.bfloat16) else 1e-4
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=exact, atol=exact**2, equal_nan=True)
