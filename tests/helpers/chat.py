"""A server on this machine that answers as an OpenAI-compatible one does, or as a test wants it to fail."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, str], bytes]  # status, headers, body


def completion(content: str, **choice: Any) -> bytes:
    made = {"choices": [{"message": {"content": content}} | choice], "usage": {"total_tokens": 321}}
    return json.dumps(made).encode()


class Chat:
    """`answer` makes a reply from a request's JSON; `asked` has every request: its JSON, its headers, its images."""

    def __init__(self, answer: Callable[[dict[str, Any]], Answer | bytes | float]) -> None:
        self.answer, self.asked = answer, list[dict[str, Any]]()
        chat = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                chat.asked.append({"path": self.path, "headers": dict(self.headers), **body})
                found = chat.answer(body)
                if isinstance(found, float):  # hangs, and then says nothing
                    threading.Event().wait(found)
                    return
                status, headers, content = (200, {}, found) if isinstance(found, bytes) else found
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def __enter__(self) -> Chat:
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()


def text_of(body: dict[str, Any]) -> str:
    return str(body["messages"][0]["content"][0]["text"])


def unit_of(body: dict[str, Any]) -> str:
    found = re.search(r'"unit": "(\d+:\d+)"', text_of(body))
    assert found
    return found[1]


def images_of(body: dict[str, Any]) -> list[bytes]:
    parts = body["messages"][0]["content"][1:]
    return [base64.b64decode(part["image_url"]["url"].removeprefix("data:image/png;base64,")) for part in parts]


def named(body: dict[str, Any], text: str = "bright corner") -> bytes:
    return completion(json.dumps({"unit": unit_of(body), "text": text, "none": False}))


def obliging(body: dict[str, Any], text: str = "bright corner") -> bytes:
    """A name where one is asked for, else a number for each cell."""
    cells = re.search(r"each of the (\d+) cells", text_of(body))
    if not cells:
        return named(body, text)
    start = sum(map(ord, unit_of(body)))
    numbers = [(start + 3 * k) % 11 for k in range(int(cells[1]))]
    return completion(json.dumps({"unit": unit_of(body), "cells": numbers}))
