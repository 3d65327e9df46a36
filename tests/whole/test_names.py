"""Names and the simulator as a whole: planted units are called what they are, CLIP and server at work, pages, bars."""

from __future__ import annotations

import csv
import io
import json
import pickle
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat import Chat, images_of, obliging, text_of
from PIL import Image
from safetensors.torch import load_file, save_file
from small import contents, image_folder, leftovers, model_folder, quicken, recipe_dict, write_recipe
from tiny_clip import clip_folder
from typer.testing import CliRunner

from vitprune.cli.app import app
from vitprune.core.errors import UserError
from vitprune.core.progress import Reporter
from vitprune.recipe import parse
from vitprune.recipe.recipe import Recipe
from vitprune.report import bars
from vitprune.runs import pipeline
from vitprune.runs.engine.base import Columns, Job
from vitprune.runs.engine.local import Local
from vitprune.runs.record import record
from vitprune.runs.seeing import passes
from vitprune.runs.seeing.parts.naming import clip_names, inputs
from vitprune.runs.state import run as run_module
from vitprune.see.naming.server import KEY

BOTH = ["names", "simulator"]
SECRET = "sk-very-secret-0123456789"


def planted(path: Path) -> None:
    """A model whose first FFN has unit 1 firing where the first patch is bright, as it is on circles alone, 2 to 9 random and
    the others silent. Channel 0 of the stream is a patch's mean, 2 and 3 are large, so that the norm hardly moves it, 4 says
    which patch it is."""
    weights = load_file(path / "model.safetensors")
    state = {name: value.clone() for name, value in weights.items()}
    for name in ("patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed", "cls_token"):
        state[name].zero_()
    for name in ("attn.proj.weight", "attn.proj.bias"):
        state[f"blocks.0.{name}"].zero_()
    for name in ("weight", "bias"):
        state[f"blocks.0.mlp.fc1.{name}"][:2] = state[f"blocks.0.mlp.fc1.{name}"][10:] = 0
    state["patch_embed.proj.weight"][0] = 1 / 49
    state["patch_embed.proj.bias"][2], state["patch_embed.proj.bias"][3] = 40.0, -40.0
    state["pos_embed"][0, 1, 4] = 20.0
    state["blocks.0.norm2.weight"].fill_(1.0)
    state["blocks.0.norm2.bias"].zero_()
    state["blocks.0.mlp.fc1.weight"][1, 0], state["blocks.0.mlp.fc1.weight"][1, 4] = 200.0, 100.0
    state["blocks.0.mlp.fc1.bias"][1] = -112.0
    save_file(state, path / "model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ground")
    planted(model_folder(root / "model"))
    image_folder(root / "images")
    rows = [
        f"{kind}/{i:02d}.png,{int(kind == 'circle')},{i % 2}"
        for kind in ("circle", "cross", "square")
        for i in range(10)
    ]
    (root / "attributes.csv").write_text("\n".join(["image,</script><b>top left,odd", *rows]) + "\n")
    (root / "concepts.txt").write_text("boot\nbag\nbright </script><b>corner\nbag\n")
    clip_folder(root / "clip")
    return root


def content(ground: Path, out: Path, **see: Any) -> dict[str, Any]:
    see = {"parts": BOTH, "units": {"removed": 4, "kept": 4}, "names": {"tokens": "patches"}} | see
    changed = {"criterion": {"name": "activation", "t": 3, "probe_per_class": 4}, "baselines": [], "see": see}
    return recipe_dict(ground / "model", ground / "images", out) | changed


def done(made: dict[str, Any], reporter: Reporter | None = None) -> dict[str, Any]:
    return pipeline.run(Recipe.model_validate(made), "run", device="cpu", reporter=reporter)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "see" / "units.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def seen(ground: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with names by classes and attributes."""
    out = tmp_path_factory.mktemp("seen")
    made = content(ground, out, parts=["alignment", *BOTH])
    made["data"]["attributes"] = str(ground / "attributes.csv")
    done(made)
    return out / "tiny"


def test_units_whose_function_is_known_are_called_what_they_are(
    ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicken(monkeypatch)
    made = done(content(ground, tmp_path))["see"]
    silent, circle = rows(tmp_path / "tiny")[:2]
    assert circle["name"] == "circle" and float(circle["name_score"]) >= 0.95 and float(circle["simulated"]) >= 0.95
    assert abs(float(circle["name_control"])) < 0.5
    assert {silent[key] for key in ("name", "name_score", "simulated", "simulated_control")} == {""}
    assert made["names"]["images"] == {"n": 24, "for_names": 12, "for_scores": 12} and made["names"]["concepts"] == 3
    block = made["simulator"]["predictors"]["labels"]["blocks"][0]
    assert block["n"] == 9 and block["null"] == 55 and 1 <= made["names"]["blocks"][0]["named"] <= 9
    for unit in made["simulator"]["maps"]["labels"]["units"]:
        silent_one = unit["unit"].startswith("0:") and not 1 <= int(unit["unit"][2:]) <= 9
        assert (unit["score"] is None) == (unit["why"] is not None) and (unit["score"] is None or not silent_one)
    assert leftovers(tmp_path / "tiny") == []


def test_attributes_name_units_and_simulate_them(ground: Path, seen: Path) -> None:
    told = json.loads((seen / "see" / "see.json").read_text())
    assert told["names"]["concepts"] == 5 and set(told["simulator"]["predictors"]) == {"labels", "attributes"}
    assert rows(seen)[1]["name"] in ("circle", "</script><b>top left")  # the same images
    attributes = told["simulator"]["predictors"]["attributes"]
    assert attributes["blocks"][0]["n"] >= 1 and attributes["sets"][""]["kept"]["n"] > 0
    assert float(rows(seen)[1]["name_score"]) >= 0.95
    page, atlas = (seen / "report.html").read_text(), (seen / "see" / "atlas.html").read_text()
    assert atlas.count("</script>") == 2 and "<b>top" not in atlas and "<b>top" not in page
    assert "What units are called, and whether that tells what they do" in page and "attributes" in page
    assert "the classes' correlation" in page.replace("&#39;", "'") or "the classes’ correlation" in page


def test_a_card_says_the_name_and_its_score(seen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "write_report", lambda *_: [])
    lines = CliRunner().invoke(app, ["see", str(seen), "--unit", "0:1"]).output.splitlines()
    name, simulated = (next(line for line in lines if line.startswith(f"  {word} ")) for word in ("name", "simulated"))
    assert "correlation " in name and "on other images; those of other names" in name
    assert "by an image's class: correlation " in simulated and "those of other units" in simulated


def test_bars_on_units(seen: Path) -> None:
    def ask(*options: str) -> tuple[int, str]:
        found = CliRunner().invoke(app, ["check", str(seen), *options])
        return found.exit_code, found.output

    kept = json.loads((seen / "report.json").read_text())["see"]["simulator"]["predictors"]["labels"]["sets"][""][
        "kept"
    ]
    value = kept["median"]
    assert ask("--min-simulator", repr(value))[0] == 0
    code, text = ask("--min-simulator", repr(value + 1e-6))
    assert code == 1 and text.startswith("MISSED  simulator ")
    with pytest.raises(
        UserError, match=r"holds no removed_aligned; was it measured \(the recipe's see.parts: alignment"
    ):
        bars.check(seen, [bars.Bar("removed_aligned", 0.5)])  # no block carries classes


def test_removed_evidence_has_a_bar(seen: Path, tmp_path: Path) -> None:
    found = json.loads((seen / "report.json").read_text())
    found["see"]["alignment"]["evidence"][""]["share"] = 0.25
    (tmp_path / "report.json").write_text(json.dumps(found))
    for limit, code in (("0.25", 0), ("0.2", 1)):
        assert CliRunner().invoke(app, ["check", str(tmp_path), "--max-removed-aligned", limit]).exit_code == code
    del found["see"]
    (tmp_path / "report.json").write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"holds no simulator; was it measured \(the recipe's see.parts: simulator"):
        bars.check(tmp_path, [bars.Bar("simulator", 0.1, True)])


class Elsewhere(Local):
    """An engine whose parts are computed by what a worker would be sent, the last of them first."""

    def run(self, job: Job, folder: Path) -> Iterator[Columns]:
        work = pickle.loads(pickle.dumps(job.work))
        made = [work(item) for item in reversed(job.items)]
        yield from reversed(made)


def test_the_same_bytes_whoever_computes_the_parts(
    ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicken(monkeypatch)
    monkeypatch.setattr(passes, "SHARD", 6)
    monkeypatch.setattr(passes, "BATCH", 3)
    names = {"by": "clip", "folder": str(ground / "clip"), "concepts": str(ground / "concepts.txt")}
    made = content(ground, tmp_path, names=names)
    found = done(made)["see"]
    assert found["names"]["by"] == "clip" and found["names"]["concepts"] == 4 and found["names"]["tokens"] == "cls"
    unit = next(one for one in found["names"]["units"] if one["name"])
    assert len(unit["parts"]) == 1 and len(unit["other"]) == 2
    clip = found["simulator"]["maps"]["clip"]
    assert clip["images"] == 12 and clip["n"] >= 3 and all(one["others"] for one in clip["units"] if one["why"] is None)
    before = contents(tmp_path / "tiny" / "see")
    (tmp_path / "tiny" / "stages" / "see" / "stage.json").unlink()
    monkeypatch.setattr(run_module.Run, "executor", property(lambda _: Elsewhere()))
    done(made)
    assert contents(tmp_path / "tiny" / "see") == before


class Corners:
    """A CLIP that knows where an image is bright: at the top left, in the middle, at the bottom."""

    words = ("top", "middle", "bottom")

    @classmethod
    def open(cls, *_: Any) -> Corners:
        return cls()

    def texts(self, words: Sequence[str]) -> torch.Tensor:
        return torch.tensor([[float(word == own) for own in self.words] for word in words])

    def images(self, pictures: Iterable[Image.Image]) -> torch.Tensor:
        pixels = [np.asarray(one.convert("L"), np.float64) for one in pictures]
        thirds = [
            [one[k * len(one) // 3 : (k + 1) * len(one) // 3 + 1, : len(one) // 3 + 1].mean() for k in range(3)]
            for one in pixels
        ]
        found = torch.tensor(thirds, dtype=torch.float32) - 60
        return torch.nn.functional.normalize(found.clamp(min=0) + 1e-3, dim=1)


def test_clip_names_a_unit_whose_function_is_known(
    ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicken(monkeypatch)
    monkeypatch.setattr(clip_names, "Clip", Corners)
    (tmp_path / "words.txt").write_text("\n".join(["nothing", *Corners.words]))
    names = {"by": "clip", "folder": str(ground / "clip"), "concepts": str(tmp_path / "words.txt"), "tokens": "patches"}
    done(content(ground, tmp_path, names=names))
    unit = rows(tmp_path / "tiny")[1]
    assert unit["name"] == "top" and float(unit["name_score"]) > max(0.8, 0.5 + float(unit["name_control"]))


class Saying(Reporter):
    """A reporter whose lines are kept."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def by_server(ground: Path, out: Path, chat: Chat, **changed: Any) -> dict[str, Any]:
    names = {"by": "server", "url": chat.url, "model": "small", "tokens": "patches"} | changed
    return content(ground, out, units={"removed": 2, "kept": 2}, names=names, simulator={"images": 3})


def test_a_server_names_shown_units_once_and_is_never_told_the_key(
    ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicken(monkeypatch)
    monkeypatch.setenv(KEY, SECRET)
    said = Saying()
    with Chat(lambda body: obliging(body, "</script><b>stripes")) as chat:
        made = by_server(ground, tmp_path, chat)
        found = done(made, said)["see"]
        units = [one for one in found["names"]["units"] if one["name"]]
        assert {one["name"] for one in units} == {"</script><b>stripes"} and "score" not in units[0]
        assert len(chat.asked) == 4 * len(units) == found["simulator"]["maps"]["server"]["server"]["calls"]
        naming, trying = chat.asked[0], chat.asked[-1]
        pictures = [np.array(Image.open(io.BytesIO(image))) for asked in chat.asked for image in images_of(asked)]
        assert len(images_of(naming)) == 12 and len(images_of(trying)) == 1  # all that are for names
        assert any(((one == (255, 220, 0)).all(2)).any() for one in pictures)
        assert "</script><b>stripes" in text_of(trying) and "4 rows and 4 columns" in text_of(trying)
        server = found["simulator"]["maps"]["server"]
        assert server["images"] == 3 and server["n"] + sum(one["score"] is None for one in server["units"]) == len(
            units
        )
        assert any(f"{len(units)} requests to 127.0.0.1" in line and "images" in line for line in said.lines)
        assert not any("warning" in line or SECRET in line for line in said.lines)
        assert found["names"]["server"]["prompt"]["file"] == "name-1.txt"
        count = len(chat.asked)
        (tmp_path / "tiny" / "stages" / "see" / "stage.json").unlink()
        again = done(made)["see"]
        assert len(chat.asked) == count and again["names"]["server"]["calls"] == 0
        assert again["names"]["units"] == found["names"]["units"]
        assert again["simulator"]["maps"]["server"]["units"] == server["units"]
    folder = tmp_path / "tiny"
    assert len(list((folder / "see" / "cache").iterdir())) == count and leftovers(folder) == []
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes()
    assert (folder / "see" / "atlas.html").read_text().count("</script>") == 2


def test_more_requests_than_were_allowed_are_refused_before_the_first(
    ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicken(monkeypatch)
    with Chat(obliging) as chat:
        with pytest.raises(UserError, match=r"max_calls: naming the units that the report shows and trying it takes"):
            done(by_server(ground, tmp_path, chat, max_calls=5))
        assert chat.asked == []


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"by": "server", "model": "m"}, "`by: server` needs `url`"),
        ({"by": "server", "url": "http://127.0.0.1/v1"}, "`by: server` needs `model`"),
        ({"by": "server", "model": "m", "url": "127.0.0.1:8000"}, "is an address such as http://127.0.0.1:8000/v1"),
        ({"by": "server", "model": "m", "url": "http://me:word@h/v1"}, "a key goes into the environment"),
        ({"by": "server", "model": "m", "url": "http://h/v1?key=1"}, "a key goes into the environment"),
        ({"by": "clip", "folder": "x"}, "`by: clip` needs `concepts`"),
        ({"url": "http://127.0.0.1/v1"}, "`url` goes with `by: server`"),
        ({"key": "sk"}, "key"),
    ],
)
def test_settings_that_do_not_go_together_are_one_line(names: dict[str, str], said: str) -> None:
    with pytest.raises(UserError) as error:
        parse.parse(json.dumps({"name": "a", "see": {"names": names}}))
    assert said in str(error.value)


def test_files_that_names_are_made_from_are_found_beside_the_recipe(
    ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = content(ground, tmp_path, names={"by": "clip", "folder": "clip", "concepts": "concepts.txt"})
    made["data"]["attributes"] = "attributes.csv"
    found = parse.load(write_recipe(ground / "beside.yaml", made))
    assert found.see is not None and found.see.names.folder == ground / "clip"
    assert found.see.names.concepts == ground / "concepts.txt" and found.data.attributes == ground / "attributes.csv"
    assert found.see.names.by == "clip" and found.data.content() == {**found.data.content()}
    assert "attributes" not in found.data.content()


def test_another_look_hangs_on_what_names_are_made_from_and_on_nothing_else(ground: Path, tmp_path: Path) -> None:
    def of(**see: Any) -> Any:
        return inputs.of_recipe(Recipe.model_validate(content(ground, tmp_path, **see)))

    without = of(parts=["exemplars"])
    assert without == of(parts=["exemplars"], names={"tokens": "auto"}, simulator={"images": 9})
    assert not {"names", "simulator", "files"} & without.keys()
    words = tmp_path / "words.txt"
    words.write_text("boot\n")
    clip = {"by": "clip", "folder": str(ground / "clip"), "concepts": str(words)}
    before = of(names=clip)
    words.write_text("bag\n")
    assert of(names=clip) != before
    server = {"by": "server", "url": "http://127.0.0.1:1/v1", "model": "m"}
    assert of(names=server) == of(names=server | {"url": "http://127.0.0.1:2/v1", "max_calls": 7, "timeout": 1.0})
    assert of(names=server) != of(names=server | {"model": "n"})
