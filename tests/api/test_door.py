"""The library's door: each type, shape, wrapper and mode goes the whole road or is one line that says what to do."""

from __future__ import annotations

import socket
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import timm
import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import vitprune
from vitprune.core.errors import UserError
from vitprune.criteria.catalog import CRITERIA
from vitprune.model import door

LABELS = torch.arange(10) % 5
F32 = torch.float32


def road(model: nn.Module, images: Any, labels: Any = LABELS, **options: Any) -> list[Tensor]:
    """Discover, prune with the default repair, evaluate: the slim model's weights and the figures, to compare."""
    found = vitprune.discover(model, images, labels, **options)
    slim = vitprune.prune(model, found, keep=0.5, images=images)
    made = vitprune.evaluate(slim, images, labels)
    figures = torch.tensor([made.top1, made.mean_true_probability], dtype=torch.float64)
    return [*slim.state_dict().values(), *found.rows, figures]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


def refusal(work: Any) -> str:
    with pytest.raises(UserError) as caught:
        work()
    text = str(caught.value)
    assert "\n" not in text
    return text


# --- types of numbers


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_is_sent_to_float(tiny_vit, make_images, dtype, tmp_path):
    """Scores and repairs are sums that half precision cannot hold; judging such a model works."""
    model, images = tiny_vit(dtype=F32), make_images(10, dtype=F32)
    found = vitprune.discover(model, images, LABELS)
    half, name = tiny_vit(dtype=dtype), str(dtype).removeprefix("torch.")
    for given in (images, images.to(dtype)):
        for verb in (
            lambda given=given: vitprune.discover(half, given, LABELS),
            lambda given=given: vitprune.prune(half, found, keep=0.5, images=given),
            lambda given=given: vitprune.path_scores(half, given, LABELS, torch.zeros(10, 3, 2, dtype=torch.int64)),
            lambda: vitprune.export(half, tmp_path / "x.onnx"),
        ):
            said = refusal(verb)
            assert name in said and "model.float()" in said
    assert vitprune.evaluate(half, images, LABELS).n == 10
    assert not list(tmp_path.iterdir())


def test_a_model_of_two_types_is_refused(tiny_vit, make_images):
    model = tiny_vit(dtype=F32)
    model.norm.half()
    assert "float32 and float16" in refusal(lambda: vitprune.discover(model, make_images(10), LABELS))


def test_export_is_of_float32(tiny_vit, tmp_path):
    assert "float64, float32 is needed" in refusal(lambda: vitprune.export(tiny_vit(), tmp_path / "x.onnx"))


@pytest.mark.parametrize("kind", ["half", "bfloat16", "double", "numpy", "numpy double", "channels last", "a slice"])
def test_images_of_another_type_are_the_models(tiny_vit, make_images, kind):
    model, images = tiny_vit(dtype=F32), make_images(10, dtype=F32).bfloat16().float()  # exact in each of them
    given = {
        "half": images.half(), "bfloat16": images.bfloat16(), "double": images.double(), "numpy": images.numpy(),
        "numpy double": images.double().numpy()[::-1][::-1], "a slice": torch.cat([images, images])[:10],
        "channels last": images.contiguous(memory_format=torch.channels_last),
    }[kind]  # fmt: skip
    expected = images.half().float() if kind == "half" else images
    assert same(road(model, given), road(model, expected))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_images_that_are_no_floats_are_refused(tiny_vit, make_images, dtype):
    model, images = tiny_vit(dtype=F32), make_images(10, dtype=F32)
    found, given = vitprune.discover(model, images, LABELS), (images * 50).to(dtype)
    for verb in (
        lambda: vitprune.discover(model, given, LABELS),
        lambda: vitprune.prune(model, found, keep=0.5, images=given),
        lambda: vitprune.prune(model, found, keep=0.5, images=[given]),
        lambda: vitprune.evaluate(model, given, LABELS),
    ):
        said = refusal(verb)
        assert f"images are {str(dtype).removeprefix('torch.')}" in said and "1/255" in said


def test_pixels_that_are_not_numbers_are_refused(tiny_vit, make_images):
    images = make_images(10)
    images[3, 0, 5, 5] = torch.nan
    assert "not finite" in refusal(lambda: vitprune.discover(tiny_vit(), images, LABELS))


# --- shapes

SHAPES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "another size": (lambda x: nn.functional.interpolate(x, 32), ("[10, 1, 32, 32]", "28", "img_size")),
    "channels last": (lambda x: x.permute(0, 2, 3, 1), ("[10, 28, 28, 1]", "permute(0, 3, 1, 2)")),
    "three channels": (lambda x: x.expand(-1, 3, -1, -1), ("[10, 3, 28, 28]", "[N, 1, 28, 28]")),
    "one image": (lambda x: x[0], ("[1, 28, 28]", "images[None]")),
    "one grey image": (lambda x: x[0, 0], ("[28, 28]", "[N, 1, 28, 28]")),
    "one axis more": (lambda x: x[None], ("[1, 10, 1, 28, 28]",)),
    "none": (lambda x: x[:0], ("[0, 1, 28, 28]",)),
    "a list": (lambda x: list(x), ("list", "torch.stack")),
    "a path": (lambda x: "images", ("str",)),
    "nothing": (lambda x: None, ("NoneType",)),
    "objects": (lambda x: np.array([object()]), ("cannot be made a tensor",)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_images_of_another_shape_are_refused_with_the_way(tiny_vit, make_images, name):
    change, words = SHAPES[name]
    model, images = tiny_vit(), make_images(10)
    for verb in (
        lambda: vitprune.discover(model, change(images), LABELS),
        lambda: vitprune.evaluate(model, change(images), LABELS),
    ):
        said = refusal(verb)
        assert "images" in said and all(word in said for word in words), said


# --- what the repair looks at


def test_pairs_from_a_loader_are_batches(tiny_vit, make_images):
    """With their labels or without, as tensors or numpy: the images count, and the same images give the same model."""
    model, images = tiny_vit(), make_images(10)
    found = vitprune.discover(model, images, LABELS)

    def slim(given: Any) -> list[Tensor]:
        return list(vitprune.prune(model, found, keep=0.5, images=given).state_dict().values())

    whole = slim(list(images.split(4)))
    pairs = DataLoader(TensorDataset(images, LABELS), batch_size=4)
    for given in (pairs, list(pairs), iter(pairs), [[x.numpy(), y] for x, y in pairs], [(x,) for x, _ in pairs]):
        assert same(slim(given), whole)


BATCHES: dict[str, tuple[Any, str]] = {
    "a dict": (lambda x: [{"pixel_values": x, "labels": LABELS}], "dict of pixel_values, labels"),
    "images without a batch axis": (lambda x: list(x), r"images[None]"),
    "a dataset": (lambda x: [(x[0], 1)], r"images[None]"),
    "labels first": (lambda x: [(LABELS, x)], "images are int64"),
    "no batch": (lambda x: [], "are none"),
    "another size": (lambda x: [x[..., :20, :20]], "[10, 1, 20, 20]"),
    "uint8": (lambda x: [(x.byte(), LABELS)], "images are uint8"),
    "a path": (lambda x: "folder", "images are a str"),
    "a number": (lambda x: 3, "images are a int"),
    "texts": (lambda x: ["a"], "images are a str"),
}


@pytest.mark.parametrize("name", BATCHES)
def test_batches_that_are_none_are_refused(tiny_vit, make_images, name):
    change, says = BATCHES[name]
    model, images = tiny_vit(), make_images(10)
    found = vitprune.discover(model, images, LABELS)
    assert says in refusal(lambda: vitprune.prune(model, found, keep=0.5, images=change(images)))


@pytest.mark.parametrize("batch", [0, -1, 2.5, True, None])
def test_a_batch_is_a_count(tiny_vit, make_images, batch):
    model, images = tiny_vit(), make_images(10)
    found = vitprune.discover(model, images, LABELS)
    for verb in (
        lambda: vitprune.discover(model, images, LABELS, batch=batch),
        lambda: vitprune.prune(model, found, keep=0.5, images=images, batch=batch),
        lambda: vitprune.evaluate(model, images, LABELS, batch=batch),
    ):
        assert "batch" in refusal(verb)


def test_scores_of_another_model_are_refused(tiny_vit, make_images):
    images = make_images(10)
    found = vitprune.discover(tiny_vit(depth=2), images, LABELS)
    assert "discover again" in refusal(lambda: vitprune.prune(tiny_vit(), found, keep=0.5, images=images))


# --- labels


@pytest.mark.parametrize("kind", ["uint8", "int32", "numpy", "numpy uint16", "list"])
def test_labels_of_any_integers_are_indices(tiny_vit, make_images, kind):
    model, images = tiny_vit(), make_images(10)
    given = {
        "uint8": LABELS.byte(), "int32": LABELS.int(), "numpy": LABELS.numpy(), "list": LABELS.tolist(),
        "numpy uint16": LABELS.numpy().astype(np.uint16),
    }[kind]  # fmt: skip
    for criterion in ("fisher-obs", "jas"):
        options = {"criterion": criterion, "t": 3}
        assert same(road(model, images, given, **options), road(model, images, **options))


HOT = nn.functional.one_hot(LABELS, 5)
WRONG_LABELS: dict[str, tuple[Any, str]] = {
    "one-hot": (HOT, "labels.argmax(1)"),
    "one-hot, float": (HOT.double(), "labels.argmax(1)"),
    "[N, 1]": (LABELS[:, None], "labels.flatten()"),
    "[1, N]": (LABELS[None], "labels.flatten()"),
    "[N, N]": (LABELS.expand(10, 10), "[10, 10]"),
    "one number": (LABELS[0], "[N]"),
    "float": (LABELS.float(), "integers"),
    "bool": (LABELS > 2, "integers"),
    "numpy one-hot": (HOT.numpy(), "labels.argmax(1)"),
    "names": (["a"] * 10, "cannot be made a tensor"),
    "too few": (LABELS[:7], "10 images and 7 labels"),
    "too large": (LABELS + 1, "outputs from 0 to 4"),
    "negative": (LABELS - 1, "labels run from -1"),
    "a text": ("labels", "labels are a str"),
    "nothing": (None, "labels are a NoneType"),
}


@pytest.mark.parametrize("name", WRONG_LABELS)
def test_labels_that_are_not_indices_are_refused(tiny_vit, make_images, name):
    labels, says = WRONG_LABELS[name]
    model, images = tiny_vit(), make_images(10)
    for criterion in ("fisher-obs", "jas", "taylor", "mean-activation", "magnitude-l1"):
        said = refusal(lambda c=criterion: vitprune.discover(model, images, labels, criterion=c, t=3))
        assert says in said and "labels" in said
    assert says in refusal(lambda: vitprune.evaluate(model, images, labels))
    units = torch.zeros(10, 3, 2, dtype=torch.int64)
    assert says in refusal(lambda: vitprune.path_scores(model, images, labels, units))


# --- modes of torch


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)])
@pytest.mark.parametrize("criterion", ["fisher-obs", "jas", "taylor", "hessian", "vit-slim", "variance"])
def test_a_verb_is_the_same_inside_a_mode(tiny_vit, make_images, mode, criterion):
    model, images = tiny_vit(dtype=F32), make_images(10, dtype=F32)
    options = {"criterion": criterion, "t": 3, "nodes": 2, "epochs": 1}
    outside = road(model, images, **options)
    with mode():
        made_here, labels = images.clone(), LABELS.clone()
        inside = road(model, made_here, labels, **options)
        assert same(inside, outside)
        assert not any(value.is_inference() for value in inside[:-1])
    assert same(road(model, made_here, labels, **options), outside)  # made in there, used out here


def test_every_criterion_goes_inside_inference_mode(tiny_vit, make_images):
    model, images = tiny_vit(), make_images(5)
    with torch.inference_mode():
        for criterion in [*CRITERIA, "random"]:
            vitprune.discover(model, images.clone(), LABELS[:5].clone(), criterion=criterion, t=2, nodes=2, epochs=1)
        units = torch.zeros(5, 3, 2, dtype=torch.int64)
        vitprune.path_scores(model, images.clone(), LABELS[:5].clone(), units)


def test_a_model_made_inside_inference_mode_is_refused(tiny_vit, make_images):
    with torch.inference_mode():
        model = tiny_vit()
    assert "inference_mode" in refusal(lambda: vitprune.discover(model, make_images(10), LABELS))


def test_images_with_a_gradient_are_only_images(tiny_vit, make_images):
    model, images = tiny_vit(), make_images(10)
    expected = road(model, images)
    given = images.clone().requires_grad_()
    assert same(road(model, given), expected) and given.requires_grad and given.grad is None
    assert same(road(model, nn.Parameter(images.clone())), expected)
    assert same(road(model, given * 1), expected)


def test_gradient_checkpointing_is_off_inside_and_on_again(tiny_vit, make_images):
    model, images = tiny_vit(), make_images(10)
    for criterion in ("fisher-obs", "jas", "taylor"):
        expected = road(model, images, criterion=criterion, t=3)
        model.set_grad_checkpointing(True)
        model.train()
        assert same(road(model, images, criterion=criterion, t=3), expected)
        assert model.grad_checkpointing and model.training
        model.set_grad_checkpointing(False)
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=28, patch_size=4, window_size=7, embed_dim=8, depths=(1,), num_heads=(1,),
        in_chans=1, num_classes=5,
    )  # fmt: skip
    model.set_grad_checkpointing(True)
    vitprune.discover(model, make_images(10, dtype=F32), LABELS)
    assert all(stage.grad_checkpointing for stage in model.layers)


def test_transformers_gradient_checkpointing():
    transformers = pytest.importorskip("transformers", reason="the extra `transformers` is not installed")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=16, patch_size=8,
        num_labels=5,
    )  # fmt: skip
    net = transformers.ViTForImageClassification(config)
    paths = [name for name, _ in net.named_modules() if name.endswith("mlp")]
    model = vitprune.declare(
        net, [(f"{p}.fc1", f"{p}.activation_fn", f"{p}.fc2") for p in paths], input_shape=(3, 16, 16), num_classes=5,
        prefix_tokens=1, class_token=True,
    )  # fmt: skip
    images = torch.randn(10, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = road(model, images)
    net.gradient_checkpointing_enable()
    net.train()
    assert same(road(model, images), expected)
    assert net.is_gradient_checkpointing and net.training


# --- wrappers, modes and places of models


@pytest.fixture
def group():
    """A process group of one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_wrapped_model_is_the_model_inside(tiny_vit, make_images, group):
    """DataParallel, DistributedDataParallel, torch.compile as a function and as a method."""
    model, images = tiny_vit(dtype=F32), make_images(10, dtype=F32)
    expected = road(model, images)
    trained = tiny_vit(dtype=F32).requires_grad_()
    units = torch.zeros(10, 3, 2, dtype=torch.int64)
    for wrapped in (
        DataParallel(model), DistributedDataParallel(trained), torch.compile(model, backend="eager"),
        DataParallel(torch.compile(model, backend="eager")), torch.compile(DataParallel(model), backend="eager"),
    ):  # fmt: skip
        assert same(road(wrapped, images), expected)
        assert vitprune.evaluate(wrapped, images, LABELS) == vitprune.evaluate(model, images, LABELS)
        assert vitprune.path_scores(wrapped, images, LABELS, units).jas.shape == (10,)
    in_place = tiny_vit(dtype=F32)
    in_place.compile(backend="eager")
    with torch.no_grad():
        in_place(images)  # compiled by now: hooks that come later are not seen by what was compiled
    assert same(road(in_place, images), expected)
    assert in_place._compiled_call_impl is not None
    assert door.bare("export", torch.compile(model, backend="eager"), (F32,)) is model


class Wrapper(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


def test_an_unknown_wrapper_is_refused_with_the_way(tiny_vit, make_images):
    model = Wrapper(tiny_vit())
    assert "Wrapper is not supported; give the model inside, its .module" in refusal(
        lambda: vitprune.discover(model, make_images(10), LABELS)
    )


@pytest.mark.parametrize("model", ["model", None, np.zeros(3), nn.Identity(), {"state_dict": 1}, Path("x")])
def test_what_is_no_model_is_refused(make_images, model, tmp_path):
    for verb in (
        lambda: vitprune.discover(model, make_images(10), LABELS),
        lambda: vitprune.evaluate(model, make_images(10), LABELS),
        lambda: vitprune.export(model, tmp_path / "x.onnx"),
        lambda: vitprune.declare(model, [("a", "b", "c")], input_shape=(1, 28, 28), num_classes=5),
    ):
        assert "model" in refusal(verb)


def test_another_kind_of_model_is_refused(make_images, tmp_path):
    model = timm.create_model("resnet18", num_classes=5, in_chans=1)
    for verb in (
        lambda: vitprune.discover(model, make_images(10), LABELS),
        lambda: vitprune.evaluate(model, make_images(10), LABELS),
        lambda: vitprune.export(model, tmp_path / "x.onnx"),
    ):
        assert "not supported" in refusal(verb)


def test_a_model_without_weights_or_in_two_places_is_refused(tiny_vit, make_images):
    model = tiny_vit(dtype=F32).to("meta")
    assert "no weights" in refusal(lambda: vitprune.discover(model, make_images(10), LABELS))
    model = tiny_vit(dtype=F32)
    model.norm.to("meta")
    assert "no weights" in refusal(lambda: vitprune.discover(model, make_images(10), LABELS))


def test_a_model_in_training_is_as_one_at_rest_and_left_as_it_was(tiny_vit, make_images):
    """Dropout, a dropped path and patches left out play no part, not even in what is read off for rotary embeddings."""
    model, images = (
        tiny_vit(pos_drop_rate=0.5, proj_drop_rate=0.5, drop_path_rate=0.5, patch_drop_rate=0.5),
        make_images(10),
    )
    expected = road(model, images)
    model.train()
    before = reference.snapshot(model)
    assert same(road(model, images), expected)
    assert reference.same_state(before, reference.snapshot(model))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_images_and_model_may_lie_on_two_devices(tiny_vit, make_images):
    model, images = tiny_vit(dtype=F32), make_images(10, dtype=F32)
    there = road(model.cuda(), images, LABELS)
    here = road(model, images.cuda(), LABELS.cuda())
    assert same(there, here) and there[0].is_cuda
    model.cpu()
    assert not road(model, images.cuda(), LABELS.cuda())[0].is_cuda


def test_no_warning_on_the_way(tiny_vit, make_images):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        road(tiny_vit(), make_images(10))
