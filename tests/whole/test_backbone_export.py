"""A tower of transformers goes the whole road to its files: checkpoint, ONNX in two precisions, report page, card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import timm
import torch
from records import Page
from small import picture, quicken, recipe_dict

import vitprune
from vitprune.core.reading import read_json
from vitprune.recipe.recipe import Recipe
from vitprune.report import write_report
from vitprune.report.card import card
from vitprune.report.reading.values import plain
from vitprune.runs import pipeline

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 7,
         "intermediate_size": 64, "projection_dim": 12}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run of CLIP's tower with its projection on a flat folder: its folder and its record."""
    transformers = pytest.importorskip("transformers", reason="the extra `transformers` is not installed")
    where = tmp_path_factory.mktemp("tower")
    torch.manual_seed(0)
    net = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**SIZES))
    for weight in net.parameters():
        weight.data += 0.3 * torch.randn(weight.shape)
    net.save_pretrained(where / "hf")
    (where / "images").mkdir()
    for i in range(36):
        picture(i % 3, i // 3).convert("RGB").save(where / "images" / f"{i:02d}.png")
    own = {
        "model": {"name": f"transformers:{where / 'hf'}"}, "criterion": {"name": "fisher-obs"}, "budget": {"macs": 0.7},
        "baselines": ["random"], "recovery": "layerwise",
        "export": {"onnx": True, "latency_batches": [1], "precisions": ["fp32", "fp16"]},
    }  # fmt: skip
    made = recipe_dict("", where / "images", where / "runs") | own
    del made["keep"]
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        record = pipeline.run(Recipe.model_validate(made))
    return where / "runs" / "tiny", plain(record)


@pytest.mark.slow
def test_every_file_is_the_slim_model(finished: tuple[Path, dict[str, Any]]) -> None:
    """Checkpoint and ONNX give the same features on the run's own images, and every check has passed."""
    folder, record = finished
    assert record["complete"] and all(one["passed"] for one in record["checks"]), record["checks"]
    named = {one["name"] for one in record["checks"]}
    assert {"ONNX features on the test split", "fp16 features on the test split", "ONNX parity at batch 7"} <= named
    files = {row["precision"]: row for row in record["export"]["files"]}
    assert files["fp32"]["cosine"] > 1 - 1e-9 and files["fp16"]["cosine"] > 1 - 1e-4
    assert files["fp32"]["agreement"]["tokens_cosine"] > 1 - 1e-9
    assert not any("RANDOM" in note for note in record["notes"])  # the folder has its weights
    model = vitprune.load(folder)
    images = torch.randn(3, 3, 28, 28)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    features, tokens = session.run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(features), model(images), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.from_numpy(tokens), model.forward_features(images), atol=1e-4, rtol=1e-4)
    assert features.shape == (3, 12) and tokens.shape == (3, 17, 16)
    config = read_json(folder / "config.json")
    assert config["vitprune"]["projection"] is True and config["num_classes"] == 12
    told = session.get_modelmeta().custom_metadata_map
    assert told["features"] == "tokens" and "labels" not in told and json.loads(told["preprocessing"])["mean"]


@pytest.mark.slow
def test_its_page_and_card_are_written(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, record = finished
    text = write_report(record, folder)[0].parent.joinpath("report.md").read_text()
    assert f"loses {1 - record['result']['cosine']:.3f} of cosine" in text and "features = model(images)" in text
    assert record["backbone"]["index"].split(":")[0] in text
    page = Page((folder / "report.html").read_text())
    assert (
        len(page.tables["Features of the slim models beside the dense model's, test split"]) == len(record["rows"]) + 1
    )
    assert page.tables["ONNX files beside the slim model's features, whole test split"]
    text = card(record, record["result"], read_json(folder / "config.json"))
    assert f"| **this one** | {record['result']['cosine']:.4f} |" in text


def test_a_uniform_slim_tower_goes_back_to_both_libraries(tmp_path: Path) -> None:
    """With one width for all FFNs and whole attention: timm's folder, and transformers' own."""
    transformers = pytest.importorskip("transformers", reason="the extra `transformers` is not installed")
    sizes = {
        "img_size": 28,
        "patch_size": 14,
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
        "num_classes": 0,
        "mlp_ratio": 3,
    }
    model = timm.create_model("vit_small_patch14_dinov2", **sizes).eval()
    images = torch.randn(40, 3, 28, 28)
    scores = vitprune.discover(model, images, criterion="variance")
    slim = vitprune.prune(model, scores, keep=1 / 3, images=images, allocation="uniform", recovery="affine")
    vitprune.save(slim, tmp_path / "own")
    vitprune.save(slim, tmp_path / "theirs", library="transformers")
    theirs = transformers.Dinov2Model.from_pretrained(tmp_path / "theirs").eval()
    plain_timm = timm.create_model(f"local-dir:{tmp_path / 'own'}", pretrained=True).eval()
    with torch.no_grad():
        expected = slim.forward_features(images[:2])
        torch.testing.assert_close(theirs(images[:2]).last_hidden_state, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(plain_timm.forward_features(images[:2]), expected, atol=1e-5, rtol=1e-5)
