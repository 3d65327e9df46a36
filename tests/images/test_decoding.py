"""Decoding processes: the same pixels in the same order, bad images named, nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from odd_sources import Deadly, Printing
from PIL import Image
from small import image_folder, model_folder, recipe_dict, write_recipe

from vitprune.core.errors import UserError
from vitprune.images import batches, decode_pool
from vitprune.images.batches import Images
from vitprune.images.decode import as_mode
from vitprune.images.decode_pool import Job, Processes, check, content
from vitprune.images.preprocess import Preprocessing
from vitprune.images.sources.bundled import Bundled
from vitprune.images.sources.folder import Folder
from vitprune.model.load import opening
from vitprune.recipe import inputs, recipe

TRANSFORM = Preprocessing(1, (28, 28), "bilinear", 0.875, "center", (0.4,), (0.2,))


@pytest.fixture
def found_by_children(monkeypatch: pytest.MonkeyPatch) -> None:
    tests = Path(__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, [tests / "helpers", tests.parent])))


def processes(source: Folder, count: int = 2) -> Iterator[Processes]:
    made = Processes(Job(source, TRANSFORM, "L"), count)
    yield made
    made.close()


def children(of: int | None = None) -> list[psutil.Process]:
    """The decoding processes that a process (this one) has."""
    found = []
    for process in psutil.Process(of).children():
        with contextlib.suppress(psutil.Error):
            found += [process] if "vitprune.images.decode_pool" in process.cmdline() else []
    return found


def gone(pids: list[int], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def test_processes_give_the_same_batches_as_threads(tmp_path: Path) -> None:
    model_folder(tmp_path / "model")
    loaded = opening.open_model(inputs.Model(name=f"local-dir:{tmp_path / 'model'}"))
    source = Folder(image_folder(tmp_path / "images", 5))
    made = Processes(Job(source, Preprocessing.of(loaded.data_config), "L"), 2)
    plain, far = (Images(source, loaded.transform(), 1, np.arange(3), p) for p in (None, made))
    order = np.array([14, 2, 9, 0, 9, 5, 13])
    for size in (2, 3, 7):  # the first from the files, the others partly from the cache
        pairs = list(zip(plain.batches(order, size), far.batches(order, size), strict=True))
        assert all(torch.equal(a, b) and torch.equal(x, y) for (a, x), (b, y) in pairs)
    next(far.batches(np.arange(15), 4))  # a loop that is left early holds nothing up
    assert torch.equal(next(far.batches(order, 7))[0], next(plain.batches(order, 7))[0])
    pids = [p.pid for p in children()]
    assert 1 <= len(pids) <= 2
    made.close()
    assert gone(pids, 1) and not children()
    made.close()


def test_a_set_too_large_for_the_cache_comes_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "CACHE_BYTES", 1000)
    source = Folder(image_folder(tmp_path, 4))
    for made in processes(source):
        far = Images(source, lambda image: torch.from_numpy(TRANSFORM(image)), 1, np.arange(3), made)
        found = torch.cat([x for x, _ in far.batches(np.arange(12), 5)])
        assert torch.equal(found, torch.stack([far.tensor(i) for i in range(12)])) and far._cache is None


def test_bad_images_are_found_by_processes_as_by_threads(tmp_path: Path) -> None:
    root = image_folder(tmp_path, 4)
    (root / "circle" / "02.png").write_bytes(b"no image")
    (root / "square" / "00.png").write_bytes((root / "square" / "00.png").read_bytes()[:80])
    source = Folder(root)
    for made in processes(source):
        near, far = (check(source, processes=p, contents=True) for p in (None, made))
        assert near == far and [i for i, _ in far.bad] == [2, 8] and len(far.contents) == 10
        assert str(root / "circle" / "02.png") in far.bad[0][1]


@pytest.mark.usefixtures("found_by_children")
def test_an_image_that_kills_its_process_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    source = Deadly(image_folder(tmp_path, 3))
    for made in processes(source):
        [(place, said)] = check(source, processes=made).bad
        assert source.names[place] == "cross/01.png"
        assert said.startswith("cross/01.png: 2 processes that read it died") and "data.workers" in said


@pytest.mark.usefixtures("found_by_children")
def test_what_a_library_prints_does_not_mix_with_the_answers(tmp_path: Path) -> None:
    for made in processes(Printing(image_folder(tmp_path, 2)), 1):
        assert made.pixels(0).result().shape == (1, 28, 28)
        with pytest.raises(RuntimeError, match=r"cross/01\.png: ZeroDivisionError: unforeseen"):
            made.pixels(3).result()
        assert made.pixels(4).result().shape == (1, 28, 28)


def test_processes_that_cannot_start_are_not_the_images_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Folder(image_folder(tmp_path, 2))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    for made in processes(source):
        with pytest.raises(RuntimeError, match=r"could not start; data\.workers: 0"):
            check(source, processes=made)


def test_processes_that_nobody_holds_any_more_end(tmp_path: Path) -> None:
    made = Processes(Job(Folder(image_folder(tmp_path, 1)), TRANSFORM, "L"), 1)
    made.pixels(0).result()
    [child] = children()
    del made
    assert gone([child.pid])


def test_the_digest_of_the_content_is_of_the_pixels() -> None:
    grey = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    assert content(grey) == content(grey.convert("RGB")) == content(grey.copy())
    assert (
        len({content(x) for x in (grey, grey.transpose(Image.Transpose.ROTATE_90), grey.point(lambda v: v + 1))}) == 3
    )


def test_how_many_processes_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Folder(image_folder(tmp_path, 2))
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert decode_pool.automatic(source) == 0 and decode_pool.automatic(Bundled()) == 0
    monkeypatch.setattr(decode_pool, "ENOUGH", 6)
    assert [decode_pool.automatic(source, share) for share in (1, 2, 4, 8)] == [8, 8, 4, 0]
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert decode_pool.automatic(source) == 0


RUN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started us with it ignored
from vitprune.recipe import parse
from vitprune.runs import pipeline
pipeline.run(parse.load(sys.argv[1]), "split")
"""
CHECK = """
import sys
from pathlib import Path
from vitprune.images.decode_pool import Job, Processes, check
from vitprune.images.sources.folder import Folder
source = Folder(Path(sys.argv[1]))
check(source, processes=Processes(Job(source, None, "L"), 2))
"""


@pytest.mark.parametrize("how", ["interrupt", "kill"])
@pytest.mark.sample(1)
def test_what_is_stopped_leaves_no_process(tmp_path: Path, how: str) -> None:
    images = image_folder(tmp_path / "images", 1)
    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (3000, 3000), np.uint8))
    large.save(images / "cross" / "large.png")
    for i in range(100):  # seconds of reading from one file
        os.link(images / "cross" / "large.png", images / "cross" / f"large-{i}.png")
    content = recipe_dict(model_folder(tmp_path / "model"), images, tmp_path / "out")
    content["data"]["workers"] = 2
    given = write_recipe(tmp_path / "r.yaml", content)
    command = [RUN, str(given)] if how == "interrupt" else [CHECK, str(images)]
    with subprocess.Popen([sys.executable, "-c", *command], start_new_session=True, stderr=subprocess.DEVNULL) as run:
        family: list[int] = []
        end = time.monotonic() + 90
        while len(family) < 2 and time.monotonic() < end and run.poll() is None:
            family = [p.pid for p in children(run.pid)]
            time.sleep(0.02)
        assert len(family) == 2
        if how == "interrupt":
            os.killpg(run.pid, signal.SIGINT)  # as a terminal does it: the whole group
        else:
            run.kill()
        try:
            assert run.wait(60) != 0
        finally:
            run.kill()
        assert gone(family)
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_the_model_that_comes_out_does_not_depend_on_the_workers(tmp_path: Path) -> None:
    from vitprune.runs import pipeline
    from vitprune.runs.state.workspace import Workspace

    model, images = model_folder(tmp_path / "model"), image_folder(tmp_path / "images", 5)
    digests = []
    for workers in (0, 2):
        content = recipe_dict(model, images, tmp_path / str(workers), baselines=[], recovery="none")
        content["data"] = {"path": str(images), "workers": workers}
        loaded = recipe.Recipe.model_validate(content)
        made = pipeline.run(loaded, "discover")
        assert not children()
        folder = Workspace(tmp_path / str(workers) / "tiny")
        record = json.loads((folder.stage_folder("split") / "split.json").read_text())
        scores = sorted(p.name + str(p.stat().st_size) for p in folder.stage_folder("discover").rglob("*.safetensors"))
        digests.append((made["hashes"], record, scores, loaded.fingerprint()))
    assert digests[0] == digests[1]


def test_a_refusal_in_a_process_is_the_refusal(tmp_path: Path) -> None:
    root = image_folder(tmp_path, 2)
    (root / "circle" / "00.png").write_bytes(b"no image")
    for made in processes(Folder(root), 1):
        with pytest.raises(UserError, match="not a readable image"):
            made.pixels(0).result()
        assert as_mode(Folder(root).image(1), "L").size == (28, 28)
        assert made.pixels(1).result().dtype == np.uint8  # normalised where the model is
