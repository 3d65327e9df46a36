"""Models in and out: what is saved loads to equal outputs; what does not fit is one line and allocates nothing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from small import ARCHITECTURE, ARGS, LABELS, change_json, model_folder, plan_of, tiny_args, tiny_model
from torch import Tensor, nn

import vitprune
from vitprune.core.errors import UserError
from vitprune.images.preprocess import Preprocessing
from vitprune.model.load import folders, opening, saving
from vitprune.model.load.loaded import RAGGED, Loaded
from vitprune.pruning import surgery
from vitprune.pruning.plan import Plan
from vitprune.recipe import inputs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return model_folder(tmp_path / "model")


def images(channels: int = 1, count: int = 5) -> Tensor:
    return torch.randn(count, channels, 28, 28, generator=torch.Generator().manual_seed(0))


def mask(*kept: int, width: int = 64) -> Plan:
    """Hand-made: `kept` units per block, scattered."""
    blocks = []
    for i, count in enumerate(kept):
        block = torch.zeros(width, dtype=torch.bool)
        block[torch.randperm(width, generator=torch.Generator().manual_seed(i))[:count]] = True
        blocks.append(block)
    return plan_of(blocks)


def opened(folder: Path) -> Loaded:
    return opening.open_model(inputs.Model(name=f"local-dir:{folder}"))


def saved(folder: Path, target: Path, *kept: int) -> nn.Module:
    """A pruned model written to `target`."""
    loaded = opened(folder)
    slim = surgery.slim(loaded.model, mask(*kept))
    saving.save(target, loaded, slim, {"classes": ["circle"]})
    return slim


@pytest.fixture
def frugal() -> Iterator[None]:
    """The test may neither take long nor fill the memory."""
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000
    assert time.monotonic() - started < 20


def refusal(action: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    text = str(caught.value)
    assert len(text.splitlines()) == 1 and len(text) < 600
    return text


# ---- out and in again


def test_a_folder_of_timms_loads_as_timm_loads_it(folder: Path) -> None:
    mine, theirs = vitprune.load(folder), timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(mine(images()), theirs(images())) and torch.equal(mine(images()), tiny_model()(images()))
    assert not mine.training and not any(p.requires_grad for p in mine.parameters())


@pytest.mark.parametrize("kept", [(16, 16), (64, 64), (1, 1), (16, 5), (64, 1)])
def test_a_pruned_model_comes_back_to_equal_outputs(folder: Path, tmp_path: Path, kept: tuple[int, int]) -> None:
    slim = saved(folder, tmp_path / "slim", *kept)
    back = vitprune.load(tmp_path / "slim")
    assert torch.equal(back(images()), slim(images()))
    assert [block.mlp.fc1.out_features for block in back.blocks] == list(kept)
    block = json.loads((tmp_path / "slim" / "config.json").read_text())["vitprune"]
    assert block.keys() == {"widths", "classes", "sha256", "config_sha256"}
    assert block["widths"] == {f"blocks.{i}.mlp": width for i, width in enumerate(kept)} and block["classes"] == [
        "circle"
    ]
    weights = (tmp_path / "slim" / "model.safetensors").read_bytes()
    assert block["sha256"] == hashlib.sha256(weights).hexdigest()


@pytest.mark.parametrize("width", [1, 7, 16, 33, 63, 64])
def test_a_uniform_result_loads_with_plain_timm(folder: Path, tmp_path: Path, width: int) -> None:
    slim = saved(folder, tmp_path / "slim", width, width)
    theirs = timm.create_model(f"local-dir:{tmp_path / 'slim'}", pretrained=True).eval()
    assert torch.equal(theirs(images()), slim(images()))
    assert theirs.pretrained_cfg["label_names"] == list(LABELS)
    mine = timm.data.resolve_model_data_config(opened(folder).model)
    assert timm.data.resolve_model_data_config(theirs) == mine


def test_what_was_pruned_can_be_pruned_again(folder: Path, tmp_path: Path) -> None:
    saved(folder, tmp_path / "first", 16, 5)
    loaded = opened(tmp_path / "first")
    assert loaded.widths == [16, 5] and loaded.labels == list(LABELS)
    keep = plan_of([torch.arange(16) < 4, torch.arange(5) < 4])
    slim = surgery.slim(loaded.model, keep)
    saving.save(tmp_path / "second", loaded, slim, {})
    assert torch.equal(vitprune.load(tmp_path / "second")(images()), slim(images()))
    assert torch.equal(
        timm.create_model(f"local-dir:{tmp_path / 'second'}", pretrained=True).eval()(images()), slim(images())
    )


def test_labels_and_preprocessing_survive(folder: Path, tmp_path: Path) -> None:
    first = opened(folder)
    saved(folder, tmp_path / "slim", 8, 4)
    second = opened(tmp_path / "slim")
    assert second.labels == first.labels == list(LABELS)
    assert second.data_config == first.data_config
    assert first.data_config["mean"] in ([0.4], (0.4,)) and first.data_config["input_size"] == (1, 28, 28)
    assert (second.architecture, second.outputs) == (ARCHITECTURE, 3)


def test_saving_leaves_the_model_alone_and_no_temporary_file(folder: Path, tmp_path: Path) -> None:
    before = {k: v.clone() for k, v in opened(folder).model.state_dict().items()}
    saved(folder, tmp_path / "slim", 3, 3)
    assert sorted(p.name for p in (tmp_path / "slim").iterdir()) == ["config.json", "model.safetensors"]
    after = opened(folder).model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_saving_the_same_twice_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    saved(folder, tmp_path / "a", 9, 9)
    saved(folder, tmp_path / "b", 9, 9)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def again(folder: Path, target: Path) -> None:
    loaded = opened(folder)
    saving.save(target, loaded, loaded.model, loaded.about)


@pytest.mark.parametrize("kept", [(16, 16), (16, 5)])
def test_save_load_save_gives_the_same_bytes(folder: Path, tmp_path: Path, kept: tuple[int, int]) -> None:
    saved(folder, tmp_path / "a", *kept)
    again(tmp_path / "a", tmp_path / "b")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    ("architecture", "args"),
    [
        ("vit_tiny_patch16_224", {"num_classes": 3, "global_pool": "avg"}),
        ("vit_tiny_patch16_224", {"num_classes": 1000}),
        ("vit_small_patch14_dinov2", {"num_classes": 3}),
    ],
)
def test_save_load_save_of_a_timm_name(tmp_path: Path, architecture: str, args: dict[str, Any]) -> None:
    """What timm's own configuration leaves open, or says with null, does not wander from one save to the next."""
    loaded = opening.open_model(inputs.Model(name=architecture, args=tiny_args(3) | args))
    widths = [int(block.mlp.fc1.out_features) for block in loaded.model.blocks]
    slim = surgery.slim(loaded.model, mask(*(w // 3 for w in widths), width=widths[0]))
    saving.save(tmp_path / "a", loaded, slim, {"classes": None})
    again(tmp_path / "a", tmp_path / "b")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    theirs = timm.create_model(f"local-dir:{tmp_path / 'a'}", pretrained=True).eval()
    assert torch.equal(theirs(images(3)), slim(images(3)))
    kept = [Preprocessing.of(made.data_config) for made in (loaded, opened(tmp_path / "a"), opened(tmp_path / "b"))]
    assert kept[0] == kept[1] == kept[2]


def test_plain_timm_says_what_ragged_widths_need(folder: Path, tmp_path: Path) -> None:
    slim = saved(folder, tmp_path / "slim", 16, 5)
    with pytest.raises(TypeError, match="ragged_widths_need_vitprune_load"):
        timm.create_model(f"local-dir:{tmp_path / 'slim'}", pretrained=True)
    assert torch.equal(vitprune.load(tmp_path / "slim")(images()), slim(images()))
    assert RAGGED not in opened(tmp_path / "slim").model_args


def test_a_flipped_bit_in_the_weights_is_noticed(folder: Path, tmp_path: Path) -> None:
    saved(folder, tmp_path / "slim", 16, 16)
    path = tmp_path / "slim" / "model.safetensors"
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    for place in (0, 8, len(whole) - 1, *generator.integers(0, len(whole), 40)):
        broken = bytearray(whole)
        broken[place] ^= 1 << int(generator.integers(0, 8))
        path.write_bytes(broken)
        assert "model.safetensors: damaged or changed" in refusal(lambda: vitprune.load(tmp_path / "slim"))


def test_a_flipped_bit_in_the_config_is_noticed_or_changes_nothing(folder: Path, tmp_path: Path) -> None:
    slim = saved(folder, tmp_path / "slim", 16, 5)
    path = tmp_path / "slim" / "config.json"
    whole, before = path.read_bytes(), opened(tmp_path / "slim")
    generator = np.random.default_rng(0)
    lines = []
    for place in generator.integers(0, len(whole), 150):
        broken = bytearray(whole)
        broken[place] ^= 1 << int(generator.integers(0, 8))
        path.write_bytes(broken)
        try:
            after = opened(tmp_path / "slim")
        except UserError as error:
            lines.append(str(error))
            continue
        assert torch.equal(after.model(images()), slim(images()))
        assert (after.labels, after.data_config) == (before.labels, before.data_config)
    assert len(lines) > 90 and all(len(x.splitlines()) == 1 and "config.json" in x for x in lines)


def test_a_change_on_purpose_is_possible(folder: Path, tmp_path: Path) -> None:
    saved(folder, tmp_path / "slim", 16, 16)
    path = tmp_path / "slim" / "config.json"
    change_json(path, lambda c: c["pretrained_cfg"].update(label_names=["a", "b", "c"]))
    assert "vitprune.config_sha256" in refusal(lambda: vitprune.load(tmp_path / "slim"))
    change_json(path, lambda c: c["vitprune"].pop("config_sha256"))
    assert opened(tmp_path / "slim").labels == ["a", "b", "c"]


@pytest.mark.parametrize("cut", [0, 8, -1])
def test_a_saved_folder_cut_short(folder: Path, tmp_path: Path, cut: int) -> None:
    saved(folder, tmp_path / "slim", 16, 16)
    for name in ("model.safetensors", "config.json"):
        whole = (tmp_path / "slim" / name).read_bytes()
        (tmp_path / "slim" / name).write_bytes(whole[: cut - (name == "config.json" and cut < 0)])
        assert name in refusal(lambda: vitprune.load(tmp_path / "slim"))
        (tmp_path / "slim" / name).write_bytes(whole)
    assert vitprune.load(tmp_path / "slim")


def test_every_ratio_gives_its_width() -> None:
    for dim in (96, 192, 384, 768, 1000):
        assert all(int(dim * saving.ratio_for(dim, width)) == width for width in range(1, 4 * dim + 1))


@pytest.mark.skipif(not (folders.BUNDLED / "model.safetensors").is_file(), reason="the bundled model is not there")
def test_the_bundled_model() -> None:
    loaded = opening.open_model(inputs.Model())
    assert loaded.outputs == 10 and len(loaded.widths) >= 6 and min(loaded.widths) >= 384
    assert (folders.BUNDLED / "model.safetensors").stat().st_size <= 4_000_000


# ---- names, checkpoints, arguments


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_timm_name_with_a_local_checkpoint(tmp_path: Path, suffix: str, wrapped: bool) -> None:
    own = tiny_model(seed=7)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(own.state_dict(), path)
    else:
        torch.save({"state_dict": own.state_dict(), "epoch": 3} if wrapped else own.state_dict(), path)
    spec = inputs.Model(name=ARCHITECTURE, checkpoint=path, args=tiny_args() | {"num_classes": 3})
    loaded = opening.open_model(spec)
    assert torch.equal(loaded.model(images()), own(images()))
    assert loaded.labels is None and loaded.outputs == 3 and loaded.data_config["input_size"] == (1, 28, 28)


@pytest.mark.parametrize("in_chans", [1, 3])
def test_the_transform_of_a_timm_name_with_args_fits_its_model(tmp_path: Path, in_chans: int) -> None:
    torch.save(tiny_model(in_chans).state_dict(), tmp_path / "w.pth")
    spec = inputs.Model(name=ARCHITECTURE, checkpoint=tmp_path / "w.pth", args=tiny_args(in_chans) | {"num_classes": 3})
    loaded = opening.open_model(spec)
    from PIL import Image

    made = loaded.transform()(Image.new("L" if in_chans == 1 else "RGB", (40, 30)))
    assert made.shape == (in_chans, 28, 28) and loaded.model(made[None]).shape == (1, 3)


def test_imagenet_names_come_with_a_thousand_outputs() -> None:
    loaded = opening.open_model(inputs.Model(name=ARCHITECTURE, args=ARGS))
    assert loaded.labels is not None and len(loaded.labels) == 1000 and "n01440764\ttench" in loaded.labels


def test_an_unknown_model_is_told_with_close_ones() -> None:
    said = refusal(lambda: opening.open_model(inputs.Model(name="vit_tiny_patch17")))
    assert "did you mean `vit_tiny_patch16_" in said and "Also close: " in said


@pytest.mark.parametrize("name", ["resnet18", "cait_xxs24_224", "test_vit"])
def test_models_of_another_family(name: str) -> None:
    if name == "test_vit":
        assert opening.open_model(inputs.Model(name=name)).widths
        return
    assert "not supported" in refusal(lambda: opening.open_model(inputs.Model(name=name)))


@pytest.mark.parametrize("arg", sorted(folders.FORBIDDEN_ARGS))
def test_forbidden_arguments(folder: Path, arg: str) -> None:
    assert arg in refusal(lambda: opening.open_model(inputs.Model(name=ARCHITECTURE, args={arg: "x"})))
    change_json(folder / "config.json", lambda c: c["model_args"].update({arg: "/etc/passwd"}))
    assert "config.json" in refusal(lambda: vitprune.load(folder))


@pytest.mark.parametrize("args", [{"depht": 2}, {"num_heads": 5}, {"depth": "two"}, {"patch_size": 0}, {"depth": 0}])
def test_arguments_that_build_no_model(args: dict[str, Any]) -> None:
    refusal(lambda: opening.open_model(inputs.Model(name=ARCHITECTURE, args={**ARGS, **args})))


@pytest.mark.parametrize("name", ["bundled", "local-dir"])
def test_a_checkpoint_beside_a_folder_is_refused_not_ignored(folder: Path, tmp_path: Path, name: str) -> None:
    name = name if name == "bundled" else f"local-dir:{folder}"
    save_file(tiny_model(seed=3).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises((UserError, ValueError), match="checkpoint"):
        opening.open_model(inputs.Model(name=name, checkpoint=tmp_path / "other.safetensors"))
    with pytest.raises((UserError, ValueError), match="args"):
        opening.open_model(inputs.Model(name=name, args={"global_pool": "avg"}))


def evil(path: Path) -> Any:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(path),)

    return Evil()


def local_files(tmp_path: Path) -> dict[str, Path]:
    """Checkpoints that do not fit, by what is wrong with them."""
    good = tiny_model().state_dict()
    paths: dict[str, Path] = {}

    def put(name: str, suffix: str, content: Any) -> None:
        paths[name] = tmp_path / f"{name}{suffix}"
        if isinstance(content, bytes):
            paths[name].write_bytes(content)
        else:
            torch.save(content, paths[name])

    put("other width", ".pth", tiny_model(embed_dim=32).state_dict())
    put("other outputs", ".pth", tiny_model(outputs=4).state_dict())
    put("missing key", ".pth", {k: v for k, v in good.items() if k != "head.bias"})
    put("tensor", ".pth", torch.zeros(3))
    put("list", ".pth", [torch.zeros(3)])
    put("number", ".pth", 3)
    put("numbers", ".pth", dict.fromkeys(good, 1))
    put("numbered keys", ".pth", {1: torch.zeros(1)})
    put("nested", ".pth", {"state_dict": [1, 2]})
    put("pickled code", ".pth", {"state_dict": good, "x": evil(tmp_path / "was here")})
    put("bare pickle", ".pth", pickle.dumps(evil(tmp_path / "was here")))
    put("text", ".pth", b"these are not the weights")
    put("empty", ".pth", b"")
    put("zip", ".pth", b"PK\x03\x04" + bytes(100))
    put("text st", ".safetensors", b"these are not the weights")
    put("empty st", ".safetensors", b"")
    put("text npz", ".npz", b"these are not the weights")
    put("empty npz", ".npz", b"")
    torch.save(good, tmp_path / "whole")
    put("truncated", ".pth", (tmp_path / "whole").read_bytes()[:3000])
    np.savez(tmp_path / "wrong.npz", x=np.zeros(3))
    paths["wrong npz"] = tmp_path / "wrong.npz"
    np.savez(tmp_path / "object.npz", x=np.array([evil(tmp_path / "was here")], dtype=object))
    paths["object npz"] = tmp_path / "object.npz"
    paths["folder"] = tmp_path
    paths["missing"] = tmp_path / "none.pth"
    return paths


UNFIT = [
    "other width", "other outputs", "missing key", "tensor", "list", "number", "numbers", "numbered keys", "nested",
    "pickled code", "bare pickle", "text", "empty", "zip", "text st", "empty st", "text npz", "empty npz", "truncated",
    "wrong npz", "object npz", "folder", "missing",
]  # fmt: skip


@pytest.mark.parametrize("what", UNFIT)
def test_a_checkpoint_that_does_not_fit(tmp_path: Path, what: str) -> None:
    path = local_files(tmp_path)[what]
    spec = inputs.Model(name=ARCHITECTURE, checkpoint=path, args=tiny_args() | {"num_classes": 3})
    assert str(path) in refusal(lambda: opening.open_model(spec))
    assert not (tmp_path / "was here").exists()


# ---- folders that lie


def test_a_folder_that_is_not_one(folder: Path, tmp_path: Path) -> None:
    assert "no such model folder" in refusal(lambda: vitprune.load(tmp_path / "none"))
    assert "config.json" in refusal(lambda: vitprune.load(tmp_path))
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in refusal(lambda: vitprune.load(folder))
    (folder / "model.safetensors").mkdir()
    refusal(lambda: vitprune.load(folder))
    refusal(lambda: vitprune.load(folder / "config.json"))


def test_a_pickle_in_place_of_the_weights_is_not_opened(folder: Path, tmp_path: Path) -> None:
    torch.save({"x": evil(tmp_path / "was here")}, folder / "model.safetensors")
    refusal(lambda: vitprune.load(folder))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refusal(lambda: vitprune.load(folder))
    assert not (tmp_path / "was here").exists()


@pytest.mark.parametrize("cut", [0, 7, 8, 100, 2000, -1])
def test_truncated_weights(folder: Path, cut: int) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:cut])
    assert "model.safetensors" in refusal(lambda: vitprune.load(folder))


@pytest.mark.usefixtures("frugal")
def test_flipped_bits_in_the_header_give_one_line_or_a_model(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    generator = np.random.default_rng(0)
    lines = []
    for _ in range(100):
        broken = bytearray(whole)
        broken[generator.integers(0, end)] ^= 1 << int(generator.integers(0, 8))
        path.write_bytes(broken)
        try:
            vitprune.load(folder)
        except UserError as error:
            lines.append(str(error))
    assert len(lines) > 50 and all(len(line.splitlines()) == 1 for line in lines)


def header(folder: Path, change: Callable[[dict[str, Any]], None], tail: bytes | None = None) -> None:
    """Rewrite the weights' header."""
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    content = json.loads(whole[8 : 8 + size])
    change(content)
    text = json.dumps(content).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + (whole[8 + size :] if tail is None else tail))


@pytest.mark.usefixtures("frugal")
@pytest.mark.parametrize(
    "change",
    [
        lambda h: h["head.weight"].update(shape=[1 << 40, 1 << 20]),
        lambda h: h["head.weight"].update(shape=[3, 16], data_offsets=[0, 1 << 50]),
        lambda h: h["head.weight"].update(shape=[48]),
        lambda h: h["head.weight"].update(shape=[16, 3]),
        lambda h: h["head.weight"].update(shape=[-3, -16]),
        lambda h: h["head.weight"].update(dtype="F64"),
        lambda h: h["head.weight"].update(dtype="BOOM"),
        lambda h: h["head.weight"].update(data_offsets=[100, 0]),
        lambda h: h.pop("head.weight"),
        lambda h: h.update(extra=h["head.weight"]),
        lambda h: h.clear(),
    ],
)
def test_a_header_that_lies(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    header(folder, change)
    assert "model.safetensors" in refusal(lambda: vitprune.load(folder))


@pytest.mark.usefixtures("frugal")
def test_a_header_length_that_lies(folder: Path) -> None:
    path = folder / "model.safetensors"
    for length in (0, 1, 1 << 30, (1 << 64) - 1):
        path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
        refusal(lambda: vitprune.load(folder))


@pytest.mark.usefixtures("frugal")
@pytest.mark.parametrize(
    "change",
    [
        {"embed_dim": 1 << 16}, {"embed_dim": 1 << 60}, {"embed_dim": 1e300}, {"embed_dim": float("inf")},
        {"embed_dim": float("nan")}, {"embed_dim": -16}, {"embed_dim": 0}, {"embed_dim": "16"}, {"embed_dim": None},
        {"depth": 64}, {"depth": 10**6}, {"depth": -1}, {"depth": 2.5}, {"mlp_ratio": 65536}, {"mlp_ratio": 1e30},
        {"mlp_ratio": -4}, {"mlp_ratio": 0}, {"img_size": 65536}, {"img_size": [65536, 65536]}, {"img_size": [1 << 40] * 2},
        {"img_size": [[1 << 40]]}, {"img_size": {"h": 1 << 40}}, {"img_size": []}, {"patch_size": 1}, {"patch_size": 0},
        {"num_classes": 1 << 16}, {"num_classes": 1 << 50}, {"num_classes": -1}, {"num_classes": "3"}, {"in_chans": 60000},
        {"reg_tokens": 60000}, {"num_heads": 0}, {"num_heads": 3}, {"global_pool": "map"}, {"global_pool": "soup"},
        {"global_pool": ["token"]}, {"pos_drop_rate": 2.0}, {"act_layer": "os.system"}, {"block_fn": "x"}, {"unknown": 1},
        {"proj_bias": False}, {"mlp_layer": "os.system"}, {"norm_layer": 3}, {"weight_init": "magic"},
    ],
    ids=str,
)  # fmt: skip
def test_a_config_that_does_not_describe_the_weights(folder: Path, change: dict[str, Any]) -> None:
    change_json(folder / "config.json", lambda c: c["model_args"].update(change))
    refusal(lambda: opened(folder))


@pytest.mark.usefixtures("frugal")
@pytest.mark.parametrize(
    "widths",
    [[64], [64, 64, 64], [0, 64], [-1, 64], [1 << 20, 1 << 20], [1 << 40, 64], [64, 63], [True, 64], [64.0, 64], "64", [], 3,
     [64] * 1000, {"0": 64}, [None, None]],
    ids=lambda w: str(w)[:30],
)  # fmt: skip
def test_widths_that_do_not_fit(folder: Path, widths: Any) -> None:
    change_json(folder / "config.json", lambda c: c.update(vitprune={"widths": widths}))
    refusal(lambda: vitprune.load(folder))


@pytest.mark.usefixtures("frugal")
@pytest.mark.parametrize(
    "change",
    [
        {"architecture": "vit_giant_patch14_224"}, {"architecture": "resnet18"}, {"architecture": "no_such_model"},
        {"architecture": 3}, {"architecture": None}, {"architecture": "../../x"}, {"architecture": "hf-hub:a/b"},
        {"model_args": [1]}, {"model_args": "x"}, {"pretrained_cfg": []}, {"pretrained_cfg": "x"},
        {"num_classes": 10**9, "model_args": {}}, {"global_pool": {"a": 1}, "model_args": {}},
    ],
    ids=str,
)  # fmt: skip
def test_configs_of_another_kind(folder: Path, change: dict[str, Any]) -> None:
    change_json(folder / "config.json", lambda c: c.update(change))
    refusal(lambda: vitprune.load(folder))


def test_sound_weights_of_another_architecture(folder: Path) -> None:
    other = timm.create_model("resnet10t", num_classes=3)
    save_file(other.state_dict(), folder / "model.safetensors")
    change_json(
        folder / "config.json", lambda c: (c.update(architecture="resnet10t", model_args={}), c.pop("global_pool"))
    )
    assert "not supported" in refusal(lambda: vitprune.load(folder))


@pytest.mark.usefixtures("frugal")
@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", "\ufeff{}", '{"a": ' + "9" * 5000 + "}", "[" * 400_000, "{" + " " * 2_000_000 + "}"],
    ids=lambda t: f"{t[:8]!r}…{len(t)}",
)  # fmt: skip
def test_a_config_that_is_none(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    assert "config.json" in refusal(lambda: vitprune.load(folder))


def test_a_config_that_is_not_text(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\xff\xfe{}\x00")
    assert "config.json" in refusal(lambda: vitprune.load(folder))


@pytest.mark.usefixtures("frugal")
@pytest.mark.parametrize(
    "change",
    [
        {"mean": "grey"}, {"mean": [0.5, 0.5]}, {"mean": ["a"]}, {"mean": 0.5}, {"std": [0.0]}, {"std": [float("nan")]},
        {"crop_pct": "most"}, {"crop_pct": 1e-9}, {"crop_pct": -1}, {"interpolation": "guess"},
        {"interpolation": 5},
    ],
    ids=str,
)  # fmt: skip
def test_preprocessing_that_cannot_be(folder: Path, change: dict[str, Any]) -> None:
    """Said when the model is opened, not as a crash or a flooded memory at the first image."""
    change_json(folder / "config.json", lambda c: c["pretrained_cfg"].update(change))
    refusal(lambda: opened(folder).transform())


@pytest.mark.parametrize(
    "names", [3, [1, 2, 3], [["a"], ["b"], ["c"]], {"a": 1, "b": 2, "c": 3}, "abc", [None] * 3], ids=str
)
def test_label_names_that_are_no_names_are_refused_or_left_out(folder: Path, names: Any) -> None:
    change_json(folder / "config.json", lambda c: c["pretrained_cfg"].update(label_names=names))
    with contextlib.suppress(UserError):
        labels = opened(folder).labels
        assert labels is None or (len(labels) == 3 and all(isinstance(label, str) for label in labels))


def test_labels_that_are_too_few_are_left_out(folder: Path) -> None:
    change_json(folder / "config.json", lambda c: c["pretrained_cfg"].update(label_names=["a", "b"]))
    assert opened(folder).labels is None


def test_weights_in_half_precision_are_taken(folder: Path) -> None:
    half = {k: v.half() for k, v in load_file(folder / "model.safetensors").items()}
    save_file(half, folder / "model.safetensors")
    made = vitprune.load(folder)
    assert next(made.parameters()).dtype == torch.float32
    torch.testing.assert_close(made(images()), tiny_model()(images()), atol=0.05, rtol=0.05)
