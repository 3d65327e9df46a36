"""The ONNX file whose last block is there for the class token alone: equal to torch, cheaper, the base of fp16 and int8."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from small import LABELS, tiny_model
from torch import Tensor, nn

from vitprune.deploy import bench, runtime
from vitprune.deploy.onnx import exporting, precision, rewrites
from vitprune.model import size
from vitprune.model.inside import first_token
from vitprune.model.sites import attention
from vitprune.runs.results import shortcut

ABOUT = {"labels": list(LABELS)}


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 28, 28, generator=torch.Generator().manual_seed(1))


def slim(*states: tuple[int, int]) -> nn.Module:
    """A tiny model with (heads, dimensions) per block, all weights noisy."""
    model = tiny_model(3, depth=len(states))
    for site, state in zip(attention.attention_sites(model), states, strict=True):
        attention.resize(model, site, *state)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=draw))
    return model.requires_grad_(False)


def written(model: nn.Module, path: Path, asked: bool = True) -> list[str]:
    """What is said on the way."""
    said: list[str] = []
    run: Any = SimpleNamespace(
        recipe=SimpleNamespace(export=SimpleNamespace(onnx=True, shortcut=asked)),
        reporter=SimpleNamespace(say=said.append),
    )
    shortcut.write(run, model, path, ABOUT, images(7))
    return said


@pytest.mark.sample(1)
@pytest.mark.parametrize("states", [((2, 4), (1, 4)), ((2, 8), (2, 8)), ((2, 8), (0, 0))], ids=str)
def test_the_file_is_the_model_in_every_batch_and_every_precision(
    states: tuple[tuple[int, int], ...], tmp_path: Path
) -> None:
    model, path = slim(*states), tmp_path / "model.onnx"
    assert written(model, path) == []
    assert max(exporting.parity(model, path, images(7)).values()) < 1e-4
    facts, nodes = exporting.facts(path), exporting.facts(path)["nodes"]
    assert facts["shortcut"] and facts["macs"] == size.macs(model, shortcut=True) < size.macs(model)
    assert nodes["Attention"] == sum(heads > 0 for heads, _ in states) and nodes["Split"] == 1
    assert nodes.get("Transpose", 0) == 1  # of the patches: none is left around the attentions
    told = bench.facts_of(runtime.session(path))
    assert told["macs"] == facts["macs"] and told["widths"] == [64, 64]
    given = images(48).numpy()
    expected = runtime.predict(runtime.session(path), given)
    precision.to_fp16(path, tmp_path / "fp16.onnx")
    half = runtime.predict(runtime.session(tmp_path / "fp16.onnx"), given)
    assert np.abs(half - expected).max() < 0.05 * np.abs(expected).max()
    sweep = precision.to_int8(path, tmp_path / "int8.onnx", [given[:24], given[24:]], [given], expected.argmax(1), 5.0)
    whole = runtime.predict(runtime.session(tmp_path / "int8.onnx"), given)
    assert 100 * (whole.argmax(1) != expected.argmax(1)).mean() <= 5.0
    last = 4 if states[-1][0] else 0  # queries, keys and values apart, and proj
    assert sweep.quantized + len(sweep.excluded) == 1 + 2 * 2 + 2 + last + 1
    for name in ("fp16", "int8"):
        assert exporting.facts(tmp_path / f"{name}.onnx")["shortcut"]


def test_without_it_the_file_is_what_it_was(tmp_path: Path) -> None:
    model = slim((2, 8), (2, 8))
    written(model, tmp_path / "off.onnx", asked=False)
    exporting.export(model, tmp_path / "plain.onnx", ABOUT | size.size(model))
    assert (tmp_path / "off.onnx").read_bytes() == (tmp_path / "plain.onnx").read_bytes()
    pooled = tiny_model(3, global_pool="avg")
    written(pooled, tmp_path / "pooled.onnx")
    facts = exporting.facts(tmp_path / "pooled.onnx")
    assert not facts["shortcut"] and facts["macs"] == size.macs(pooled)


def test_a_file_whose_logits_differ_is_written_again_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = slim((2, 8), (2, 8))
    right = first_token.FirstToken.forward
    monkeypatch.setattr(first_token.FirstToken, "forward", lambda self, x: right(self, x).flip(-1))
    said = written(model, tmp_path / "m.onnx")
    assert len(said) == 1 and "written without it" in said[0]
    facts = exporting.facts(tmp_path / "m.onnx")
    assert not facts["shortcut"] and facts["macs"] == size.macs(model)
    assert max(exporting.parity(model, tmp_path / "m.onnx", images(7)).values()) < 1e-4
    assert json.loads(exporting.metadata(tmp_path / "m.onnx")["labels"]) == list(LABELS)


def test_queries_of_more_tokens_and_other_turns_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the known form becomes an attention on [B, T, D]."""
    model = slim((2, 8))
    with monkeypatch.context() as patch:
        patch.setattr(rewrites, "fuse", lambda _: 0)
        exporting.export(first_token.of(model), tmp_path / "m.onnx", {})
    graph = (tmp_path / "m.onnx").read_bytes()
    assert rewrites.fuse(onnx.ModelProto.FromString(graph)) == 1
    for place in range(3):
        proto = onnx.ModelProto.FromString(graph)
        node = next(n for n in proto.graph.node if n.op_type == "Attention")
        turn = next(n for n in proto.graph.node if n.output[0] == node.input[place])
        next(a for a in turn.attribute if a.name == "perm").ints[:] = [0, 2, 3, 1]
        assert rewrites.fuse(proto) == 0
