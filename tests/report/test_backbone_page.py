"""The report page and the model card of a backbone: what is lost of its features, first."""

from __future__ import annotations

from typing import Any

import pytest
from records import Page, made_record

from vitprune.report.backbone import result
from vitprune.report.card import card
from vitprune.report.document import document
from vitprune.report.page.blocks import Text
from vitprune.report.page.html import html
from vitprune.report.page.markdown import markdown
from vitprune.report.reading.beside import Beside
from vitprune.report.sections.usage import usage_blocks
from vitprune.runs.record import figures

INDEX = (
    "27 % of the ten nearest test images are the same as by the dense model's features: an index must be built again."
)


def row(criterion: str, cosine: float, **changed: Any) -> dict[str, Any]:
    """One contender's features."""
    lost = 1 - cosine
    made: dict[str, Any] = {
        "criterion": criterion, "keep": None, "kept": 0.5, "allocation": "whole", "recovery": "layerwise", "seed": 0,
        "protocol": "honest", "group": None, "classes": ["images"], "params": 302346, "macs": 14123000, "macs_ratio": 0.4,
        "n": 478, "budget": {"macs": 0.4}, "cosine": cosine, "centred_cosine": 1 - 4 * lost, "fvu": 7 * lost,
        "tokens_cosine": 1 - 2 * lost, "tokens_centred_cosine": 1 - 5 * lost, "tokens_fvu": 8 * lost, "neighbours": 0.27,
        "knn_top1": None, "probe_top1": None,
        "paired": {"cosine": -0.02, "cosine_ci95": [-0.03, -0.01], "tokens_cosine": 0.0, "tokens_cosine_ci95": [0.0, 0.0]},
    }  # fmt: skip
    return made | changed


def backbone_record(**changed: Any) -> dict[str, Any]:
    """A complete record of a backbone's run."""
    dense = row("dense", 1.0, keep=1.0, recovery="none", neighbours=1.0, budget=None)
    ours = row("fisher-obs", 0.95, paired=None)
    drawn = [row("random", 0.9, seed=0), row("random", 0.8, seed=1), row("random", 0.5, recovery="none")]
    told = {"predicted": {"cosine_loss": 0.04, "fvu": 0.3}, "measured_over_predicted": 1.25, "latency_ratio": 0.62}
    file = {"path": "model.onnx", "precision": "int8", "cosine": 0.93, "opset": 23,
            "agreement": {"n": 478, "cosine": 0.93, "least_cosine": 0.7, "tokens_cosine": None, "max_abs_diff": 0.5},
            "checks": [{"name": "int8 features on the test split", "value": 0.07, "limit": 0.025, "detail": "x"}]}  # fmt: skip
    made = made_record() | {
        "rows": [dense, ours, *drawn], "result": ours | told | {"latency_batch": 1}, "per_class": [], "confusions": {},
        "worst": {}, "backbone": {"features": "tokens", "class_token": True, "prefix": 1, "index": INDEX},
        "export": {"files": [file], "failed": []}, "classes": ["images"], "target_classes": ["images"],
    }  # fmt: skip
    return made | changed


def test_the_page_says_what_is_lost_first() -> None:
    """Beside random units with the same repair in the mean of their draws, and that an index has to be built again."""
    page = document(backbone_record(), Beside(None))
    text = markdown(page).replace("\u202f", " ").replace("\\", "")
    said = text[text.index("What did I get?") :]
    assert (
        "loses 0.050 of cosine, 35.0 % of the variance of its features (FVU), in the mean over 478 test images" in said
    )
    assert "of its patches 0.100 and 40.0 %" in said
    assert "Random units with the same repair lose 0.150 and 105.0 %." in said
    assert said.index("of cosine") < said.index("must be built again") < said.index("How does it compare?")
    assert "FVU of the output: 0.300 was expected from the costs, 0.375 is measured, 1.25 times that" in said
    assert "model.onnx is not the slim model that this page speaks of: int8 features on the test split 0.07" in said
    assert "top-1" not in said.lower()


def test_every_row_is_in_the_table_beside_the_exported_model() -> None:
    tables = Page(html(document(backbone_record(), Beside(None)))).tables
    table = tables["Features of the slim models beside the dense model's, test split"]
    assert [cells[0].split()[0] for cells in table[1:]] == ["dense", "fisher-obs", "random", "random", "random"]
    assert "exported" in table[2][0] and not any("exported" in cells[0] for cells in (table[1], *table[3:]))
    assert table[3][-2] == "−0.0200 (−0.0300 to −0.0100)" and "kNN" not in table[0]
    assert tables["ONNX files beside the slim model's features, whole test split"][1][2] == "0.930000"


def test_uses_are_told_where_there_are_classes() -> None:
    record = backbone_record()
    for one in [*record["rows"], record["result"]]:
        one |= {"knn_top1": 0.59, "probe_top1": 0.79}
    text = markdown(document(record, Beside(None))).replace("\u202f", " ").replace("\\", "")
    assert "A vote of the nearest probe images gets 59.0 % right, on the dense model's features 59.0 %" in text
    assert "kNN" in text and "Probe" in text


def test_the_card_is_a_backbones() -> None:
    config = {"architecture": "vit_tiny", "vitprune": {"widths": {"a": 96, "b": 97}}, "model_args": {}}
    record = backbone_record()
    text = card(record, record["result"], config)
    assert (
        "pipeline_tag: image-feature-extraction" in text
        and "accuracy" not in text
        and "image-classification" not in text
    )
    assert "It has no head: its outputs are features." in text and "## Features" in text
    assert "| **this one** | 0.9500 | 0.3500 |" in text and "| random units, the same repair | 0.9000 |" in text
    assert "tokens = model.forward_features(images)" in text and INDEX.split(":")[0] in text.replace("\\", "")


@pytest.mark.parametrize(
    "record",
    [
        {"backbone": {"features": "tokens"}},
        {"backbone": {"x": 1}, "result": {"cosine": "?"}, "rows": [{}]},
        {"backbone": [1], "result": {"cosine": 0.5, "n": None}, "rows": [{"protocol": "honest", "cosine": "<b>"}]},
    ],
)
def test_a_record_without_figures_is_a_page_all_the_same(record: dict[str, Any]) -> None:
    assert "<b>" not in html(document(record, Beside(None))).replace("<b></b>", "")


def test_the_lines_that_use_it_ask_for_features() -> None:
    files = [{"path": "exported/b/model.onnx", "bytes": 1, "precision": "fp32"}]
    how = {"input_size": [3, 8, 8], "mean": [0.5], "std": [0.5], "interpolation": "bicubic"}
    for record in ({"backbone": {"features": "tokens"}, "files": files}, {"files": files}):
        for preprocessing in (how, {}):
            text = str(usage_blocks(record | {"preprocessing": preprocessing, "name": "b"}))
            assert ("logits" in text) != ("features" in text)
            assert ("--out features.npz" in text) == ("backbone" in record)


def texts(record: dict[str, Any]) -> list[Text]:
    return [block for block in result.result_section(record).blocks if isinstance(block, Text)]


def test_the_two_fvus_are_told_apart() -> None:
    """The one that was expected and the one of the exam: of what, and a share of which variance."""
    for reads, about in (
        ("tokens", "that of the class token and of all patches together, half of the weight each"),
        ("pooled", "that of the pooled vector too"),
    ):
        of = {"features": reads, "class_token": True, "prefix": 1, "index": INDEX}
        record = backbone_record(backbone=of)
        said = result.expected(record, record["result"])
        assert f"{about}, as a share of the variance among the probe images" in said
        assert said.endswith("every other FVU here is a share of the variance among the test images.")
        text = markdown(document(record, Beside(None)))
        assert text.count("was expected from the costs") == 1 and about in text
    assert result.expected(record, record["result"] | {"predicted": {"fvu": None}}) == ""
    assert result.FEW not in said
    far = record | {"result": record["result"] | {"measured_over_predicted": 8.0}}
    assert result.expected(far, far["result"]).endswith(result.FEW)
    little = far["result"] | {"predicted": {"fvu": 0.001}}
    assert result.FEW not in result.expected(far, little)
    assert any(block.text.endswith(result.FEW) and block.tone == "warning" for block in texts(far))


def test_few_images_say_nothing_of_an_index() -> None:
    """Of twelve test images eleven are others, of which ten are the nearest."""
    few, many = ({"neighbours": 0.95, "n": n} for n in (12, 500))
    assert "(91 % would be by chance): 12 test images are too few to say" in figures._index(few)
    assert "(2 % would be by chance): an index of them may stay" in figures._index(many)
    for n in (12, 500):
        assert "must be built again" in figures._index({"neighbours": 0.3, "n": n})
    assert "a single test image" in figures._index({"neighbours": None, "n": 1})
