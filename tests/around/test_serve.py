"""`vitprune serve`: what is answered to an image, and the page that asks."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest
from PIL import Image
from small import LABELS, config, linear_onnx, picture

from vitprune.core.errors import UserError
from vitprune.deploy import predict, runtime
from vitprune.deploy.serve import answers, serving


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves for deployment: a dense file below stages/, a slim one beside it."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "stages" / "export").mkdir(parents=True)
    cfg = config()["pretrained_cfg"]
    known = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")
    about = {"labels": list(LABELS), "preprocessing": {key: cfg[key] for key in known}}
    for name, seed in (("stages/export/dense.onnx", 0), ("model.onnx", 1)):
        linear_onnx(folder / name, seed, about)
    return folder


def png(kind: int = 1, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    picture(kind, 3, mode).save(file, "PNG")
    return file.getvalue()


def test_the_answers_are_those_of_predict(run: Path, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png())
    found = answers.Answering.of(run).answer(png(), "x.png")["models"]
    assert [one["name"] for one in found] == ["dense", "slim"]
    for one, file in zip(found, ("stages/export/dense.onnx", "model.onnx"), strict=True):
        (expected,) = predict.predict(predict.open_model(run / file), [tmp_path / "x.png"], 3, 1)
        told = [(entry["label"], pytest.approx(entry["probability"])) for entry in expected["top"]]
        assert [(entry["label"], entry["probability"]) for entry in one["top"]] == told
        assert (
            0 < one["range"][0] <= one["milliseconds"] <= one["range"][1]
            and one["known"]
            and np.shape(one["heat"]) == (7, 7)
        )
        view = Image.open(io.BytesIO(base64.b64decode(one["seen"].partition(",")[2])))
        assert view.size == (28, 28) and view.mode == "L"
    with pytest.raises(UserError, match="the text: not a readable image"):
        answers.Answering.of(run).answer(b"text", "the text")
    with pytest.raises(UserError, match="no such ONNX file"):
        answers.Answering.of(tmp_path)


def test_the_heat_map_by_hand(run: Path) -> None:
    """The loss of probability where a square around a part is covered by the mean: one by one, in plain loops."""
    one = predict.open_model(run)
    x = one.preprocessing(picture(2, 5))[None]
    made = answers.heat_map(one, x, 1)

    def share(pixels: np.ndarray) -> float:
        logits = runtime.predict(one.session, pixels)[0].astype(np.float64)
        return float(np.exp(logits[1]) / np.exp(logits).sum())

    for i, j in [(0, 0), (3, 2), (6, 6)]:
        covered = x.copy()  # 28 pixels in 7 parts of 4; half a part further on every side that has one
        rows = slice(max(0, 4 * i - 2), min(28, 4 * i + 6))
        columns = slice(max(0, 4 * j - 2), min(28, 4 * j + 6))
        covered[0, 0, rows, columns] = x.mean()
        assert made[i, j] == pytest.approx(share(x) - share(covered), abs=1e-5)


def test_only_this_machine_is_let_in_by_itself() -> None:
    assert [serving.is_loopback(h) for h in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "10.1.2.3", "example.org")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip
    place = serving.bound("127.0.0.1", 0)
    place.listen()
    with pytest.raises(UserError, match=r"cannot be had .* give another --port"):
        serving.bound("127.0.0.1", place.getsockname()[1])
    for elsewhere in ("203.0.113.7", "no such host", "x" * 70):
        with pytest.raises(UserError, match=r"cannot be had .* give another --host: an address of this machine"):
            serving.bound(elsewhere, 0)
    place.close()


@pytest.fixture
def address(run: Path) -> Iterator[str]:
    """The real command, in a process of its own."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    command = [sys.executable, "-m", "vitprune", "serve", str(run), "--port", "0"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert child.stdout is not None
    guard = threading.Timer(120, child.kill)
    guard.start()
    line = child.stdout.readline()
    assert line.startswith("http://127.0.0.1:") and "(dense, slim)" in line
    yield line.split()[0]
    guard.cancel()
    child.terminate()
    child.wait(30)


def asked(address: str, content: bytes | None = None, path: str = "answer", **headers: str) -> tuple[int, Any, Any]:
    request = urllib.request.Request(address + path, data=content, headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=60) as reply:
            return reply.status, reply.read(), reply.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


@pytest.mark.slow
def test_over_http(address: str) -> None:
    code, body, _ = asked(address, png())
    assert code == 200 and [one["name"] for one in json.loads(body)["models"]] == ["dense", "slim"]
    code, body, _ = asked(address, b"<script>alert(1)</script>")
    assert code == 422 and json.loads(body)["error"].startswith("the image: not a readable image")
    assert asked(address, b"\0" * (serving.LARGEST + 1))[0] == 413
    assert asked(address, png(), Host="evil.example")[0] == 400  # another site's name that leads here
    code, body, headers = asked(address, path="")
    assert code == 200 and b"Drop an image" in body and "default-src 'none'" in headers["Content-Security-Policy"]
    assert asked(address, path="docs")[0] == asked(address, path="../etc/passwd")[0] == 404


@pytest.mark.slow
@pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium")
def test_in_a_browser(address: str, tmp_path: Path) -> None:
    """An image is chosen, both answers stand there with their times and heat maps, and what is no image is said."""
    with browser.Browser(tmp_path / "profile") as page:
        page.call("Page.navigate", url=address)
        while page.run("document.readyState") != "complete" or not page.run("document.getElementById('drop') !== null"):
            time.sleep(0.1)
        drop = """
            async (text, type) => {
                const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
                const moved = new DataTransfer();
                moved.items.add(new File([bytes], "photo.png", {type}));
                const drop = new DragEvent("drop", {dataTransfer: moved, cancelable: true, bubbles: true});
                document.querySelector("h1").dispatchEvent(drop);  // beside the box
                if (!drop.defaultPrevented) return "the browser leaves the page";
                for (let n = 0; n < 300; n++) {
                    await new Promise(done => setTimeout(done, 100));
                    const said = document.getElementById("said").textContent;
                    if (said && !said.endsWith("…")) return said;
                }
            }"""
        assert page.run(f"({drop})({json.dumps(base64.b64encode(png()).decode())}, 'image/png')") == "photo.png"
        cards = page.run("[...document.querySelectorAll('article')].map(one => one.innerText)")
        assert len(cards) == 2 and cards[0].startswith("dense") and cards[1].startswith("slim")
        assert all(" ms" in one and " %" in one and LABELS[0] in one for one in cards)
        assert page.run("document.querySelectorAll('article canvas').length") == 2
        assert page.run("document.querySelector('article img').naturalWidth") == 28
        assert page.run("document.documentElement.scrollWidth <= innerWidth") is True
        said = page.run(f"({drop})({json.dumps(base64.b64encode(b'text').decode())}, 'text/plain')")
        assert "not a readable image" in said and page.run("document.querySelectorAll('article').length") == 0
        errors = [event for event in page.events if event.get("method") == "Runtime.exceptionThrown"]
        assert errors == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_it_ends_with_a_line_of_its_own(run: Path, how: str, host: str) -> None:
    """Told to end, it says so and exits 0; by its IPv6 address it answers too, or one line says that there is none."""
    pytest.importorskip("fastapi")
    command = [sys.executable, "-m", "vitprune", "serve", str(run), "--port", "0", "--host", host]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert child.stdout is not None and child.stderr is not None
    guard = threading.Timer(120, child.kill)
    guard.start()
    line = child.stdout.readline()
    if host == "::1" and not line:
        assert child.wait(30) == 2 and "--host: an address of this machine" in child.stderr.read()
        return
    assert line.startswith("http://[::1]:" if ":" in host else "http://127.0.0.1:")
    code, body, _ = asked(line.split()[0], path="")
    assert code == 200 and b"Drop an image" in body
    child.send_signal(getattr(signal, how))
    assert child.wait(60) == 0
    assert child.stderr.read() == f"serve: opening the models in {run}\nserve: ended\n"
    guard.cancel()
