"""Language units explained: what is shown, words and tokens by hand, scores of texts of any length, a server asked."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
import yaml
from chat import Chat, completion, images_of, obliging, text_of, unit_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from typer.testing import CliRunner
from vlms import FAMILIES, WORDS, folder, pairs, samples, tiny

from vitprune.api.vlm.recipe import See
from vitprune.api.vlm.units.explaining import explained
from vitprune.api.vlm.units.looked import Looked
from vitprune.cli.app import app
from vitprune.core.errors import UserError
from vitprune.core.progress import Reporter
from vitprune.model.vlm import opening, sites, tokens
from vitprune.model.vlm.pairs import read_pairs
from vitprune.see.naming import server
from vitprune.see.naming.server import KEY
from vitprune.see.types import asking, reading, simulating, watching, words
from vitprune.see.types.rules import MULTIMODAL, TEXT, VISUAL
from vitprune.see.types.shown import Unit, shown
from vitprune.see.types.watching import Watched

CLI = CliRunner()
SECRET = "sk-very-secret-0123456789"


def row(block: int, unit: int, kind: str, visual: float, text: float, fires: int = 1) -> dict[str, str]:
    rates = {"rate_visual": str(visual), "rate_text": str(text)}
    return {"block": str(block), "unit": str(unit), "type": kind, "fires": str(fires)} | rates


def test_the_strongest_and_a_draw_are_shown() -> None:
    rows = [row(0, j, "visual", 0.1 * j, 0.0) for j in range(5)]
    rows += [row(1, 0, "text", 0.0, 0.3), row(1, 1, "text", 0.1, 0.9), row(1, 2, "text", 0, 1.0, fires=0)]
    rows += [row(1, 3, "multimodal", 0.3, 0.2), row(1, 4, "multimodal", 0.25, 0.9), row(1, 5, "unknown", 1, 0)]
    found = shown(rows, 2, seed=0)
    assert [(u.name, u.kind, u.drawn) for u in found if not u.drawn] == [
        ("0:4", VISUAL, False), ("1:1", TEXT, False), ("1:4", MULTIMODAL, False)
    ]  # fmt: skip
    assert [u.name for u in found if u.kind != VISUAL and u.drawn] == ["1:0", "1:3"]  # the only ones that are left
    assert next(u.name for u in found if u.kind == VISUAL and u.drawn) in {"0:0", "0:1", "0:2", "0:3"}
    assert found == shown(rows, 2, seed=0) and shown(rows, 0, seed=0) == []


def test_two_tokens_that_are_bytes_are_told_apart() -> None:
    inner = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    inner.decoder = decoders.ByteLevel()
    vlm: Any = SimpleNamespace(processor=SimpleNamespace(tokenizer=hf.PreTrainedTokenizerFast(tokenizer_object=inner)))
    looked = Looked(vlm, See(), [], [], [], [])
    shown = [looked.word(i) for i in range(256)]
    assert len(set(shown)) > 253 and not any("�" in word for word in shown)  # two ends of a line look alike
    assert looked.word(inner.token_to_id("a")) == "a" and looked.word(inner.token_to_id("Ġ")) == "␣"


def test_words_by_hand() -> None:
    texts = ["a red boot", "a blue boot", "a RED bag", "a blue bag's end", "an odd one"]
    assert words.words_of(texts[3]) == {"a", "blue", "bag's", "end"}
    assert words.vocabulary(texts) == ["blue", "boot", "red"]  # all but one have `a`, one has `end`
    table = words.table(texts[:4], ["boot", "red"])
    assert table.tolist() == [[1, 1], [1, 0], [0, 1], [0, 0]]
    maps = np.array([[1.0, 0], [3, 0], [5, 2], [7, 2]])  # without `boot` 4 more and 2; with `red` 2 less
    assert words.predicted(table, maps, table) == pytest.approx(maps)
    of_boot = words.predicted(table[:, :1], maps, np.array([[1.0], [0.0]]))
    assert of_boot == pytest.approx(np.array([[2.0, 0], [6, 2]]))  # means of the pairs with and without the word


def test_tokens_by_hand() -> None:
    ids = [np.array([5, 6, 5]), np.array([7, 6])]
    found = words.Reading.of(ids, [np.array([4.0, 0, 2]), np.array([8.0, 1])])
    assert found.means == {5: (3.0, 2), 6: (0.5, 2), 7: (8.0, 1)} and (found.usual, found.most) == (3.0, 8.0)
    assert found.predicted(np.array([7, 9, 6])).tolist() == [8.0, 3.0, 0.5]
    assert found.listed(lambda i: f"t{i}") == [("t7", 10.0, 1), ("t5", 3.75, 2), ("t6", 0.625, 2)]
    some = words.token_list(["a", "b", "c", "d", "e", "f"], np.array([0, 0, 0, 0, 0, 5.0]), 10.0)
    assert some == "a\t0\nb\t0\nc\t0\nd\t0\ne\t0\nf\t5"  # a sixth speaks: the silent ones stay
    assert words.token_list(["a", "b", "c"], np.array([0, 9.99, 20]), 10.0) == "b\t9\nc\t10"
    assert words.token_list(["a"], np.array([0.0]), 0.0) == "a\t0"
    assert asking.printable(" boot\n\t") == "␣boot⏎�" and len(asking.printable("x" * 99)) == 40


def test_a_score_over_texts_of_any_length() -> None:
    """Pooled over all tokens, as by a plain correlation of everything in a row."""
    true, said = (
        [np.array([0.0, 0]), np.array([1.0]), np.array([3.0])],
        [np.array([0.0, 1]), np.array([1.0]), np.array([2.0])],
    )
    assert float(simulating.sums(said, true).correlation()[0]) == pytest.approx(3 / np.sqrt(12))
    draw, unit = np.random.default_rng(0), [Unit(0, j, TEXT, False) for j in range(4)]
    lengths = [3, 1, 7, 5, 4, 6]
    truth = {u: [draw.random(n) for n in lengths] for u in unit}
    guess = {u: [3 * y + draw.normal(0, 0.4, len(y)) + 7 for y in truth[u]] for u in unit}
    truth[unit[3]] = [np.zeros(n) for n in lengths]
    found = simulating.scored(guess, truth, seed=0)
    for told, u in zip(found["units"][:3], unit, strict=False):
        own = np.concatenate(truth[u])
        assert told["score"] == pytest.approx(np.corrcoef(np.concatenate(guess[u]), own)[0, 1])
        others = [np.corrcoef(np.concatenate(guess[o]), own)[0, 1] for o in unit if o != u]
        assert told["control"] == pytest.approx(np.mean(others)) and told["others"] == 3
        assert told["ci95"][0] <= told["score"] <= told["ci95"][1]
    assert found["units"][3]["score"] is None and found["units"][3]["why"] == simulating.SILENT
    assert found["n"] == 3 and found["median"] == pytest.approx(np.median([r["score"] for r in found["units"][:3]]))
    assert simulating.scored({}, {}, 0) == {"units": [], "median": None, "control": None, "n": 0}


@pytest.mark.parametrize("family", FAMILIES)
def test_watched_strengths_are_those_of_a_pass(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, made = tiny(family), [*samples(family, 2), *samples(family, 1, seed=5, text=3)]
    every, units = sites.ffns(model, "language"), [Unit(0, 3, VISUAL, False), Unit(1, 7, TEXT, False)]
    monkeypatch.setattr(watching, "MEMORY", 1)  # a block at a time
    found = watching.watched(model, every, units, made, "gate", 2)
    for sample, one in zip(made, found, strict=True):
        batch = tokens.collate([sample], model.config)
        values = reading.strength(model, every, batch, "gate")
        for u, unit in enumerate(units):
            expected = values[unit.block][0, :, unit.number].clone()
            expected[batch.kinds.sink[0]] = 0
            assert one.strengths[u] == pytest.approx(expected.numpy(), abs=1e-6)
        assert one.ids[one.text].tolist() == sample.ids[sample.start :].tolist()
        assert one.map(0).shape == (len(one.visual),) and one.grid == ((4, 4) if family == "llava" else (2, 2))


def planted(place: Path, count: int = 24) -> Looked:
    """A look at units with a known function: 0 fires at the ninth patch where the text has `boot`; 1 at the token `bag`;
    2 never."""
    vlm = opening.open_vlm(folder(place / "model"))
    every = read_pairs(pairs(place / "data", count))
    units = [Unit(0, 0, VISUAL, False), Unit(0, 1, TEXT, False), Unit(1, 2, VISUAL, True), Unit(1, 3, MULTIMODAL, True)]
    made, found = [vlm.preparer.sample(pair) for pair in every], []
    for n, (pair, sample) in enumerate(zip(every, made, strict=True)):
        one: Watched = watching._empty(sample, len(units), vlm.config)
        one.strengths[0, one.visual[9]] = "boot" in pair.text
        one.strengths[1, one.text] = one.ids[one.text] == 10 + WORDS.index("bag")
        one.strengths[3, one.visual] = (n % 5) * np.arange(16)
        one.strengths[3, one.text] = one.ids[one.text] == 10 + WORDS.index("red")
        found.append(one)
    return Looked(vlm, See(), every, made, units, found)


def test_planted_units_get_their_words_and_tokens(tmp_path: Path) -> None:
    looked = planted(tmp_path)
    found = explained(looked, tmp_path / "see", Reporter(quiet=True))
    rows = {row["unit"]: row for row in found["units"]}
    assert rows["0:0"]["name"] == "boot" and rows["0:1"]["tokens"][0] == ["bag", 10.0, rows["0:1"]["tokens"][0][2]]
    assert (
        rows["1:2"]["name"] is None and rows["0:1"]["picture"] is None and rows["0:0"]["picture"] == "see/units/0-0.png"
    )
    assert (tmp_path / "see" / "units" / "0-0.png").read_bytes().startswith(b"\x89PNG")
    told = found["simulator"]["words"]
    scores = {row["unit"]: row for row in (*told["image"]["units"], *told["text"]["units"])}
    assert scores["0:0"]["score"] >= 0.95 and scores["0:1"]["score"] >= 0.95 and "1:2" not in scores
    assert scores["0:1"]["control"] < 0.5
    side = {str(looked.pairs[n].image) for n in looked.side(fit=True)}
    assert not side & {str(looked.pairs[n].image) for n in looked.side(fit=False)}
    top, drawn = looked.exemplars(0)
    assert all("boot" in looked.pairs[n].text for n in top[:3]) and not set(top) & set(drawn)
    assert all(looked.fit[n] for n in (*top, *drawn))


def test_scores_are_of_other_pairs(tmp_path: Path) -> None:
    """Where a unit does the opposite on the pairs for scores, its explanation stays and its score turns."""
    looked = planted(tmp_path)
    for n in looked.side(fit=False):
        looked.found[n].strengths[0, looked.found[n].visual[9]] = "boot" not in looked.pairs[n].text
    found = explained(looked, tmp_path / "see", Reporter(quiet=True))
    told = {row["unit"]: row["score"] for row in found["simulator"]["words"]["image"]["units"]}
    assert found["units"][0]["name"] == "boot" and told["0:0"] < 0.3


def test_a_picture_is_what_the_model_was_given(tmp_path: Path) -> None:
    looked = planted(tmp_path, 6)
    with_contour = looked.outlined(0, 0)
    assert with_contour != looked.outlined(2, 0) and looked.picture(0).shape == (28, 28, 3)
    from PIL import Image

    own = np.asarray(Image.open(looked.pairs[0].image))
    assert np.abs(looked.picture(0).astype(int) - own).max() <= 1
    looked.samples[0].extras["pixel_values"] = torch.zeros(16, 96)  # type: ignore[index]
    assert (looked.picture(0) == own).all()  # patches in a row: the file's own image


# ---- by a server


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = {"time": time.time, "monotonic": time.monotonic, "sleep": lambda seconds: None}
    monkeypatch.setattr(server, "time", SimpleNamespace(**clocks))  # the progress goes on sleeping
    monkeypatch.delenv(KEY, raising=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("units")
    folder(made / "model")
    pairs(made / "data", 32)
    return made


def asked(place: Path, name: str, address: str, **names: Any) -> Path:
    """A recipe whose units a server names."""
    content = {
        "name": name, "model": {"name": "transformers:model"}, "data": {"pairs": "data/pairs.jsonl"},
        "out": str(place / "out"),
        "see": {
            "types": {"rule": "counts"}, "units": {"per_type": 2}, "simulator": {"images": 4},
            "names": {"by": "server", "url": address, "model": "small", "k": 3, "random": 2, "timeout": 5, **names},
        },
    }  # fmt: skip
    path = place / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def answer(body: dict[str, Any]) -> bytes:
    """A name, a number for every cell, or for every token."""
    count = re.search(r"each of the (\d+) tokens", text_of(body))
    if count is None:
        return obliging(body)
    numbers = [(3 * k) % 11 for k in range(int(count[1]))]
    return completion(json.dumps({"unit": unit_of(body), "cells": numbers}))


def test_a_server_names_units_and_its_names_are_tried(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, SECRET)
    with Chat(answer) as chat:
        done = CLI.invoke(app, ["see", str(asked(place, "named", chat.url))])
        assert done.exit_code == 0, done.output
        first = len(chat.asked)
        done = CLI.invoke(app, ["see", str(place / "named.yaml"), "--force", "--json"])
        assert done.exit_code == 0 and len(chat.asked) == first  # nothing is asked twice
    found = json.loads(done.stdout)["shown"]
    rows = found["units"]
    assert found["by"] == "server" and {row["name"] for row in rows} == {"bright corner"}
    kinds = [row["type"] for row in rows]
    seen = sum("grid of" in text_of(request) for request in chat.asked)
    read = sum("each of the" in text_of(request) and "grid of" not in text_of(request) for request in chat.asked)
    assert seen == 4 * (kinds.count("multimodal") + kinds.count("visual")) and first == len(rows) + seen + read
    assert 0 < read <= 4 * (kinds.count("multimodal") + kinds.count("text"))  # of texts that are the same one
    assert found["server"]["calls"] == 0 and found["server"]["cached"] >= first
    for request in chat.asked:
        unit = next(row for row in rows if row["unit"] == unit_of(request))
        text, many = text_of(request), len(images_of(request))
        assert request["headers"]["Authorization"] == f"Bearer {SECRET}" and "classifier" not in text
        if "have in common" in text:
            assert many == (0 if unit["type"] == "text" else 5)
            assert ("\t10" in text or "\t9" in text) is (unit["type"] != "visual")  # lists of tokens, where it reads
        else:
            assert many == ("grid" in text) and "bright corner" in text
    told = found["simulator"]["server"]
    assert {row["unit"] for row in told["image"]["units"]} == {r["unit"] for r in rows if r["type"] != "text"}
    assert all(row["score"] is None or -1 <= row["score"] <= 1 for row in told["image"]["units"])
    files = [path for path in (place / "out" / "named").rglob("*") if path.is_file()]
    assert len(files) > 10 and all(SECRET.encode() not in path.read_bytes() for path in files)
    assert SECRET not in done.output and any(
        "vlm-name-image-1.txt" in p.read_text() for p in files if p.suffix == ".json"
    )


WRONG: dict[str, tuple[Any, str]] = {
    "not json": (lambda body: completion("a bright corner"), "no JSON.*3 tries"),
    "another unit": (lambda body: completion('{"unit": "9:9", "text": "x", "none": false}'), "in the place of"),
    "500": (lambda body: (500, {}, b""), "answers 500.*3 tries"),
    "429": (lambda body: (429, {"Retry-After": "1"}, b""), "answers 429.*3 tries"),
    "403": (lambda body: (403, {}, b""), "answers 403; set VITPRUNE_SERVER_KEY"),
}


@pytest.mark.sample(1)
@pytest.mark.parametrize(("reply", "said"), WRONG.values(), ids=WRONG)
def test_a_server_that_fails_is_one_line(reply: Any, said: str, place: Path) -> None:
    with Chat(reply) as chat:
        done = CLI.invoke(app, ["see", str(asked(place, "failed", chat.url))])
    assert isinstance(done.exception, UserError) and re.search(said, str(done.exception)), done.exception


def test_what_is_wrong_with_a_server_is_said_before_it_is_asked(place: Path) -> None:
    for names, said in (
        ({"url": None}, "`by: server` needs `url`"),
        ({"url": "http://me:secret@127.0.0.1/v1"}, "a key goes into the environment"),
        ({"by": "words"}, "goes with `by: server`"),
    ):
        done = CLI.invoke(app, ["see", str(asked(place, "bad", "http://127.0.0.1:9/v1", **names))])
        assert isinstance(done.exception, UserError) and said in str(done.exception), done.exception
    with Chat(answer) as chat:
        done = CLI.invoke(app, ["see", str(asked(place, "dear", chat.url, max_calls=7))])
        assert isinstance(done.exception, UserError) and "max_calls is 7" in str(done.exception) and not chat.asked
    done = CLI.invoke(app, ["see", str(asked(place, "dear", chat.url))])
    assert isinstance(done.exception, UserError) and "refuses the connection" in str(done.exception)


def test_texts_of_users_are_data_in_a_prompt() -> None:
    unit = Unit(3, 4, TEXT, False)
    made = asking.naming(unit, ([], []), (["{unit}\t3", "b\t1"], ["{0}\t0"]))
    assert (
        "{unit}\t3" in made.text and "{0}\t0" in made.text and '"unit": "3:4"' in made.text and "2 texts" in made.text
    )
    tried = asking.of_text(unit, "{explanation} </x>", ["{cells}", "b"])
    assert "{explanation} </x>" in tried.text and "1\t{cells}" in tried.text and tried.cells == 2


def test_pairs_without_places_for_images_are_named_all_the_same(tmp_path: Path) -> None:
    """Tiles: no grid, so no contour and no cells; names and texts stay."""
    looked = planted(tmp_path)
    for one in looked.found:
        one.grid = None
    found = explained(looked, tmp_path / "see", Reporter(quiet=True))
    assert found["grid"] is None and found["simulator"]["words"]["image"]["units"] == []
    assert found["units"][0]["name"] == "boot" and found["simulator"]["words"]["text"]["n"] >= 1
