"""Vision-language models opened, cut, saved and opened again; their tokens and pairs; what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from vlms import FAMILIES, IMAGE, folder, pairs, samples, tiny

from vitprune.core.errors import UserError
from vitprune.model.sites import base
from vitprune.model.vlm import dead, opening, recognising, saving, sites, tokens
from vitprune.model.vlm.pairs import Pair, read_pairs

FFNS = {"llava": (3, 3), "qwen2vl": (2, 2), "idefics3": (2, 2), "smolvlm": (2, 2)}


@pytest.mark.parametrize("family", FAMILIES)
def test_sites_of_both_towers(family: str) -> None:
    model = tiny(family)
    vision, language = sites.ffns(model, "vision"), sites.ffns(model, "language")
    assert (len(vision), len(language)) == FFNS[family]
    assert {s.size for s in vision} == {64} and {s.size for s in language} == {48}
    assert all(s.gate for s in language) and not any(s.gate for s in vision)
    assert [s.block for s in language] == list(range(len(language)))
    assert {(s.size, s.queries, s.width) for s in sites.groups(model)} == {(2, 2, 8)}
    parameters = sum(p.numel() for p in model.parameters())
    for site in (vision[0], language[1], sites.groups(model)[0]):
        smaller = copy.deepcopy(model)
        base.keep_units(smaller, site, torch.tensor([1]))
        now = sites.named(smaller)[site.name]
        base.check_size(smaller, now, 1)
        gone = parameters - sum(p.numel() for p in smaller.parameters())
        assert gone == site.cost(model, site.size - 1).parameters


@pytest.mark.sample(2)
@pytest.mark.parametrize("family", FAMILIES)
def test_removed_is_zeroed(family: str) -> None:
    """Units and groups that are gone count as ones set to zero, in the logits."""
    (
        model,
        (_, batch),
    ) = tiny(family), *tokens.batches(samples(family, 2), tiny(family).config, 2)
    for site in (sites.ffns(model, "vision")[0], sites.ffns(model, "language")[0], sites.groups(model)[1]):
        smaller, zeroed = copy.deepcopy(model), copy.deepcopy(model)
        keep = torch.arange(1, site.size, 1 if site.size == 2 else 3)
        gone = torch.tensor([i for i in range(site.size) if i not in keep.tolist()])
        base.keep_units(smaller, site, keep)
        base.zero_units(zeroed, site, gone)
        expected = zeroed(**batch.inputs).logits
        assert (smaller(**batch.inputs).logits - expected).abs().max() <= 1e-5
        assert (model(**batch.inputs).logits - expected).abs().max() > 1e-4


@pytest.mark.sample(3)
@pytest.mark.parametrize("ragged", [False, True], ids=["uniform", "ragged"])
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_opened_again(family: str, ragged: bool, tmp_path: Path) -> None:
    tiny(family).save_pretrained(tmp_path / "dense")
    vlm = opening.open_vlm(tmp_path / "dense")
    (
        model,
        (_, batch),
    ) = copy.deepcopy(vlm.model), *tokens.batches(samples(family, 2), vlm.config, 2)
    for i, site in enumerate(sites.ffns(model, "language")):
        base.keep_units(model, site, torch.arange(20 + ragged * i))
    for site in sites.ffns(model, "vision"):  # Qwen2-VL's configuration knows whole multiples of its dimension alone
        base.keep_units(model, site, torch.arange(32 if family == "qwen2vl" and not ragged else 30))
    if ragged:
        base.keep_units(model, sites.groups(model)[0], torch.tensor([1]))
    plain = saving.save(vlm, model, tmp_path / "slim", {"criterion": "none"})
    assert plain is not ragged and bool(saving.unsaid(vlm, model)) is ragged
    expected = model(**batch.inputs).logits
    again = opening.open_vlm(tmp_path / "slim")
    assert (again.model(**batch.inputs).logits - expected).abs().max() <= 1e-5
    if plain:
        theirs = getattr(hf, vlm.architecture).from_pretrained(tmp_path / "slim").eval()
        assert (theirs(**batch.inputs).logits - expected).abs().max() <= 1e-5
    saving.save(again, again.model, tmp_path / "twice", {})
    assert (
        load_file(tmp_path / "twice" / "model.safetensors").keys()
        == load_file(tmp_path / "slim" / "model.safetensors").keys()
    )


def test_what_a_configuration_has_no_words_for_is_said(tmp_path: Path) -> None:
    tiny("qwen2vl").save_pretrained(tmp_path / "dense")
    vlm = opening.open_vlm(tmp_path / "dense")
    model = copy.deepcopy(vlm.model)
    for site in sites.ffns(model, "vision"):
        base.keep_units(model, site, torch.arange(48))
    assert saving.save(vlm, model, tmp_path / "slim", {}) is False
    assert saving.unsaid(vlm, model) == "a vision width of 48 at a dimension of 32: it is told as a whole multiple"
    assert {s.size for s in sites.ffns(opening.open_vlm(tmp_path / "slim").model, "vision")} == {48}
    base.keep_units(model, sites.ffns(model, "vision")[0], torch.arange(32))
    assert "vision tower that differ in width" in saving.unsaid(vlm, model)


def test_a_dead_vision_block_is_found_and_taken_out(tmp_path: Path) -> None:
    vlm = opening.open_vlm(folder(tmp_path / "dense"))
    batch = tokens.collate(samples("llava", 2), vlm.config)
    assert dead.dead_blocks(vlm.model, batch) == [2]
    for family in FAMILIES[1:]:
        other = tiny(family)
        assert dead.dead_blocks(other, tokens.collate(samples(family, 2), other.config)) == []
    smaller = dead.without(vlm, [2], batch)
    expected = vlm.model(**batch.inputs).logits
    assert float((smaller.model(**batch.inputs).logits - expected).abs().max()) == 0
    assert saving.save(vlm, smaller.model, tmp_path / "slim", {})
    theirs: Any = hf.LlavaForConditionalGeneration.from_pretrained(tmp_path / "slim").eval().requires_grad_(False)
    assert theirs.config.vision_config.num_hidden_layers == 2
    assert float((theirs(**batch.inputs).logits - expected).abs().max()) == 0
    with pytest.raises(UserError, match="logits depend on them"):
        dead.without(vlm, [1, 2], batch)
    with pytest.raises(UserError, match="only the last ones"):
        dead.without(vlm, [0], batch)


def test_kinds_of_tokens() -> None:
    ids = torch.tensor([[1, IMAGE, IMAGE, 10, 20, 1], [IMAGE, IMAGE, 10, 20, 0, 0]])
    found = tokens.kinds_of(ids, [4, 3], [6, 4], IMAGE, {1})
    assert found.visual.int().tolist() == [[0, 1, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0]]  # the first token is a sink
    assert found.text.int().tolist() == [[0, 0, 0, 0, 1, 0], [0, 0, 0, 1, 0, 0]]
    assert found.sink.int().tolist() == [[1, 0, 0, 0, 0, 1], [1, 0, 0, 0, 0, 0]]
    assert found.real.int().tolist() == [[1] * 6, [1, 1, 1, 1, 0, 0]]

    class Old:
        image_token_index = 7

    assert tokens.image_token(Old()) == 7 and tokens.image_token(tiny("idefics3").config) == IMAGE
    with pytest.raises(UserError, match="no image_token_id"):
        tokens.image_token(object())


def test_padding_changes_nothing() -> None:
    model = tiny("llava")
    short, long = samples("llava", 1, text=3)[0], samples("llava", 1, seed=1, text=7)[0]
    both = tokens.collate([short, long], model.config)
    alone = tokens.collate([short], model.config)
    mine = model(**both.inputs).logits[0, : len(short.ids)]
    assert (mine - model(**alone.inputs).logits[0]).abs().max() <= 1e-5


def test_pairs_become_samples(tmp_path: Path) -> None:
    vlm = opening.open_vlm(folder(tmp_path / "model"))
    found = read_pairs(pairs(tmp_path / "data", 4))
    sample = vlm.preparer.sample(found[1])
    assert (sample.ids == IMAGE).sum() == 16 and sample.ids[sample.start :].tolist() == vlm.preparer.ids_of(
        found[1].text
    )
    assert sample.extras["pixel_values"].shape == (1, 3, 28, 28)
    other = vlm.preparer.sample(found[1], found[0].image)
    assert torch.equal(sample.ids, other.ids) and not torch.equal(
        sample.extras["pixel_values"], other.extras["pixel_values"]
    )
    bare = vlm.preparer.without_image(found[1])
    assert not bare.extras and torch.equal(bare.ids, sample.ids[sample.ids != IMAGE])
    assert torch.equal(bare.ids[bare.start :], sample.ids[sample.start :])
    alone = vlm.preparer.alone(found[1])
    assert alone.ids[0] == 1 and torch.equal(alone.ids[alone.start :], sample.ids[sample.start :])
    free = vlm.preparer.sample(Pair(found[0].image, "a boot", None, "x:1"))
    assert (free.ids == IMAGE).sum() == 16


BAD = {
    "not json": ("{", "is not JSON"),
    "a list": ("[1]", "is not an object"),
    "unknown key": ('{"image": "0.png", "text": "a", "label": 1}', "`label` is not known"),
    "no text": ('{"image": "0.png", "text": "  "}', "`text` is missing or empty"),
    "missing image": ('{"image": "none.png", "text": "a"}', "there is no image"),
    "prompt": ('{"image": "0.png", "text": "a", "prompt": 1}', "`prompt` is not a text"),
}


@pytest.mark.parametrize(("line", "said"), BAD.values(), ids=BAD)
def test_bad_pairs(line: str, said: str, tmp_path: Path) -> None:
    path = pairs(tmp_path, 2)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError, match=said) as caught:
        read_pairs(path)
    assert f"{path}:3" in str(caught.value)


def test_marks_and_encodings_of_a_pairs_file(tmp_path: Path) -> None:
    path = pairs(tmp_path, 3)
    plain, text = read_pairs(path), path.read_text()
    path.write_text(text, "utf-8-sig")
    assert read_pairs(path) == plain
    path.write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    assert read_pairs(path) == plain
    lines = text.splitlines()
    path.write_bytes("\r\n".join([lines[0], lines[1].replace("a red", "é"), lines[2]]).encode("latin1"))
    with pytest.raises(UserError, match=r"pairs\.jsonl:2: is not UTF-8") as caught:
        read_pairs(path)
    assert str(caught.value).startswith(f"{path}:2: ")


def test_pairs_that_the_model_cannot_read(tmp_path: Path) -> None:
    vlm, image = opening.open_vlm(folder(tmp_path / "model")), tmp_path / "0.png"
    path = pairs(tmp_path, 2)
    for prompt, text, said in (
        ("what is it", "a boot", "no place for the image"),
        ("<image> <image>", "a boot", "2 places for one image"),
        ("<image>", "boot " * 200, "reads at most 128"),
        ("<image>", "a <image> boot", "the text has <image>"),
    ):
        with pytest.raises(UserError, match=f"^pairs:1: .*{said}"):
            vlm.preparer.sample(Pair(image, text, prompt, "pairs:1"))
    image.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"0\.png"):
        vlm.preparer.sample(Pair(image, "a boot", "<image>", "pairs:1"))
    path.write_text("")
    with pytest.raises(UserError, match="two at the least"):
        read_pairs(path)


def changed(path: Path, change: dict[str, Any]) -> Path:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | change))
    return path


def test_folders_that_are_refused(tmp_path: Path) -> None:
    path = folder(tmp_path / "model")
    config = (path / "config.json").read_text()
    with pytest.raises(UserError, match="quantised"):
        opening.open_vlm(changed(path, {"quantization_config": {"quant_method": "awq"}}))
    (path / "config.json").write_text(config)
    with pytest.raises(UserError, match="BertModel is not known"):
        opening.open_vlm(changed(path, {"architectures": ["BertModel"]}))
    assert recognising.architecture_of(path) is None and recognising.architecture_of(tmp_path) is None
    (path / "config.json").write_text(config)
    assert recognising.architecture_of(path) == "LlavaForConditionalGeneration"
    for widths, said in (
        ({"nowhere": 3}, "does not have"),
        ({"model.language_model.layers.0.mlp.down_proj": 10**9}, "1 to 48 are possible"),
        ({"model.language_model.layers.0.mlp.down_proj": 5}, "by config.json"),
    ):
        with pytest.raises(UserError, match=said):
            opening.open_vlm(changed(path, {"vitprune": {"widths": widths}}))
    (path / "config.json").write_text(config)
    weights = load_file(path / "model.safetensors")
    weights.pop(next(name for name in weights if "down_proj" in name))
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="missing keys"):
        opening.open_vlm(path)


def test_nothing_of_others_is_replaced(tmp_path: Path) -> None:
    vlm = opening.open_vlm(folder(tmp_path / "model"))
    with pytest.raises(UserError, match="folder of the model itself"):
        saving.save(vlm, vlm.model, tmp_path / "model", {})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="was not made by vitprune"):
        saving.save(vlm, vlm.model, tmp_path / "out", {})
    assert (tmp_path / "out" / "config.json").read_text() == "{}"


def test_an_adapter_in_the_way_is_named(tmp_path: Path) -> None:
    model = tiny("llava")
    site = sites.ffns(model, "language")[0]

    class Lora(torch.nn.Linear):
        pass

    parent = model.get_submodule(site.fc2.rpartition(".")[0])
    parent.down_proj = Lora(48, 32, bias=False)
    with pytest.raises(UserError, match=r"layers\.0\.mlp\.down_proj: Lora is not supported"):
        sites.every_ffn(model)
