"""`see` as a whole: what it leaves, the same whoever computes it, nothing without the section, bad input in one line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from elsewhere import Elsewhere
from safetensors.numpy import load_file
from safetensors.torch import save_file
from small import (
    contents,
    image_folder,
    leftovers,
    model_folder,
    picture,
    quicken,
    recipe_dict,
    tiny_model,
    write_recipe,
)

from vitprune.cli import app
from vitprune.cli import seeing as cli
from vitprune.core.errors import UserError
from vitprune.core.progress import Reporter
from vitprune.model.inside import hooks
from vitprune.recipe.recipe import Recipe
from vitprune.recipe.seeing import PARTS
from vitprune.runs import pipeline
from vitprune.runs.record import record
from vitprune.runs.seeing import passes, table
from vitprune.runs.state import run as run_module
from vitprune.runs.state.run import Run

FILES = {"see.json", "units.csv", "exemplars.safetensors", "alignment.safetensors", "atlas.html"}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and images; two probe images of one class have the same pixels."""
    root = tmp_path_factory.mktemp("ground")
    model_folder(root / "model")
    image_folder(root / "images")
    picture(0, 3).save(root / "images" / "circle" / "04.png")
    return root


def content(ground: Path, out: Path, **changed: Any) -> dict[str, Any]:
    made = {"criterion": {"name": "activation", "t": 3, "probe_per_class": 4}, "baselines": [], "see": {}}
    return recipe_dict(ground / "model", ground / "images", out) | made | changed


def done(made: dict[str, Any], **how: Any) -> dict[str, Any]:
    return pipeline.run(Recipe.model_validate(made), "run", device="cpu", **how)


@pytest.fixture(scope="module")
def seen(ground: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run that looked at its units."""
    out = tmp_path_factory.mktemp("seen")
    done(content(ground, out))
    return out / "tiny"


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "see" / "units.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def open_run(ground: Path, out: Path) -> Run:
    return Run.join(Recipe.model_validate(content(ground, out)), "cpu", Reporter(quiet=True))


def test_every_part_has_a_row_and_every_row_a_word() -> None:
    assert tuple(table.TABLE) == PARTS
    assert all(set(part.after) <= set(PARTS) for part in table.TABLE.values())


def test_what_it_leaves(seen: Path) -> None:
    assert {path.name for path in (seen / "see").iterdir() if path.is_file()} == FILES
    told = json.loads((seen / "see" / "see.json").read_text())
    assert (
        told["parts"] == ["exemplars", "alignment", "drift"] and told["left_out"] == {} and told["widths"] == [64, 64]
    )
    table = rows(seen)
    assert len(table) == 128 and [r["unit"] for r in table[62:66]] == ["62", "63", "0", "1"]
    masks = load_file(seen / "masks.safetensors")
    for block in (0, 1):
        mine = [r for r in table if r["block"] == str(block)]
        assert [r["kept"] == "yes" for r in mine] == masks[f"keep.blocks.{block}.mlp"].tolist()
        assert [int(r["slim"]) for r in mine if r["slim"]] == list(range(told["kept"][""][block]))
    for side, units in told["shown"][""].items():
        assert len(units) == 12 and {card["kept"] for card in units} == {"yes" if side == "kept" else "no"}
    blocks = [sorted(card["block"] for card in told["shown"][""][side]) for side in ("removed", "kept")]
    assert blocks[0] == blocks[1]
    strips = [card["strip"] for cards in told["shown"][""].values() for card in cards]
    assert all((seen / strip).stat().st_size < 100_000 for strip in strips)
    assert leftovers(seen) == []


def test_the_report_asks_what_was_removed_before_what_was_kept(seen: Path) -> None:
    page, text = (seen / "report.html").read_text(), (seen / "report.md").read_text()
    assert page.index("> What was removed?</h2>") < page.index("> What was kept?</h2>")
    assert text.index(". What was removed?") < text.index(". What was kept?")
    assert "64 of 128 hidden units were removed" in page and page.count("data:image/png") >= 24
    assert len(page) < 3_000_000
    found = json.loads((seen / "report.json").read_text())
    assert found["see"] == json.loads((seen / "see" / "see.json").read_text())
    assert [stage["name"] for stage in found["stages"]][-1] == "see"


def test_only_probe_images_and_no_picture_twice(ground: Path, seen: Path) -> None:
    run = open_run(ground, seen.parent)
    lists = load_file(seen / "see" / "exemplars.safetensors")
    for name, images in lists.items():
        if ".images." in name:
            used = set(images.ravel().tolist()) - {-1}
            assert used <= set(run.split.probe.tolist()) and not used & set(run.split.test.tolist())
    twins = [i for i in run.split.probe.tolist() if run.source.names[i] in ("circle/03.png", "circle/04.png")]
    shown = set(np.concatenate([lists[f"{kind}.images.0"].ravel() for kind in ("top", "random")]).tolist())
    assert len(twins) != 2 or len(shown & set(twins)) <= 1


def test_exemplars_are_those_of_sorting_every_activation(ground: Path, seen: Path) -> None:
    run = open_run(ground, seen.parent)
    told = json.loads((seen / "see" / "see.json").read_text())
    lists = load_file(seen / "see" / "exemplars.safetensors")
    kept = [run.contents[i] for i in run.split.probe.tolist()]
    index = np.array([i for n, i in enumerate(run.split.probe.tolist()) if run.contents[i] not in kept[:n]])
    assert told["images"]["n"] == len(index)
    hidden: dict[int, np.ndarray] = {}
    with torch.no_grad(), hooks.hidden_units(run.loaded.model, run.sites, lambda i, h: hidden.update({i: h.numpy()})):
        run.loaded.model(next(run.images.batches(index, len(index)))[0])
    for block in (0, 1):
        pooled = hidden[block][:, 1:].max(1)
        for unit in range(64):
            order = sorted(range(len(index)), key=lambda i: -pooled[i, unit])[:15]
            np.testing.assert_allclose(lists[f"top.values.{block}"][unit], pooled[order, unit], rtol=1e-4, atol=1e-5)
            gaps = -np.diff(np.sort(pooled[:, unit])[::-1][:16])
            if gaps.min() > 1e-4:
                assert lists[f"top.images.{block}"][unit].tolist() == index[order].tolist()


def test_the_same_bytes_whoever_computes_the_parts(
    ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicken(monkeypatch)
    monkeypatch.setattr(passes, "SHARD", 6)
    monkeypatch.setattr(passes, "BATCH", 3)
    done(content(ground, tmp_path))
    before = contents(tmp_path / "tiny" / "see")
    (tmp_path / "tiny" / "stages" / "see" / "stage.json").unlink()
    monkeypatch.setattr(run_module.Run, "executor", property(lambda _: Elsewhere()))
    made = done(content(ground, tmp_path))
    assert [stage["name"] for stage in made["stages"] if not stage["skipped"]] == ["see"]
    assert contents(tmp_path / "tiny" / "see") == before


@pytest.mark.slow
def test_two_workers_leave_the_same_bytes(ground: Path, seen: Path, tmp_path: Path) -> None:
    done(content(ground, tmp_path), workers=2)
    assert contents(tmp_path / "tiny" / "see") == contents(seen / "see")


def test_without_the_section_nothing_is_looked_at(ground: Path, tmp_path: Path) -> None:
    plain = content(ground, tmp_path)
    del plain["see"]
    made = done(plain)
    folder = tmp_path / "tiny"
    assert not (folder / "see").exists() and not (folder / "stages" / "see").exists()
    assert "see" not in made and "What was removed?" not in (folder / "report.html").read_text()
    assert "see:" not in (folder / "recipe.yaml").read_text()


def test_another_look_does_nothing_else_again_and_a_stopped_one_goes_on(
    ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicken(monkeypatch)

    def redone(**see: Any) -> list[str]:
        made = done(content(ground, tmp_path, see=see))
        return [stage["name"] for stage in made["stages"] if not stage["skipped"]]

    assert redone()[-1] == "see" and redone() == []
    assert redone(images={"per_class": 4}) == ["see"]
    row = table.TABLE["drift"]

    def stop(_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(table.TABLE, "drift", table.SeePart(stop, row.why_not, row.after))
        with pytest.raises(KeyboardInterrupt):
            redone(images={"per_class": 5})
    parts = sorted((tmp_path / "tiny" / "stages" / "see" / "parts" / "units").iterdir())
    before = [path.stat().st_mtime_ns for path in parts]
    assert parts
    with monkeypatch.context() as patch:
        patch.setitem(table.TABLE, "drift", table.SeePart(lambda looking: _same(parts, before), row.why_not, row.after))
        assert redone(images={"per_class": 5}) == ["see"]


def _same(parts: list[Path], before: list[int]) -> None:
    assert [path.stat().st_mtime_ns for path in parts] == before, "the pass was made again"


def test_where_all_is_kept_nothing_drifts_and_no_evidence_goes(
    ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head is put onto the last block's units, so that it carries classes."""
    quicken(monkeypatch)
    model = tiny_model(1)
    with torch.no_grad():
        model.head.weight.copy_(model.blocks[1].mlp.fc2.weight[:, :3].T)
    save_file(model.state_dict(), model_folder(tmp_path / "model") / "model.safetensors", {"format": "pt"})
    own = {"name": f"local-dir:{tmp_path / 'model'}"}
    for keep in (1.0, 0.5):
        made = done(content(ground, tmp_path / "out", keep=keep, recovery="none", model=own))["see"]
        evidence, drift = made["alignment"]["evidence"][""], made["drift"][""]
        assert evidence["blocks"] == [1] and len(evidence["classes"]) == 3
        assert drift["cos"]["least"] == 1.0 and drift["other_class"]["units"] == []
        if keep == 1.0:
            assert evidence["share"] == 0 and all(row["share"] == 0 for row in evidence["classes"])
            assert drift["corr"]["least"] == 1.0 and drift["twins"] is None and made["shown"][""]["removed"] == []
        else:
            assert evidence["share"] != 0 and drift["corr"]["least"] < 1 and drift["twins"]["n"] == 64


# ---- units whose function is known


def planted(path: Path) -> None:
    """A model whose first FFN has unit 0 = brightness of any patch, unit 1 = of patch 6 alone, unit 2 = nothing. Channel 0 of
    the stream is a patch's mean, 2 and 3 are large, so that the norm hardly moves it, 4 says which patch it is."""
    model = tiny_model(1)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for name in ("patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed", "cls_token"):
        state[name].zero_()
    for name in ("attn.proj.weight", "attn.proj.bias", "mlp.fc1.weight", "mlp.fc1.bias"):
        state[f"blocks.0.{name}"].zero_()
    state["patch_embed.proj.weight"][0] = 1 / 49
    state["patch_embed.proj.bias"][2], state["patch_embed.proj.bias"][3] = 40.0, -40.0
    state["pos_embed"][0, 1 + 6, 4] = 20.0
    state["blocks.0.norm2.weight"].fill_(1.0)
    state["blocks.0.norm2.bias"].zero_()
    fc1 = state["blocks.0.mlp.fc1.weight"]
    fc1[0, 0] = fc1[1, 0] = 10.0
    fc1[0, 4], fc1[1, 4] = 0.0, 40.0
    state["blocks.0.mlp.fc1.bias"][0], state["blocks.0.mlp.fc1.bias"][1] = 20.0, -20.0
    state["blocks.0.mlp.fc2.weight"][:, 2] = 0.0
    save_file(state, path / "model.safetensors", {"format": "pt"})


def test_units_whose_function_is_known_are_told_as_they_are(
    ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicken(monkeypatch)
    model_folder(tmp_path / "model")
    planted(tmp_path / "model")
    own = {"name": f"local-dir:{tmp_path / 'model'}"}
    made = content(ground, tmp_path / "out", model=own, see={"exemplars": {"k": 6}})
    done(made)
    run = Run.join(Recipe.model_validate(made), "cpu", Reporter(quiet=True))
    lists = load_file(tmp_path / "out" / "tiny" / "see" / "exemplars.safetensors")
    unique = {run.contents[i]: i for i in reversed(run.split.probe.tolist())}
    index = sorted(unique.values())
    means = {i: run.images.tensor(i).reshape(4, 7, 4, 7).mean((1, 3)).flatten() for i in index}
    others = [p for p in range(16) if p != 6]
    any_patch = sorted(index, key=lambda i: -float(means[i][others].max()))[:6]
    brightest = [1 + others[int(means[i][others].argmax())] for i in any_patch]
    assert lists["top.images.0"][1].tolist() == sorted(index, key=lambda i: -float(means[i][6]))[:6]
    assert set(lists["top.tokens.0"][1].tolist()) == {1 + 6}
    alone = [i for i in lists["top.images.0"][0].tolist() if i in any_patch]
    assert alone == any_patch and lists["top.tokens.0"][0].tolist() == brightest
    unit = rows(tmp_path / "out" / "tiny")[2]
    assert unit["dead"] == "yes" and unit["fires"] == "no"


# ---- the command


def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    monkeypatch.setattr("sys.argv", ["vitprune", *words])
    with pytest.raises(SystemExit) as end:
        app.main()
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 2, lines
    return lines[-1]


def test_a_card_in_the_terminal(
    seen: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "write_report", lambda *_: [])  # it stays as it was
    monkeypatch.setattr("sys.argv", ["vitprune", "see", str(seen), "--unit", "1:17", "--class", "circle"])
    app.app(standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("unit 1:17 of blocks.1.mlp: ") and len(lines) >= 6
    assert any(line.endswith("see/atlas.html#1:17") for line in lines)
    words = [line.split()[0] for line in lines[1:4]]
    assert words == ["writes", "fires", "fires"] and "no class evidence in this block" in lines[1]
    assert any("no block carries class evidence" in line for line in lines)
    monkeypatch.setattr("sys.argv", ["vitprune", "see", str(seen), "--unit", "1:17", "--json"])
    app.app(standalone_mode=False)
    made = json.loads(capsys.readouterr().out)
    assert made["units"][0]["unit"] == "17" and made["see"]["parts"] == ["exemplars", "alignment", "drift"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--unit", "6:0"], "see: unit 6:0: the model has blocks 0–1"),
        (["--unit", "1:64"], "see: unit 1:64: block 1 has units 0–63"),
        (["--unit", "five"], "--unit five: a unit is BLOCK:UNIT"),
        (["--class", "moon"], "--class moon: no class of this run; there are square, circle, cross"),
        (["--parts", "maps2"], "--parts maps2: is no part; there are exemplars, alignment, drift"),
        (["--parts", "drift,drift"], "see.parts: names one of its parts twice"),
        (["--out", "elsewhere"], "--out: a run stays in its folder"),
    ],
)
def test_bad_words_are_one_line(
    seen: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    assert said in refused(capsys, monkeypatch, "see", str(seen), *words)


def test_a_folder_that_is_no_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "has no recipe.yaml" in refused(capsys, monkeypatch, "see", str(tmp_path))


def test_the_flags_go_before_the_recipe(
    ground: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quicken(monkeypatch)
    recipe = write_recipe(tmp_path / "r.yaml", content(ground, tmp_path / "out", see={"images": {"per_class": 3}}))
    command = ["vitprune", "see", str(recipe), "--parts", "exemplars", "--kept", "2", "--removed", "3"]
    monkeypatch.setattr("sys.argv", command)
    app.app(standalone_mode=False)
    told = json.loads((tmp_path / "out" / "tiny" / "see" / "see.json").read_text())
    assert told["parts"] == ["exemplars"] and told["images"]["n"] == 9
    assert {side: len(units) for side, units in told["shown"][""].items()} == {"removed": 3, "kept": 2}
    assert not (tmp_path / "out" / "tiny" / "see" / "alignment.safetensors").exists()
    assert "9 probe images (exemplars)" in capsys.readouterr().out.splitlines()[0]


def test_a_part_that_the_model_does_not_allow(ground: Path) -> None:
    """Left out where the list was ours, refused where it was asked for, with the parts that work."""
    model = tiny_model(1)
    model.head = torch.nn.Sequential(torch.nn.Linear(16, 3))
    of = Recipe.model_validate(content(ground, Path("out"))).see
    assert of is not None
    parts, left_out = table.chosen(of, model)
    assert parts == ["exemplars", "drift"] and "needs a linear head" in left_out["alignment"]
    asked = Recipe.model_validate(content(ground, Path("out"), see={"parts": ["alignment"]})).see
    assert asked is not None
    with pytest.raises(
        UserError, match=r"see.parts: alignment: needs a linear head.*parts that work here: exemplars, drift"
    ):
        table.chosen(asked, model)


def test_names_are_only_ever_text(ground: Path, tmp_path: Path) -> None:
    """Class names that are markup, a formula or JSON's end neither leave their place in the pages nor in the table."""
    names = ["</script><b>x", "=1+1", "\u2028\u202ename"]
    model_folder(tmp_path / "model", labels=tuple(names))
    made = content(ground, tmp_path / "out", model={"name": f"local-dir:{tmp_path / 'model'}"})
    made["data"]["labels"] = "by-order"
    done(made)
    folder = tmp_path / "out" / "tiny"
    atlas = (folder / "see" / "atlas.html").read_text()
    assert atlas.count("</script>") == 2 and "<b>x" not in atlas and "\u202e" not in atlas
    assert "<b>x" not in (folder / "report.html").read_text()
    assert all(not cell.startswith("=") for row in rows(folder) for cell in row.values())


def test_where_a_look_goes_is_said_once(
    seen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is opened by who waits for the first line, and not once more where the run says it."""
    (tmp_path / "tiny").mkdir()
    lines = (seen / "recipe.yaml").read_text().splitlines()
    moved = ["out: exported" if line.startswith("out:") else line for line in lines]
    (tmp_path / "tiny" / "recipe.yaml").write_text("\n".join(moved))
    monkeypatch.chdir(tmp_path)
    given: Any = SimpleNamespace(recipe="tiny", out=None)
    terminal: Any = SimpleNamespace(quiet=False, log=None)
    recipe, reporter = cli._recipe(given, terminal)
    reporter._last = float("-inf")
    reporter.beat()
    run = Run.join(recipe, "cpu", reporter)
    reporter.say(f"{recipe.name}, into {run.folder.root}; a few batches are timed")
    assert capsys.readouterr().err.count("a few batches are timed") == 1
