"""A model on the Hub and back, against a hub of a few lines on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from small import LABELS, tiny_model

import vitprune
from vitprune.core.errors import UserError
from vitprune.deploy import hub

SHA = "a" * 40


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks of the Hub to make a repository, commit to it and read from it."""

    files: dict[str, bytes]
    asked: list[tuple[str, str, str | None]]

    def reply(self, content: Any, code: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.asked.append(("POST", self.path, self.headers.get("Authorization")))
        if self.path.endswith("/api/repos/create"):
            return self.reply({"url": f"http://{self.headers['Host']}/me/{json.loads(body)['name']}"})
        if "validate-yaml" in self.path:
            return self.reply({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            names = [one["path"] for one in json.loads(body)["files"]]
            return self.reply({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        if "/commit/" in self.path:
            for line in body.splitlines():
                one = json.loads(line)
                if one["key"] == "file":
                    self.files[one["value"]["path"]] = base64.b64decode(one["value"]["content"])
            return self.reply(
                {"success": True, "commitOid": SHA, "commitUrl": f"http://{self.headers['Host']}/me/slim/commit/{SHA}"}
            )
        self.reply({"error": "no such call"}, 404)

    def do_GET(self) -> None:
        self.asked.append(("GET", self.path, self.headers.get("Authorization")))
        if found := re.fullmatch(r"/me/slim/resolve/[^/]+/(.+)", self.path):
            content = self.files.get(found[1])
            if content is None:
                return self.reply({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
            tag = hashlib.sha256(content).hexdigest()
            return self.reply(content, ETag=f'"{tag}"', X_Repo_Commit=SHA)
        if self.path.startswith("/api/models/me/slim/tree/"):
            tree = [{"type": "file", "path": name, "oid": SHA, "size": len(c)} for name, c in self.files.items()]
            return self.reply(tree)
        if self.path.startswith("/api/models/me/slim"):
            siblings = [{"rfilename": name} for name in self.files]
            return self.reply(
                {"id": "me/slim", "modelId": "me/slim", "sha": SHA, "siblings": siblings, "private": False}
            )
        self.reply({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def served() -> Iterator[tuple[str, type[Hub]]]:
    own = type("Own", (Hub,), {"files": {}, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), own)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", own
    server.shutdown()
    server.server_close()


def folder_of(path: Path) -> Path:
    """A saved model among files that are nobody else's business."""
    model = tiny_model()
    vitprune.save(model, path, architecture="vit_tiny_patch16_224", labels=LABELS)
    (path / "recipe.yaml").write_text("data: {path: /home/me/private}")
    (path / "weights.pkl").write_bytes(b"\x80\x04.")
    (path / "stages").mkdir()
    (path / "stages" / "secret.json").write_text("{}")
    return path


def test_only_safe_files_of_the_model_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its configuration, weights, card and ONNX files, in one commit; the run's own card where there is one."""
    folder, done = folder_of(tmp_path / "slim"), list[Any]()

    class Recorded:
        def create_repo(self, name: str, **asked: Any) -> str:
            done.append((name, asked))
            return "where"

        def create_commit(self, name: str, parts: list[Any], **_: Any) -> None:
            done.append({part.path_in_repo: part.path_or_fileobj for part in parts})

    monkeypatch.setattr("huggingface_hub.HfApi", Recorded)
    assert hub.push(folder, "hf-hub:me/slim", private=True) == (
        "where",
        ["README.md", "config.json", "model.safetensors"],
    )
    assert done[0] == ("me/slim", {"private": True, "exist_ok": True})
    assert (
        Path(done[1]["config.json"]) == folder / "config.json"
        and b'vitprune.load("hf-hub:me/slim")' in done[1]["README.md"]
    )
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Its own\n")
    hub.push(folder, "me/slim")
    assert done[3]["README.md"] == b"---\nlicense: mit\n---\n# Its own\n"


@pytest.mark.slow
def test_what_is_pushed_is_loaded_again(served: tuple[str, type[Hub]], tmp_path: Path) -> None:
    """By the command and in another process by the library; only safe files go, and the token is the environment's."""
    address, own = served
    folder = folder_of(tmp_path / "slim")
    env = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_of_the_environment"}
    env |= {"OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", "HF_HUB_OFFLINE": "0"}
    script = (
        "import sys\nfrom pathlib import Path\nimport torch, vitprune\nfrom vitprune.deploy import hub\n"
        "print(hub.push(Path(sys.argv[1]), 'hf-hub:me/slim'))\n"
        "model = vitprune.load('hf-hub:me/slim')\n"
        "torch.save(model(torch.zeros(2, 1, 28, 28) + 0.3), sys.argv[2])\n"
    )
    command = [sys.executable, "-c", script, str(folder), str(tmp_path / "logits.pt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr
    assert set(own.files) == {"README.md", "config.json", "model.safetensors"}
    assert own.files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    front = yaml.safe_load(own.files["README.md"].decode().split("---")[1])
    assert front["library_name"] == "timm" and front["pipeline_tag"] == "image-classification"
    assert "private" not in str(own.files)
    assert {token for _, _, token in own.asked if token} == {"Bearer hf_of_the_environment"}
    logits = torch.load(tmp_path / "logits.pt", weights_only=True)
    assert torch.equal(logits, vitprune.load(folder)(torch.zeros(2, 1, 28, 28) + 0.3))


def test_no_folder_and_no_repository_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder, target, said in [
        (tmp_path / "empty", "hf-hub:me/slim", "no checkpoint"),
        (tmp_path / "empty", "slim", "no repository; give hf-hub:OWNER/NAME"),
        (tmp_path / "empty", "hf-hub:../../etc", "no repository"),
    ]:
        with pytest.raises(UserError, match=re.escape(said)) as caught:
            hub.push(folder, target)
        assert "\n" not in str(caught.value)
    (tmp_path / "empty" / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224"}))
    (tmp_path / "empty" / "model.safetensors").write_bytes(b"\x80\x04.")  # a pickle under another name
    with pytest.raises(UserError, match="not a sound safetensors file"):
        hub.push(tmp_path / "empty", "hf-hub:me/slim")


def test_a_hub_that_is_not_reached_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224"}))
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")

    def unreached(*_: object, **__: object) -> None:
        raise hub.UNREACHED[0]("[Errno -2] Name or service not known")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", unreached)
    with pytest.raises(UserError, match=r"the Hub is not reached .* mend the network"):
        hub.push(tmp_path, "hf-hub:me/slim")
