"""Weights of the Hub where nobody answers: at once, in one line, or out of its cache."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import timm
from huggingface_hub import constants
from safetensors.torch import save_file

import vitprune
from vitprune.core.errors import UserError
from vitprune.model.load.weights import fetching

NAME = "vit_tiny_patch16_224"


class Answers(BaseHTTPRequestHandler):
    """A Hub that has nothing, but is there."""

    def do_HEAD(self) -> None:
        self.send_response(404)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hub, and no proxy."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(fetching, "PATIENCE", 0.5)
    return tmp_path / "hub"


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A place that takes calls and never answers, as behind a firewall."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        place.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{place.getsockname()[1]}")
        yield


def test_a_hub_that_answers_is_reached(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it answers; one that refuses, or is switched off, is not."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(fetching, "PATIENCE", 30.0)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    assert fetching.unreached() is None
    with fetching.at_hand("it"):
        assert constants.HF_HUB_OFFLINE is False
    server.shutdown()
    server.server_close()
    assert "refused" in str(fetching.unreached())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetching.unreached() == "HF_HUB_OFFLINE is set"


@pytest.mark.parametrize("name", [NAME, "hf-hub:someone/tiny"])
def test_without_a_network_it_is_one_line_at_once(cache: Path, silent: None, name: str) -> None:
    from vitprune.model.load import opening
    from vitprune.recipe.inputs import Model

    started = time.monotonic()
    said = rf"model `{re.escape(name)}`: is not in the Hub's cache, and http://127\.0\.0\.1:\d+ is not reached \(.*\); mend"
    with pytest.raises(UserError, match=said) as caught:
        opening.open_model(Model(name=name, pretrained=True))
    assert "\n" not in str(caught.value) and "--checkpoint" in str(caught.value)
    assert time.monotonic() - started < 20 and constants.HF_HUB_OFFLINE is False


def test_what_the_cache_has_needs_no_network(cache: Path, silent: None, tmp_path: Path) -> None:
    """A repository that was fetched once is opened, and the switch is as it was before."""
    model = timm.create_model(NAME, img_size=28, patch_size=7, embed_dim=16, depth=1, num_heads=2, num_classes=3)
    commit = "a" * 40
    snapshot = cache / "models--someone--tiny" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (cache / "models--someone--tiny" / "refs").mkdir()
    (cache / "models--someone--tiny" / "refs" / "main").write_text(commit)
    args = {"img_size": 28, "patch_size": 7, "embed_dim": 16, "depth": 1, "num_heads": 2}
    about = {"architecture": NAME, "num_classes": 3, "model_args": args, "pretrained_cfg": {"input_size": [3, 28, 28]}}
    (snapshot / "config.json").write_text(json.dumps(about))
    save_file(model.state_dict(), snapshot / "model.safetensors")
    loaded = vitprune.load("hf-hub:someone/tiny")
    assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in model.parameters())
    assert constants.HF_HUB_OFFLINE is False
