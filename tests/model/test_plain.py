"""Layers that only look like linear ones, shared weights, hooks, activations that are not per unit: refused by name, or
left alone by a repair that says so."""

from __future__ import annotations

import copy
import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torch.nn.utils.prune as pruning
from small import plan_of
from timm.layers import LayerNorm
from timm.layers.activations import QuickGELU
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import vitprune
from vitprune.core.errors import UserError
from vitprune.criteria.attribution.jas import jas
from vitprune.criteria.attribution.jas_plain import jas_plain
from vitprune.criteria.attribution.settings import Jas
from vitprune.model import classifier, families, plain
from vitprune.model.inside import blockwise, hooks
from vitprune.pruning import surgery
from vitprune.pruning.repair import repair

LABELS = torch.arange(10) % 5
Change = Callable[[nn.Module], Any]


class Lora(nn.Linear):
    """loralib's way: an nn.Linear with more inside, not merged."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None, dtype=base.weight.dtype)
        self.load_state_dict(base.state_dict())
        draw = torch.Generator().manual_seed(7)
        self.down = nn.Parameter(0.4 * torch.randn(4, base.in_features, generator=draw, dtype=base.weight.dtype))
        self.up = nn.Parameter(0.4 * torch.randn(base.out_features, 4, generator=draw, dtype=base.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) + F.linear(F.linear(x, self.down), self.up)


class Wrapped(nn.Module):
    """peft's way: a module around the layer."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor, **beside: Any) -> Tensor:
        return 1.1 * self.base(x, **beside)


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x


class Centred(nn.Module):
    """An activation that mixes units."""

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x - x.mean(-1, keepdim=True))


class OverTokens(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x) * (x.mean(1, keepdim=True) > 0)


class OwnGates(nn.Module):
    """A parameter per unit, all alike today."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.gates = nn.Parameter(torch.ones(units, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x) * self.gates[: x.shape[-1]]


class Squared(nn.Module):
    """Element by element, of nobody's list."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


class MyBlock(Block):
    pass


class MyVit(VisionTransformer):
    pass


class MyRow(nn.Sequential):
    pass


class MyNorm(LayerNorm):
    pass


def put(path: str, make: Callable[[nn.Module], nn.Module]) -> Change:
    """The change that puts make(what is there) at `path`."""

    def change(model: nn.Module) -> None:
        parent, _, name = path.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, name, make(getattr(owner, name)))

    return change


def on(path: str, work: Callable[[Any], Any]) -> Change:
    return lambda model: work(model.get_submodule(path))


def patched(path: str, name: str = "forward") -> Change:
    """The same method, bound again: whatever it does, it is not the class's any more."""

    def change(module: nn.Module) -> None:
        before = getattr(module, name)
        setattr(module, name, types.MethodType(lambda self, x: before(x), module))

    return on(path, change)


def tied(model: nn.Module) -> None:
    """Two parameters on the same memory."""
    model.blocks[2].mlp.fc1.weight = nn.Parameter(model.blocks[0].mlp.fc1.weight.data)


def as_class(kind: type) -> Callable[[nn.Module], Any]:
    return lambda module: setattr(module, "__class__", kind)


FC1, FC2, ACT = "blocks.1.mlp.fc1", "blocks.1.mlp.fc2", "blocks.1.mlp.act"
REFUSED: dict[str, tuple[str, Change]] = {}
for _path in (FC1, FC2):
    REFUSED |= {
        f"LoRA {_path}": (_path, put(_path, Lora)),
        f"wrapper {_path}": (_path, put(_path, Wrapped)),
        f"utils.prune {_path}": (_path, on(_path, lambda m: pruning.l1_unstructured(m, "weight", 0.3))),
        f"weight norm, old {_path}": (_path, on(_path, nn.utils.weight_norm)),
        f"spectral norm, old {_path}": (_path, on(_path, nn.utils.spectral_norm)),
        f"weight norm {_path}": (_path, on(_path, parametrizations.weight_norm)),
        f"spectral norm {_path}": (_path, on(_path, parametrizations.spectral_norm)),
        f"a parametrisation {_path}": (
            _path, on(_path, lambda m: parametrize.register_parametrization(m, "weight", Doubled())),
        ),
        f"a hook {_path}": (_path, on(_path, lambda m: m.register_forward_hook(lambda *given: given[-1] * 2))),
        f"a hook before {_path}": (_path, on(_path, lambda m: m.register_forward_pre_hook(lambda _, x: (x[0] * 2,)))),
        f"a hook with keywords {_path}": (
            _path, on(_path, lambda m: m.register_forward_hook(lambda *given: given[-1] * 2, with_kwargs=True)),
        ),
        f"a hook that looks {_path}": (_path, on(_path, lambda m: m.register_forward_hook(lambda *_: None))),
        f"a hook backwards {_path}": (_path, on(_path, lambda m: m.register_full_backward_hook(lambda *_: None))),
        f"forward replaced {_path}": (_path, patched(_path)),
        f"one more weight {_path}": (
            _path, on(_path, lambda m: m.register_parameter("scale", nn.Parameter(torch.ones(1).double()))),
        ),
        f"a buffer {_path}": (_path, on(_path, lambda m: m.register_buffer("mask", torch.ones(1)))),
        f"a weight of another shape {_path}": (_path, on(_path, lambda m: setattr(m, "out_features", m.out_features + 1))),
    }  # fmt: skip
REFUSED |= {
    "a hook on the FFN": ("blocks.1.mlp", on("blocks.1.mlp", lambda m: m.register_forward_hook(lambda *given: given[-1]))),
    "a hook on the block": ("blocks.1", on("blocks.1", lambda m: m.register_forward_pre_hook(lambda *_: None))),
    "a hook on the blocks": ("blocks", on("blocks", lambda m: m.register_forward_hook(lambda *_: None))),
    "a hook on the model": ("model", on("", lambda m: m.register_forward_hook(lambda *given: given[-1] * 2))),
    "the FFN's forward replaced": ("blocks.1.mlp", patched("blocks.1.mlp")),
    "the block's forward replaced": ("blocks.1", patched("blocks.1")),
    "forward_features replaced": ("model", patched("", "forward_features")),
    "a block of one's own": ("blocks.1", on("blocks.1", as_class(MyBlock))),
    "a row of one's own": ("blocks", on("blocks", as_class(MyRow))),
    "a model of one's own": ("model", on("", as_class(MyVit))),
    "one FFN in two blocks": ("blocks.0.mlp", lambda m: setattr(m.blocks[2], "mlp", m.blocks[0].mlp)),
    "one layer in two FFNs": ("blocks.0.mlp.fc2", lambda m: setattr(m.blocks[2].mlp, "fc2", m.blocks[0].mlp.fc2)),
    "one block twice": ("blocks.0", lambda m: m.blocks.append(m.blocks[0])),
    "one parameter in two layers": (
        "blocks.0.mlp.fc1", lambda m: setattr(m.blocks[2].mlp.fc1, "weight", m.blocks[0].mlp.fc1.weight),
    ),
    "two parameters on one memory": ("blocks.0.mlp.fc1", tied),
    "dropout replaced": ("blocks.1.mlp.drop1", put("blocks.1.mlp.drop1", lambda _: Doubled())),
    "dropout hooked": (
        "blocks.1.mlp.drop1", on("blocks.1.mlp.drop1", lambda m: m.register_forward_hook(lambda *given: given[-1] * 2)),
    ),
    "a norm of one's own": ("blocks.1.mlp.norm", put("blocks.1.mlp.norm", lambda _: MyNorm(32).double())),
    "an activation hooked": (ACT, on(ACT, lambda m: m.register_forward_hook(lambda *given: given[-1] * 2))),
    "an activation's forward replaced": (ACT, patched(ACT)),
}  # fmt: skip
ACTIVATIONS: dict[str, nn.Module] = {
    "PReLU per unit": nn.PReLU(32).double(),
    "softmax": nn.Softmax(-1),
    "softmax over tokens": nn.Softmax(1),
    "centred": Centred(),
    "over tokens": OverTokens(),
    "gates per unit": OwnGates(32),
    "LayerNorm": nn.LayerNorm(32).double(),
    "LayerNorm without weights": nn.LayerNorm(32, elementwise_affine=False),
    "GLU": nn.GLU(),
    "a linear layer": nn.Linear(32, 32).double(),
}
REFUSED |= {name: (ACT, put(ACT, lambda _, act=act: copy.deepcopy(act))) for name, act in ACTIVATIONS.items()}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_plain_is_refused_by_its_name(tiny_vit, make_images, name):
    """By every verb that reads or cuts an FFN's weights, before any work."""
    path, change = REFUSED[name]
    model, images = tiny_vit(), make_images(10)
    found = vitprune.discover(model, images, LABELS, criterion="variance")
    change(model)
    model.eval()
    for verb in (
        lambda: vitprune.discover(model, images, LABELS, criterion="variance"),
        lambda: vitprune.prune(model, found, keep=0.5, recovery="none"),
        lambda: surgery.slim(model, plan_of([torch.arange(32) < 9] * 3)),
    ):
        with pytest.raises(UserError) as refused:
            verb()
        assert str(refused.value).startswith(path), refused.value
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("change", [as_class(nn.Linear), lambda m: setattr(m, "__class__", Lora)], ids=["none", "LoRA"])
def test_a_plain_layer_is_exactly_one(change):
    layer = Lora(nn.Linear(3, 4))
    change(layer)
    assert plain.why_not(layer, plain.LINEAR) is not None  # what is inside shows either way


def test_a_class_that_was_changed_everywhere_is_found(tiny_vit, monkeypatch):
    before = Block.forward
    monkeypatch.setattr(Block, "forward", lambda self, x, *rest: before(self, x, *rest))
    with pytest.raises(UserError, match=r"blocks\.0: the `forward` of its class Block was replaced"):
        families.ffn_sites(tiny_vit())


@pytest.mark.parametrize(
    "act", [nn.GELU(), nn.GELU("tanh"), nn.ReLU(inplace=True), nn.PReLU(), nn.Hardswish(), QuickGELU(), Squared(), nn.RReLU()],
    ids=lambda act: type(act).__name__,
)  # fmt: skip
def test_an_element_wise_activation_goes(tiny_vit, make_images, act):
    """Whoever wrote it; masked is sliced, and the probe leaves it as it was."""
    model, images = tiny_vit(), make_images(4)
    for block in model.blocks:
        block.mlp.act = copy.deepcopy(act).double()
    model.train()
    families.ffn_sites(model)
    assert model.blocks[0].mlp.act.training
    keep = plan_of([torch.arange(32) % 2 == 0] * 3)
    assert surgery.masked_vs_sliced(model.eval(), keep, images) < 1e-10


def test_every_activation_and_layer_of_timms_models_is_plain():
    """On the meta device, where nothing can be tried out."""
    with torch.device("meta"):
        for name in ("vit_base_patch16_clip_quickgelu_224", "vit_giant_patch14_dinov2", "eva02_base_patch14_224"):
            assert families.ffn_sites(timm.create_model(name, depth=1))
        act = nn.PReLU(32)
    assert not plain.per_unit(act, 32)


def test_our_own_hooks_are_no_obstacle(tiny_vit, make_images):
    model = tiny_vit()
    sites = families.ffn_sites(model)
    with hooks.masked(model, sites, [torch.arange(32) < 9] * 3), hooks.ffn_outputs(model, sites, lambda *_: None):
        assert families.ffn_sites(model) == sites
    layer = parametrizations.weight_norm(model.blocks[0].mlp.fc1.requires_grad_())
    parametrize.remove_parametrizations(layer, "weight")
    assert families.ffn_sites(model) == sites  # folded, it is plain again


# --- what a repair touches beside the FFN


def gap(model: nn.Module, how: str, images: Tensor, other: Tensor) -> tuple[float, nn.Module]:
    slim = vitprune.prune(
        model, vitprune.discover(model, images[:10], LABELS), keep=0.5, recovery=how, images=images  # type: ignore[arg-type]
    )  # fmt: skip
    return float((slim(other) - model(other)).norm() / model(other).norm()), slim


def shared_proj(model: nn.Module) -> None:
    model.blocks[2].attn.proj = model.blocks[1].attn.proj


LEFT: dict[str, tuple[str, Change]] = {
    "LoRA in proj": ("blocks.1.attn.proj", put("blocks.1.attn.proj", Lora)),
    "LoRA in qkv": ("blocks.1.attn.qkv", put("blocks.1.attn.qkv", Lora)),
    "weight norm on qkv": ("blocks.1.attn.qkv", on("blocks.1.attn.qkv", parametrizations.weight_norm)),
    "proj hooked": (
        "blocks.1.attn.proj", on("blocks.1.attn.proj", lambda m: m.register_forward_hook(lambda *given: given[-1] * 1.5)),
    ),
    "qkv masked": ("blocks.1.attn.qkv", on("blocks.1.attn.qkv", lambda m: pruning.l1_unstructured(m, "weight", 0.3))),
    "one proj in two blocks": ("blocks.1.attn.proj", shared_proj),
    "attention replaced": ("blocks.1.attn.qkv", put("blocks.1.attn", Wrapped)),
    "attention's dropout replaced": ("blocks.1.attn.qkv", put("blocks.1.attn.proj_drop", Wrapped)),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_a_repair_leaves_what_is_not_plain_and_says_so(tiny_vit, make_images, name):
    """Its weights stay to the bit, the others are refitted, and the result is no worse than the repair of fc2 alone."""
    path, change = LEFT[name]
    model, images, other = tiny_vit(), make_images(48), make_images(24, seed=5)
    change(model)
    model.eval()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found, slim = gap(model, "auto", images, other)
    if name != "attention replaced":
        assert any(str(w.message).startswith(f"recovery layerwise leaves {path}") for w in told), told
        before = {k: v for k, v in model.state_dict().items() if k.startswith(path)}
        assert before and all(torch.equal(slim.state_dict()[k], v) for k, v in before.items())
    assert not torch.equal(slim.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)
    assert found <= 1.1 * gap(model, "affine", images, other)[0]


PASSED_BY: dict[str, tuple[str, Change]] = {
    "an adapter after fc2": ("blocks.1.mlp.drop2", put("blocks.1.mlp.drop2", Wrapped)),
    "a scale hooked": ("blocks.1.ls2", on("blocks.1.ls2", lambda m: m.register_forward_hook(lambda *given: given[-1] * 2))),
    "a scale replaced": ("blocks.1.ls1", put("blocks.1.ls1", Wrapped)),
    "a path replaced": ("blocks.1.drop_path1", put("blocks.1.drop_path1", lambda _: Doubled())),
}  # fmt: skip


@pytest.mark.parametrize("name", PASSED_BY)
def test_halves_are_not_taken_where_they_would_pass_something_by(tiny_vit, make_images, name):
    path, change = PASSED_BY[name]
    model, images = tiny_vit(init_values=0.3), make_images(24)
    change(model)
    assert blockwise.halves(model) is None
    assert repair.chosen("auto", model) == "affine"
    found = vitprune.discover(model, images[:10], LABELS)
    with pytest.warns(UserWarning, match=f"recovery auto is affine: {path}"):
        vitprune.prune(model, found, keep=0.5, images=images)
    with pytest.raises(UserError, match=rf"block by block.*{path}.*use recovery: affine"):
        vitprune.prune(model, found, keep=0.5, images=images, recovery="layerwise")


@pytest.mark.parametrize("name", [*LEFT, *PASSED_BY])
def test_the_fast_engine_sees_what_full_passes_see(tiny_vit, make_images, name):
    model = tiny_vit(init_values=0.3)
    (LEFT | PASSED_BY)[name][1](model)
    model.eval()
    images, how = make_images(3), Jas(quadrature="right", nodes=2)
    sites = families.ffn_sites(model)
    fast = jas(model, sites, images, LABELS[:3], ts=[3], how=how)[3]
    slow = jas_plain(model, sites, images, LABELS[:3], t=3, how=how)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-4, atol=1e-7)


def test_no_warning_for_a_model_as_it_is(tiny_vit, make_images):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gap(tiny_vit(), "auto", make_images(24), make_images(2))


@pytest.mark.parametrize("change", [put("head", Lora), on("head", parametrizations.weight_norm)], ids=["LoRA", "norm"])
def test_a_head_that_is_not_plain_is_not_read_and_not_cut(tiny_vit, make_images, change):
    model, images = tiny_vit(), make_images(10)
    change(model)
    with pytest.raises(UserError, match="head"):
        classifier.narrow(model, [1, 3])
    with pytest.raises(UserError, match="head"):
        vitprune.discover(model, images, LABELS, criterion="class-alignment")
    assert vitprune.evaluate(model, images, LABELS).n == 10


def test_a_head_that_is_shared_is_not_cut(tiny_vit):
    model = tiny_vit()
    model.second = model.head
    with pytest.raises(UserError, match=r"head: own: head shares its weights"):
        classifier.narrow(model, [1, 3])


# --- modules of one's own


class Own(nn.Module):
    """Two FFNs after one another, `calls` says in which order and how often."""

    def __init__(self, calls: tuple[int, ...] = (0, 1)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.into, self.head, self.calls = nn.Linear(16, 8), nn.Linear(8, 5), calls
        self.up = nn.ModuleList(nn.Linear(8, 12) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(12, 8) for _ in range(2))
        self.acts = nn.ModuleList(nn.GELU() for _ in range(2))

    def forward(self, images: Tensor) -> Tensor:
        x = self.into(images.flatten(1).unflatten(1, (4, 16)))
        for i in self.calls:
            x = x + self.down[i](self.acts[i](self.up[i](x)))
        return self.head(x.mean(1))


FFNS = [("up.0", "acts.0", "down.0"), ("up.1", "acts.1", "down.1")]
UNTRUE: dict[str, tuple[str, tuple[int, ...], Change]] = {
    "LoRA": (r"up\.0: Lora", (0, 1), put("up.0", Lora)),
    "a hook": (r"down\.1: has a hook", (0, 1), on("down.1", lambda m: m.register_forward_pre_hook(lambda *_: None))),
    "PReLU per unit": (r"acts\.1: PReLU", (0, 1), put("acts.1", lambda _: nn.PReLU(12))),
    "shared": (r"up\.0: shares", (0, 1), lambda m: m.up.__setitem__(1, m.up[0])),
    "the other order": (r"calls down\.1, down\.0", (1, 0), lambda m: None),
    "one twice": (r"calls down\.0, down\.1, down\.0", (0, 1, 0), lambda m: None),
    "one never": (r"calls down\.0;", (0,), lambda m: None),
    "more outputs": (r"gives \[2, 9\], not logits \[N, 5\]", (0, 1), put("head", lambda _: nn.Linear(8, 9))),
    "another size": (r"cannot run images \[2, 1, 8, 8\]", (0, 1), put("into", lambda _: nn.Linear(9, 8))),
    "half precision": (r"float16", (0, 1), lambda m: m.half()),
}


@pytest.mark.parametrize("name", UNTRUE)
def test_a_declaration_that_is_not_true_is_refused(name):
    says, calls, change = UNTRUE[name]
    net = Own(calls)
    vitprune.declare(Own(), FFNS, input_shape=(1, 8, 8), num_classes=5)
    change(net)
    with pytest.raises(UserError, match=says):
        vitprune.declare(net, FFNS, input_shape=(1, 8, 8), num_classes=5)
