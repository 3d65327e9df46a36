"""Fixed parts: the same bits in one pass or in pieces, whatever memory is free and wherever it runs out."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import make_images, make_tiny_vit
from small import image_folder, mend, model_folder, plan_for, recipe_dict, rows_of, write_recipe
from torch import nn

from vitprune.core import memory, progress
from vitprune.core.errors import UserError
from vitprune.criteria.attribution.settings import Gates
from vitprune.criteria.catalog import CRITERIA, how_of
from vitprune.criteria.weights.settings import Slim
from vitprune.criteria.weights.vit_slim import train
from vitprune.exam.logits import predictor
from vitprune.images import decode
from vitprune.model import families
from vitprune.model.inside import pieces
from vitprune.pruning import surgery
from vitprune.pruning.repair import distill, layerwise, streams, walk
from vitprune.recipe import recipe
from vitprune.runs import pipeline
from vitprune.runs.state.run import Run

FULL = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"
ERRORS = [RuntimeError(FULL), torch.OutOfMemoryError("CUDA out of memory"), MemoryError()]
PER_IMAGE = [name for name, row in CRITERIA.items() if row.score]
WAYS: list[dict[str, Any]] = [{}, {"tokens": "all"}, {"tokens": "patches", "formula": "joint-ig"}]
WAYS += [{"candidates": "each", "shortlist": 3}, {"precision": "bfloat16"}]


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def in_pieces(model: nn.Module, name: str, fits: int | None, **how: Any) -> list[torch.Tensor]:
    """One criterion's scores of eleven images."""
    sites, images, row = families.ffn_sites(model), make_images(11, dtype=torch.float32), CRITERIA[name]
    labels, settings = torch.arange(11) % 5, how_of(name, nodes=3, **how)
    assert row.score is not None

    def work(rows: slice) -> list[torch.Tensor]:
        return row.score(model, sites, images[rows], labels[rows], ts=[2], how=settings)[2]

    return [torch.cat(blocks) for blocks in zip(*pieces.taken(11, work, "none", fits), strict=True)]


# ---- a pass in pieces


@pytest.mark.parametrize("name", PER_IMAGE)
def test_scores_in_pieces_are_those_of_the_part_to_the_bit(name: str) -> None:
    model = make_tiny_vit(dtype=torch.float32, depth=2, reg_tokens=1, init_values=0.2)
    for how in WAYS if name == "jas" else [{}]:
        whole = in_pieces(model, name, None, **how)
        assert all(same(in_pieces(model, name, fits, **how), whole) for fits in (5, 1)), how


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("swin_tiny_patch4_window7_224", {"embed_dim": 8, "depths": (1, 1), "num_heads": (2, 2), "window_size": 4}),
        ("eva02_tiny_patch14_224", {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 8}),
        ("vit_base_patch16_siglip_224", {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 8}),
    ],
)
def test_other_families_too(name: str, changed: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, img_size=32, num_classes=5, **changed).eval().requires_grad_(False)
    images = torch.randn(9, 3, 32, 32)
    sites, how = families.ffn_sites(model), Gates(low=1.0, labels="sampled")

    def work(rows: slice) -> list[torch.Tensor]:
        return CRITERIA["joint-gates"].score(model, sites, images[rows], torch.zeros(9)[rows].long(), ts=[1], how=how)[
            1
        ]  # type: ignore[misc]

    whole, few = ([torch.cat(b) for b in zip(*pieces.taken(9, work, "", fits), strict=True)] for fits in (None, 2))
    assert same(whole, few)
    logits = predictor(model)(images)
    cut = pieces.joined(lambda x: model(x), images, advice="", fits=2)
    assert torch.equal(logits, cut)


def test_a_piece_holds_less_for_the_way_back() -> None:
    """What is saved for the gradient grows with the piece, not with the part."""
    model = make_tiny_vit(dtype=torch.float32)
    images, held = make_images(40, dtype=torch.float32), []

    def work(rows: slice) -> int:
        kept: dict[int, int] = {}

        def pack(x: torch.Tensor) -> torch.Tensor:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            model(images[rows].requires_grad_()).sum()
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        return sum(size for place, size in kept.items() if place not in weights)

    held = [pieces.taken(40, work, "", fits)[0] for fits in (None, 4)]
    assert held[1] < 0.25 * held[0]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_a_part_is_halved_until_it_fits_or_refused_with_the_figure(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def work(rows: slice, most: int) -> list[int]:
        if rows.stop - rows.start > most:
            raise error
        seen.append(rows.stop - rows.start)
        return list(range(10))[rows]

    assert pieces.taken(10, lambda rows: work(rows, 3), "x") == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert seen == [3, 3, 3, 1]
    monkeypatch.setattr(memory, "free", lambda _: 12_000_000)
    with pytest.raises(UserError, match=r"repair: not enough memory for a single image; .* \(12 MB are free\)$"):
        pieces.taken(10, lambda rows: work(rows, 0), walk.ADVICE)
    with pytest.raises(RuntimeError, match="shapes"):
        pieces.taken(10, lambda rows: (_ for _ in ()).throw(RuntimeError("shapes")), "x")


# ---- sums over a part


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Room for so many images in a layer's input, whoever calls it; what was taken."""

    def limit(most: int) -> list[int]:
        real, seen = nn.Linear.forward, []

        @functools.wraps(real)
        def forward(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
            if len(x) > most:
                raise RuntimeError(FULL)
            seen.append(len(x))
            return real(self, x)

        monkeypatch.setattr(nn.Linear, "forward", forward)
        return seen

    return limit


@pytest.mark.parametrize("name", ["fisher-obs", "obs", "variance"])
@pytest.mark.parametrize("shape", [{}, {"global_pool": "avg"}], ids=str)
def test_statistics_in_pieces(name: str, shape: dict[str, Any], tight: Callable[[int], list[int]]) -> None:
    model, images = make_tiny_vit(dtype=torch.float32, **shape), make_images(21, dtype=torch.float32)
    sites, row = families.ffn_sites(model), CRITERIA[name]
    labels = torch.arange(21) % 5
    assert row.whole is not None

    def scores() -> list[torch.Tensor]:
        found = row.whole(model, sites, lambda: zip(images.split(13), labels.split(13), strict=True), how=how_of(name))  # type: ignore[misc]
        return rows_of(found)

    whole = scores()
    seen = tight(3)
    assert same(scores(), whole) and 1 <= max(seen) <= 3


@pytest.mark.parametrize("how", ["affine", "sequential", "layerwise"])
def test_a_repair_in_pieces(how: Any, tight: Callable[[int], list[int]], tmp_path: Path) -> None:
    model, images = make_tiny_vit(dtype=torch.float32), make_images(21, dtype=torch.float32)
    mask = plan_for(model, [torch.arange(site.size) % 3 == 0 for site in families.ffn_sites(model)])

    def repaired(kept: streams.DenseStreams | None = None) -> list[torch.Tensor]:
        slim = surgery.slim(model, mask)
        mend(slim, model, mask, how, lambda: images.split(13), streams=kept, scratch=tmp_path)
        return list(slim.state_dict().values())

    whole = repaired()
    seen = tight(2)
    assert same(repaired(), whole) and same(repaired(streams.DenseStreams()), whole) and max(seen) == 2


def test_training_takes_steps_of_fixed_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step's gradient is a sum over parts; the memory that is free says nothing, too little is an error that is told."""
    model, images = make_tiny_vit(dtype=torch.float32), make_images(12, dtype=torch.float32)
    sites, labels = families.ffn_sites(model), torch.arange(12) % 5
    mask = plan_for(model, [torch.arange(site.size) % 2 == 0 for site in sites])

    def trained() -> list[torch.Tensor]:
        slim = surgery.slim(model, mask)
        distill.distill(slim, model, lambda: images.split(6), epochs=1)
        gates, _ = train(model, sites, lambda: zip(images.split(6), labels.split(6), strict=True), how=Slim())
        return [*slim.state_dict().values(), *gates]

    whole = trained()
    monkeypatch.setattr(memory, "free", lambda _: 0)
    assert same(trained(), whole)
    monkeypatch.setattr(pieces, "ROWS", {"cpu": 4, "other": 4})
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(trained(), whole, strict=True))


# ---- whole runs of what a recipe that asks for nothing gets

ASKED = {"criterion": {"name": "fisher-obs", "probe_per_class": 8}, "recovery": "auto", "allocation": "auto"}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("places")
    return model_folder(root / "m"), image_folder(root / "i", 10)


def run(places: tuple[Path, Path], out: Path, verb: str = "evaluate", **changed: Any) -> dict[str, bytes]:
    """The files that the machine may not be seen in: weights, masks, and the figures of the exam."""
    content = recipe_dict(*places, out, **(ASKED | {"baselines": ["activation", "random"]} | changed))
    pipeline.run(recipe.Recipe.model_validate(content), verb, device="cpu")
    found = {
        p.relative_to(out).as_posix(): p.read_bytes()
        for p in sorted(out.rglob("*.safetensors"))
        if "parts" not in p.parts
    }
    rows = json.loads((out / "tiny/stages/evaluate/rows.json").read_text())["rows"]
    return found | {"rows": json.dumps(rows).encode()}


@pytest.fixture(scope="module")
def roomy(places: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """Of each kind of run, with all the memory there is."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("roomy")
    return {
        name: run(places, root / name, **changed)
        for name, changed in (("default", {}), ("jas", JAS), ("rounds", ROUNDS))
    }


JAS: dict[str, Any] = {"criterion": {"name": "jas", "t": 3, "nodes": 2, "probe_per_class": 4}, "recovery": "affine"}
ROUNDS: dict[str, Any] = {"rounds": 2, "classes": ["circle", "cross"]}


@pytest.mark.parametrize(("name", "changed"), [("default", {}), ("jas", JAS), ("rounds", ROUNDS)])
@pytest.mark.parametrize("free", [0, 500_000, 1 << 44])
@pytest.mark.sample(4)
def test_free_memory_leaves_no_trace(
    places: tuple[Path, Path],
    roomy: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    changed: Any,
    free: int,
) -> None:
    monkeypatch.setattr(memory, "free", lambda _: free)
    assert run(places, tmp_path / "out", **changed) == roomy[name]


@pytest.mark.parametrize(("name", "changed"), [("default", {}), ("jas", JAS)])
@pytest.mark.sample(1)
def test_a_lack_of_memory_anywhere_leaves_no_trace_or_is_one_line(
    places: tuple[Path, Path], roomy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, changed: Any
) -> None:
    """A layer fails once, here and there in the run: the same files, or one line that the same command goes on from."""
    real, count = nn.Linear.forward, [0, 0]

    @functools.wraps(real)
    def forward(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        count[0] += 1
        if count[0] == count[1]:
            raise RuntimeError(FULL)
        return real(self, x)

    monkeypatch.setattr(nn.Linear, "forward", forward)
    run(places, tmp_path / "whole", **changed)
    calls, halved = count[0], 0
    for n, at in enumerate(np.linspace(1, calls, 12).round().astype(int).tolist()):
        count[:] = 0, at
        refused = ""
        try:
            found = run(places, tmp_path / f"{n}", **changed)
        except UserError as error:
            refused, count[1] = str(error), 0
            found = run(places, tmp_path / f"{n}", **changed)
        assert found == roomy[name], at
        assert not refused or "not enough memory" in refused
        halved += not refused
    assert halved >= 4  # of the rest many are what is not cut: counts of multiply-adds, the check of 16 images


@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize(
    "where",
    [
        "pruning.surgery.slim",
        "model.load.saving.save",
        "runs.stages.exams.examples.write",
        "core.least_squares.SecondMoments.solve",
    ],
)
def test_what_cannot_be_taken_in_pieces_is_one_line(
    places: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(f"vitprune.{where}", never)
    with pytest.raises(UserError, match=r"(prune|evaluate): not enough memory \([\d,]+ MB are free\); free some"):
        run(places, tmp_path / "out")


def test_the_command_says_it_in_one_line(
    places: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vitprune.cli import app

    path = write_recipe(tmp_path / "r.yaml", recipe_dict(*places, tmp_path / "out"))
    monkeypatch.setattr(pipeline, "advance", lambda *_: (_ for _ in ()).throw(MemoryError()))
    monkeypatch.setattr(sys, "argv", ["vitprune", "run", str(path)])
    with pytest.raises(SystemExit) as caught:
        app.main()
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("vitprune: run: not enough memory (")


def test_no_memory_is_no_damaged_image() -> None:
    """It would be left out and counted, and the result would hang on the machine."""

    def none() -> Any:
        raise MemoryError

    with pytest.raises(MemoryError):
        decode._named(none, "a.png", "mend it")


@pytest.mark.parametrize("stage", pipeline.STAGES, ids=lambda stage: stage.name)
def test_a_devices_number_leaves_the_digests_and_the_parts_are_in_them(
    places: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: pipeline.Stage
) -> None:
    made = recipe.Recipe.model_validate(recipe_dict(*places, tmp_path / "out"))
    earlier = {s.name: s.name for s in pipeline.STAGES}

    def digest(device: str) -> str:
        run = Run.join(made, "cpu", progress.Reporter(quiet=True))
        _ = run.model_digest, run.data_digest
        run.device = torch.device(device)
        return pipeline.stage_digest(stage, run, earlier)

    first = digest("cuda:0")
    assert first == digest("cuda:1") == digest("cuda") != digest("cpu")
    for rule in ("ROWS", "BYTES"):
        with monkeypatch.context() as patch:
            patch.setitem(getattr(pieces, rule), "cpu", 7)
            assert digest("cuda:0") != first


# ---- what a repair that is killed leaves

KILLED = """
import os, signal, sys
from vitprune.pruning.repair import layerwise, streams as store
from vitprune.recipe import parse
from vitprune.runs import pipeline
store.IN_MEMORY = store.KEPT_IN_MEMORY = 0
real, calls, made, init = layerwise.fit, [], [], store.Streams.__init__
def streams(self, *given, **more):
    init(self, *given, **more)
    made.append(self)
store.Streams.__init__ = streams
def fit(*given):
    calls.append(1)
    if len(calls) == 3:
        for one in made:  # those of this repair, and those that are kept for the next
            print(os.fstat(one._file.fileno()).st_size, os.readlink(f"/proc/self/fd/{one._file.fileno()}"), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*given)
layerwise.fit = fit
pipeline.run(parse.load(sys.argv[1]), "prune", device="cpu")
"""


def test_a_killed_repair_leaves_nothing(places: tuple[Path, Path], tmp_path: Path) -> None:
    """The streams lie in a file of the run's folder that has no name: neither there nor among temporary files is it left."""
    path = write_recipe(tmp_path / "r.yaml", recipe_dict(*places, tmp_path / "out", **ASKED, baselines=[]))
    (tmp_path / "tmp").mkdir()
    env = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path / "tmp")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, str(path)], env=env, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    found = [line.partition(" ") for line in done.stdout.strip().splitlines()]
    assert len(found) == 2
    for size, _, place in found:
        assert int(size) > 10_000 and str(tmp_path / "out") in place and "(deleted)" in place
    assert not list((tmp_path / "tmp").iterdir())
    left = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert {p.name for p in left if p.name.startswith("tmp") or p.suffix in (".npy", ".tmp")} == set()


@pytest.mark.parametrize("room", [0, 40_000])
def test_streams_in_a_file_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    model, images = make_tiny_vit(dtype=torch.float32), make_images(11, dtype=torch.float32)
    mask, made = plan_for(model, [torch.arange(site.size) % 3 == 0 for site in families.ffn_sites(model)]), []
    for limit in (1 << 31, room):
        monkeypatch.setattr(streams, "IN_MEMORY", limit)
        slim = surgery.slim(model, mask)
        layerwise.repair(slim, model, images.split(4), attention=True, scratch=tmp_path)
        made.append(slim.state_dict().values())
    assert same(*made) and not list(tmp_path.iterdir())


def test_a_full_disk_under_the_streams_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(streams.Streams, "_write", full)
    monkeypatch.setattr(streams, "IN_MEMORY", 0)
    with pytest.raises(UserError, match="the disk is full"):
        streams.Streams(tmp_path).put("x", 0, torch.zeros(3))
