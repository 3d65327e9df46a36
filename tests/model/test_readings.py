"""Checkpoints as trainers write them: read where one set of weights in them fits, else refused with what differs."""

from __future__ import annotations

import argparse
import copy
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small import ARCHITECTURE, tiny_args, tiny_model
from torch import Tensor, nn

from vitprune.core.errors import UserError, one_line
from vitprune.model.load import build, opening
from vitprune.model.load.loaded import Loaded
from vitprune.model.load.weights import filling
from vitprune.recipe import inputs

State = dict[str, Any]
PREFIXES = [
    "module.", "model.", "backbone.", "net.", "encoder.", "student.", "teacher.", "_orig_mod.", "model._orig_mod.",
    "module._orig_mod.", "_orig_mod.module.", "module.model.", "a.b.c.", "base_encoder.",
]  # fmt: skip
KEYS = [
    "model", "state_dict", "model_state_dict", "weights", "teacher", "model_ema", "state_dict_ema", "ema", "params", "module",
    "net", "whatever it is",
]  # fmt: skip


def state(**changed: Any) -> State:
    return dict(tiny_model(**changed).state_dict())


def under(prefix: str, tensors: State) -> State:
    return {prefix + name: value for name, value in tensors.items()}


def spec(path: Path, key: str | None = None, **args: Any) -> inputs.Model:
    return inputs.Model(
        name=ARCHITECTURE, checkpoint=path, checkpoint_key=key, args=tiny_args() | {"num_classes": 3} | args
    )


def load(folder: Path, content: Any, key: str | None = None, **args: Any) -> Loaded:
    torch.save(content, folder / "c.pth")
    return opening.open_model(spec(folder / "c.pth", key, **args))


def refused(work: Callable[[], Any], *words: str) -> str:
    with pytest.raises(UserError) as caught:
        work()
    text = str(caught.value)
    assert len(text.splitlines()) == 1 and len(text) < 600
    assert [word for word in words if word not in text] == [], text
    return text


def same(loaded: Loaded, tensors: State) -> bool:
    made = loaded.model.state_dict()
    return all(torch.equal(made[name], tensors[name]) for name in made)


# ---- read


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("nested", [False, True])
def test_a_prefix_is_seen_through(tmp_path: Path, prefix: str, nested: bool) -> None:
    tensors = under(prefix, state())
    loaded = load(tmp_path, {"state_dict": tensors, "epoch": 3} if nested else tensors)
    assert same(loaded, state())
    assert any(f"`{prefix}`" in note and "c.pth" in note for note in loaded.notes)


@pytest.mark.parametrize("key", KEYS)
def test_a_dictionary_is_looked_into(tmp_path: Path, key: str) -> None:
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
    content = {"epoch": 3, key: OrderedDict(state()), "optimizer": optimizer, "args": argparse.Namespace(lr=0.1)}
    loaded = load(tmp_path, content)
    assert same(loaded, state())
    (note,) = [note for note in loaded.notes if "Weights of" in note]
    assert f"`{key}`" in note and all(f"`{left}`" in note for left in ("epoch", "optimizer", "args"))


def test_the_plain_file_needs_no_word(tmp_path: Path) -> None:
    assert not [note for note in load(tmp_path, state()).notes if "Weights of" in note]


def test_safetensors_under_a_prefix(tmp_path: Path) -> None:
    save_file(under("model.", state()), tmp_path / "c.safetensors")
    assert same(opening.open_model(spec(tmp_path / "c.safetensors")), state())


def test_wrappers_in_the_middle_of_a_name(tmp_path: Path) -> None:
    """torch.compile of single blocks, FSDP, activation checkpointing."""
    middle = {name.replace("blocks.0.", "blocks.0._orig_mod."): value for name, value in state().items()}
    middle = {name.replace("blocks.1.", "blocks.1._fsdp_wrapped_module._checkpoint_wrapped_module."): v for name, v in middle.items()}  # noqa: E501 # fmt: skip
    assert same(load(tmp_path, {"model": under("module.", middle)}), state())


def test_buffers_that_the_model_makes_itself_may_be_in_the_file(tmp_path: Path) -> None:
    args = {"img_size": 28, "patch_size": 7, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2}
    args |= {"num_classes": 3, "in_chans": 1}
    own = build.build("swin_tiny_patch4_window7_224", args)
    torch.save(own.state_dict() | dict(own.named_buffers()), tmp_path / "c.pth")
    loaded = opening.open_model(
        inputs.Model(name="swin_tiny_patch4_window7_224", checkpoint=tmp_path / "c.pth", args=args)
    )
    assert same(loaded, dict(own.state_dict()))


def test_moments_of_an_optimizer_are_no_weights(tmp_path: Path) -> None:
    moments = {"exp_avg": state(seed=1), "exp_avg_sq": state(seed=2)}
    assert same(load(tmp_path, {"model": state(), "optimizer_state": moments}), state())


def test_what_stands_beside_a_prefix_is_told(tmp_path: Path) -> None:
    loaded = load(tmp_path, under("model.", state()) | {"criterion.weight": torch.ones(3)})
    assert same(loaded, state()) and any("not read: `criterion.weight`" in note for note in loaded.notes)


def test_another_librarys_model(tmp_path: Path) -> None:
    args = {"image_size": 32, "patch_size": 16, "num_layers": 1, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    args["num_classes"] = 3
    own = build.build("torchvision:vit_b_16", args).net
    torch.save({"model": under("module.", own.state_dict())}, tmp_path / "c.pth")
    made = opening.open_model(inputs.Model(name="torchvision:vit_b_16", checkpoint=tmp_path / "c.pth", args=args))
    assert torch.equal(made.model.net.heads.head.weight, own.heads.head.weight)
    wrong = inputs.Model(name="torchvision:vit_b_16", checkpoint=tmp_path / "c.pth", args=args | {"image_size": 48})
    refused(lambda: opening.open_model(wrong), "image_size: 32", "[1, 5, 16]", "[1, 10, 16]", "`module.`")


# ---- two that fit


PAIRS: dict[str, tuple[Any, list[str]]] = {
    "ema": ({"model": state(), "model_ema": state(seed=1)}, ["model", "model_ema"]),
    "timms ema": ({"state_dict": state(), "state_dict_ema": state(seed=1)}, ["state_dict", "state_dict_ema"]),
    "flat": (
        {"state_dict": under("student.", state()) | under("teacher.", state(seed=1))},
        ["state_dict.student", "state_dict.teacher"],
    ),
    "beside": (state() | under("ema_model.", state(seed=1)), [".", "ema_model"]),
    "deep": ({"ema": {"module": state(seed=1)}, "model": under("module.", state())}, ["model.module", "ema.module"]),
    "half": ({"model": state(), "half": {k: v.half() for k, v in state().items()}}, ["model", "half"]),
    "one number": ({"a": state(), "b": state() | {"head.bias": torch.zeros(3)}}, ["a", "b"]),
    "a list": ({"models": [state(), state(seed=1)]}, ["models.0", "models.1"]),
}  # fmt: skip


@pytest.mark.parametrize("what", PAIRS)
def test_two_sets_that_fit_and_differ_are_not_chosen_between(tmp_path: Path, what: str) -> None:
    content, names = PAIRS[what]
    refused(lambda: load(tmp_path, content), "checkpoint_key", *(f"`{name}`" for name in names))
    made = [load(tmp_path, content, key=name).model.state_dict() for name in names]
    assert not all(torch.equal(made[0][name], made[1][name]) for name in made[0])


@pytest.mark.parametrize(("what", "key"), [("flat", "teacher"), ("deep", "ema"), ("a list", "1")])
def test_a_part_of_the_name_will_do(tmp_path: Path, what: str, key: str) -> None:
    assert same(load(tmp_path, PAIRS[what][0], key=key), state(seed=1))


def test_the_top_level_is_told_too(tmp_path: Path) -> None:
    loaded = load(tmp_path, PAIRS["beside"][0], key=".")
    assert same(loaded, state()) and "its top level; not read: `ema_model." in loaded.notes[0]


def test_two_sets_that_are_equal_are_one(tmp_path: Path) -> None:
    assert same(load(tmp_path, {"model": state(), "ema": under("module.", state())}), state())


def test_a_set_that_does_not_fit_is_no_second_one(tmp_path: Path) -> None:
    loaded = load(tmp_path, {"student": state(embed_dim=32), "teacher": state(), "head": {"weight": torch.ones(3)}})
    assert same(loaded, state()) and "`student`" in loaded.notes[0]


def test_a_key_that_names_nothing(tmp_path: Path) -> None:
    refused(lambda: load(tmp_path, {"model": state()}, key="teacher"), "`teacher`", "there is `model`")
    refused(
        lambda: load(tmp_path, {"model": state(outputs=4), "ema": state()}, key="model"), "num_classes: 4", "`model`"
    )
    with pytest.raises(ValueError, match="checkpoint_key"):
        inputs.Model(name=ARCHITECTURE, checkpoint_key="teacher")


# ---- none that fits


def without(tensors: State, *parts: str) -> State:
    return {name: value for name, value in tensors.items() if not any(part in name for part in parts)}


FAR: dict[str, tuple[Any, list[str]]] = {
    "larger images": (
        lambda: state(img_size=56),
        ["`pos_embed` is [1, 65, 16] in the file, [1, 17, 16] in the model", "{img_size: 56}"],
    ),
    "other outputs": (lambda: state(outputs=7), ["[7, 16]", "[3, 16]", "{num_classes: 7}"]),
    "shallower": (lambda: state(depth=1), ["`blocks.1.norm1.weight` [16] is missing", "{depth: 1}"]),
    "both": (lambda: state(outputs=7, img_size=56), ["img_size: 56", "num_classes: 7"]),
    "colour": (lambda: state(in_chans=3), ["[16, 3, 7, 7]", "[16, 1, 7, 7]", "{in_chans: 3}"]),
    "wider": (lambda: state(embed_dim=32), ["[32, 1, 7, 7]", "[16, 1, 7, 7]", "model.name"]),
    "deeper": (lambda: state(depth=3), ["`blocks.2.norm1.weight` [16]", "{depth: 3}"]),
    "mean of the tokens": (lambda: state(global_pool="avg"), ["global_pool: avg"]),
    "registers": (lambda: state(reg_tokens=4), ["{reg_tokens: 4}"]),
    "distilled": (
        lambda: state() | {"head_dist.weight": torch.ones(3, 16), "head_dist.bias": torch.ones(3)},
        ["`head_dist.weight` [3, 16]", "distilled"],
    ),
    "no head": (lambda: without(state(), "head"), ["`head.weight` [3, 16] is missing", "classifier"]),
    "a head elsewhere": (
        lambda: under("backbone.", without(state(), "head")) | {"fc.weight": torch.ones(3, 16)},
        ["backbone.`", "`head.weight` [3, 16] is missing", "fc.weight`"],
    ),
    "an extra layer": (lambda: state() | {"neck.weight": torch.ones(2)}, ["`neck.weight` [2]", "remove it"]),
    "a key less": (lambda: without(state(), "blocks.1.mlp.fc2.bias"), ["`blocks.1.mlp.fc2.bias` [16] is missing"]),
    "whole numbers": (lambda: {k: v.to(torch.int8) for k, v in state().items()}, ["torch.int8", "quantised"]),
    "another library": (lambda: {"vit.layer.0.output.dense.weight": torch.ones(3)}, ["vit.layer.0", "`cls_token`"]),
    "one name in common": (lambda: {"vit.cls_token": torch.ones(1, 1, 16)}, ["vit.cls_token`", "`cls_token`"]),
    "nothing": (lambda: {"epoch": 3}, ["no tensors by name"]),
}  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("what", FAR)
def test_what_differs_is_named_with_both_sides_and_the_cure(tmp_path: Path, what: str, prefix: str) -> None:
    made, words = FAR[what]
    shown = [] if not prefix or what in ("another library", "one name in common", "nothing") else [f"`{prefix}"]
    refused(lambda: load(tmp_path, {"model": under(prefix, made())}), str(tmp_path / "c.pth"), *words, *shown)


def test_the_cure_cures(tmp_path: Path) -> None:
    content = {"model": under("module.", state(outputs=7, img_size=56))}
    refused(lambda: load(tmp_path, content), "model.args: {img_size: 56, num_classes: 7}")
    assert same(load(tmp_path, content, img_size=56, num_classes=7), state(outputs=7, img_size=56))


@pytest.mark.parametrize("old", [False, True])
def test_a_pickled_model_is_told_the_way_out(tmp_path: Path, old: bool) -> None:
    torch.save(copy.deepcopy(tiny_model()), tmp_path / "c.pth", _use_new_zipfile_serialization=not old)
    words = ["pickled Python objects", "re-save", "safetensors"] + ["timm."] * (not old)
    refused(lambda: opening.open_model(spec(tmp_path / "c.pth")), *words)


def test_a_pickled_thing_beside_the_weights_is_named(tmp_path: Path) -> None:
    torch.save({"model": state(), "best": nn.Identity()}, tmp_path / "c.pth")
    refused(lambda: opening.open_model(spec(tmp_path / "c.pth")), "torch.nn.modules.linear.Identity", "re-save")


def test_text_is_not_called_a_pickle(tmp_path: Path) -> None:
    (tmp_path / "c.pth").write_text("these are not the weights")
    assert "pickled" not in refused(lambda: opening.open_model(spec(tmp_path / "c.pth")), "c.pth")


def test_a_long_message_keeps_its_cause() -> None:
    text = one_line(ValueError("first " + "blah " * 1000 + "\n the cause"))
    assert text.startswith("first ") and text.endswith("the cause") and len(text) < 330
    assert one_line(KeyError()) == "KeyError"


def test_nothing_is_filled_where_nothing_fits(tmp_path: Path) -> None:
    """A refusal leaves no half-filled model to anyone who catches it."""
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.save(state(seed=5, outputs=4), tmp_path / "c.pth")
    with pytest.raises(UserError):
        filling.load(model, tmp_path / "c.pth")
    after: dict[str, Tensor] = dict(model.state_dict())
    assert all(torch.equal(before[name], after[name]) for name in before)
