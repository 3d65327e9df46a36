"""A language model behind an OpenAI-compatible address (`/chat/completions`): asked only where a recipe names it.

What leaves the machine are the pictures and texts of the prompts. Every reply is kept in a folder, by the model, the prompt
and its images, so that nothing is asked twice. The key is read from the environment and goes into one header, nowhere else.
"""

from __future__ import annotations

import base64
import email.utils
import hashlib
import ipaddress
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib import error as failures
from urllib import request
from urllib.parse import urlsplit

from vitprune.core.errors import UserError
from vitprune.core.files import write_json
from vitprune.core.reading import Json, digest, read_json
from vitprune.see.naming import prompts
from vitprune.see.naming.prompts import BadReplyError, Prompt

KEY = "VITPRUNE_SERVER_KEY"
TRIES = 3
LONGEST_WAIT = 60.0  # seconds that a Retry-After is followed
MOST = 1 << 20  # bytes of a reply
AGAIN = {408, 409, 425, 429, 500, 502, 503, 504}


class _Stay(request.HTTPRedirectHandler):
    """No other address gets the key."""

    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass
class Server:
    """Who is asked. `folder`: where replies are kept; `say` is told a line; `calls` counts requests, `tokens` what the server
    says they cost."""

    url: str
    model: str
    folder: Path
    max_calls: int = 200
    timeout: float = 60.0
    say: Callable[[str], object] = str
    calls: int = 0
    cached: int = 0
    tokens: int = 0
    logprobs: bool = True

    @property
    def place(self) -> str:
        """Whom it is, for people."""
        return urlsplit(self.url).netloc

    @property
    def here(self) -> bool:
        """Whether it is this machine."""
        host = urlsplit(self.url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    def warn(self) -> None:
        """Say, of an address of another machine that is not encrypted, what goes there."""
        if urlsplit(self.url).scheme == "http" and not self.here:
            key = " and the key" if _key() else ""
            self.say(
                f"warning: see.names.url: {self.place} is another machine and http is not encrypted: probe images{key} leave "
                "this machine readable by others; use https"
            )

    def known(self, prompt: Prompt) -> Json | None:
        """The reply, where it was given before."""
        path = self._file(prompt)
        if not path.is_file():
            return None
        try:
            kept = read_json(path, MOST)
            return _checked(kept["reply"], prompt)
        except (UserError, BadReplyError, KeyError, TypeError):
            return None

    def afford(self, wanted: int, what: str) -> None:
        """Raises UserError, before anything is asked, where that many requests are beyond `max_calls`."""
        if self.calls + wanted > self.max_calls:
            before = f", {self.calls:,} were made" if self.calls else ""
            raise UserError(
                f"see.names.max_calls: {what} takes {wanted:,} requests{before}, and max_calls is {self.max_calls:,}; raise "
                "it, or show fewer units (see.units) or images (see.simulator.images)"
            )

    def ask(self, prompt: Prompt) -> Json:
        """The reply as `prompts.parsed` gives it, cells as expected values. Raises UserError after three tries."""
        known = self.known(prompt)
        if known is not None:
            self.cached += 1
            return known
        why = ""
        for attempt in range(TRIES):
            try:
                reply = self._reply(prompt)
            except _AgainError as fault:
                why = str(fault)
                if attempt + 1 < TRIES:
                    time.sleep(2.0**attempt if fault.after is None else fault.after)
                continue
            write_json(self._file(prompt), {"model": self.model, "prompt": prompt.template, "reply": reply})
            return reply
        raise UserError(f"see.names.url: {self.place}: {why} (unit {prompt.unit}, {TRIES} tries); {KEPT}")

    def _file(self, prompt: Prompt) -> Path:
        pictures = [hashlib.sha256(image).hexdigest() for image in prompt.images]
        return self.folder / f"{digest(self.model, prompt.text, pictures)[:32]}.json"

    def _reply(self, prompt: Prompt) -> Json:
        whole = self._sent(prompt)
        if (key := _key()) and key.encode() in whole:
            raise UserError(f"see.names.url: {self.place} sends the key back in its reply, which is not kept")
        try:
            answered = json.loads(whole)
            choice = answered["choices"][0]
            content = choice["message"]["content"]
        except (ValueError, RecursionError, KeyError, IndexError, TypeError) as fault:
            raise _AgainError("answers what is no chat completion") from fault
        self._count(answered.get("usage"))
        try:
            found = prompts.parsed(content, prompt)
        except BadReplyError as fault:
            raise _AgainError(f"the model's reply is not what was asked for: {fault}") from fault
        if prompt.cells:
            found["cells"] = prompts.expected(found["cells"], choice)
        return found

    def _count(self, usage: object) -> None:
        total = usage.get("total_tokens") if isinstance(usage, dict) else None
        first, self.tokens = not self.tokens, self.tokens + (total if type(total) is int and total > 0 else 0)
        if first and self.tokens:
            self.say(f"see: the first request cost {self.tokens:,} tokens by the server's own count")

    def _sent(self, prompt: Prompt) -> bytes:
        """The body of the reply to one request. Raises _AgainError where another try may help, UserError where none does."""
        if self.calls >= self.max_calls:
            raise UserError(
                f"see.names.max_calls: {self.max_calls:,} requests were made, tries again among them; {KEPT}"
            )
        self.calls += 1
        headers = {"Content-Type": "application/json"}
        if key := _key():
            headers["Authorization"] = f"Bearer {key}"
        asked = request.Request(f"{self.url}/chat/completions", self._body(prompt), headers)
        try:
            with self._opener().open(asked, timeout=self.timeout) as reply:
                return self._read(reply)
        except failures.HTTPError as fault:
            with fault:
                self._failed(fault, prompt)
            raise AssertionError from fault
        except TimeoutError as fault:
            raise _AgainError(f"no reply within {self.timeout:g} s") from fault
        except failures.URLError as fault:
            if isinstance(fault.reason, TimeoutError):
                raise _AgainError(f"no reply within {self.timeout:g} s") from fault
            if isinstance(fault.reason, ConnectionRefusedError):
                raise UserError(
                    f"see.names.url: {self.place} refuses the connection; is the server running?"
                ) from fault
            raise _AgainError(f"cannot be reached ({type(fault.reason).__name__})") from fault
        except (OSError, ValueError) as fault:  # a connection that ends; a reply that is no HTTP
            raise _AgainError(f"breaks off ({type(fault).__name__})") from fault

    def _read(self, reply: Any) -> bytes:
        ends, found = time.monotonic() + self.timeout, b""
        while part := reply.read1(1 << 16):
            found += part
            if len(found) > MOST:
                raise _AgainError(f"answers with more than {MOST >> 20} MiB")
            if time.monotonic() > ends:
                raise TimeoutError
        return found

    def _opener(self) -> request.OpenerDirector:
        return request.build_opener(_Stay, *([request.ProxyHandler({})] if self.here else []))

    def _failed(self, fault: failures.HTTPError, prompt: Prompt) -> None:
        if fault.code == 400 and prompt.cells and self.logprobs:
            self.logprobs = False  # not every server has them
            raise _AgainError("answers 400", 0.0)
        if fault.code in AGAIN:
            raise _AgainError(f"answers {fault.code}", _after(fault.headers.get("Retry-After")))
        hint = {401: f"; set {KEY}", 403: f"; set {KEY}", 404: "; the address ends before /chat/completions"}
        raise UserError(f"see.names.url: {self.place} answers {fault.code}{hint.get(fault.code, '')}")

    def _body(self, prompt: Prompt) -> bytes:
        content: list[Json] = [{"type": "text", "text": prompt.text}]
        for image in prompt.images:
            address = f"data:image/png;base64,{base64.b64encode(image).decode()}"
            content.append({"type": "image_url", "image_url": {"url": address}})
        made: Json = {"model": self.model, "temperature": 0, "response_format": {"type": "json_object"}}
        made["messages"] = [{"role": "user", "content": content}]
        if prompt.cells and self.logprobs:
            made |= {"logprobs": True, "top_logprobs": 5}
        return json.dumps(made).encode()


KEPT = "replies so far are kept, the same command goes on from there"


class _AgainError(Exception):
    """Another try may help; `after` so many seconds, where the server said so."""

    def __init__(self, why: str, after: float | None = None) -> None:
        super().__init__(why)
        self.after = after


def _key() -> str:
    """The key of the environment, if any. Raises UserError for one that no header can have."""
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"{KEY}: holds a character that no key has; set it again")
    return key


def _after(header: str | None) -> float | None:
    """Seconds of a Retry-After, which is a number of them or a date; None without one. Never more than a minute."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except (TypeError, ValueError):
            return None
    return min(max(seconds, 0.0), LONGEST_WAIT) if seconds == seconds else None


def _checked(reply: Json, prompt: Prompt) -> Json:
    """A kept reply, which a file may say anything about."""
    if not prompt.cells:
        text = reply["text"]
        if text is not None and (not isinstance(text, str) or not 0 < len(text) <= prompts.LONGEST):
            raise BadReplyError("kept")
        return {"text": text}
    cells = reply["cells"]
    if not isinstance(cells, list) or len(cells) != prompt.cells:
        raise BadReplyError("kept")
    if any(type(v) not in (int, float) or not 0 <= v <= prompts.HIGHEST for v in cells):
        raise BadReplyError("kept")
    return {"cells": [float(v) for v in cells]}
