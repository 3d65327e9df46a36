"""The server that names units: what is asked, what is taken as a reply, how it fails, what it is never told."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from chat import Chat, completion, images_of, named, text_of

from vitprune.core.errors import UserError
from vitprune.see.naming import prompts, server
from vitprune.see.naming.prompts import BadReplyError
from vitprune.see.naming.server import KEY, Server

SECRET = "sk-very-secret-0123456789"
PNG = b"\x89PNG\r\n\x1a\nfirst"
NAMING = prompts.naming("5:17", [PNG, PNG + b"2"], [PNG + b"3"])
CELLS = prompts.simulating("5:17", "bright </b> {corner}", PNG, 1, 2)


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nobody waits in a test; how long it would have been."""
    found: list[float] = []
    monkeypatch.setattr(server.time, "sleep", found.append)
    monkeypatch.delenv(KEY, raising=False)
    return found


def of(chat: Chat | None, folder: Path, **changed: Any) -> Server:
    url = "http://127.0.0.1:9/v1" if chat is None else chat.url
    return Server(**({"url": url, "model": "small", "folder": folder / "cache", "timeout": 5.0} | changed))


def test_what_is_asked_and_that_it_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, SECRET)
    said: list[str] = []
    with Chat(named) as chat:
        asked = of(chat, tmp_path, say=said.append)
        assert asked.ask(NAMING) == {"text": "bright corner"} and asked.ask(NAMING) == {"text": "bright corner"}
        (request,) = chat.asked
        assert request["path"] == "/v1/chat/completions" and request["headers"]["Authorization"] == f"Bearer {SECRET}"
        assert (request["model"], request["temperature"]) == ("small", 0) and "logprobs" not in request
        assert images_of(request) == list(NAMING.images)
        text = text_of(request)
        assert "first 2 of them" in text.replace("\n", " ") and '"unit": "5:17"' in text and "120 characters" in text
        assert (asked.calls, asked.cached, asked.tokens) == (1, 1, 321) and "321 tokens" in said[0]
        again = of(chat, tmp_path)
        assert again.ask(NAMING) == {"text": "bright corner"} and again.calls == 0 and len(chat.asked) == 1
        of(chat, tmp_path, model="other").ask(NAMING)
        of(chat, tmp_path).ask(prompts.naming("5:17", [PNG, PNG + b"2"], [PNG + b"4"]))
        of(chat, tmp_path).ask(prompts.naming("5:18", [PNG, PNG + b"2"], [PNG + b"3"]))
        assert len(chat.asked) == 4
    assert all(SECRET not in path.read_text() for path in (tmp_path / "cache").iterdir())


def test_without_a_key_none_is_sent(tmp_path: Path) -> None:
    with Chat(named) as chat:
        of(chat, tmp_path).ask(NAMING)
        assert "Authorization" not in chat.asked[0]["headers"]


@pytest.mark.parametrize("retry", ["0.5", "Wed, 21 Oct 2015 07:28:00 GMT", "3600", "soon", None])
def test_too_many_requests_are_made_again_when_the_server_says(
    tmp_path: Path, waits: list[float], retry: str | None
) -> None:
    answers = [(429, {"Retry-After": retry} if retry else {}, b"slower"), (500, {}, b"oh")]
    with Chat(lambda body: answers.pop(0) if answers else named(body)) as chat:
        made = of(chat, tmp_path)
        assert made.ask(NAMING)["text"] == "bright corner" and made.calls == 3
    first = {"0.5": 0.5, "Wed, 21 Oct 2015 07:28:00 GMT": 0.0, "3600": 60.0}.get(str(retry), 1.0)
    assert waits == [first, 2.0]


@pytest.mark.parametrize(
    ("answer", "said", "calls"),
    [
        ((429, {}, b""), "answers 429 (unit 5:17, 3 tries)", 3),
        ((503, {}, b""), "answers 503 (unit 5:17, 3 tries)", 3),
        ((401, {}, SECRET.encode()), "answers 401; set VITPRUNE_SERVER_KEY", 1),
        ((404, {}, b""), "answers 404; the address ends before /chat/completions", 1),
        ((302, {"Location": "http://127.0.0.1:1/"}, b""), "answers 302", 1),
        (b"<html>", "answers what is no chat completion", 3),
        (b"[" * 100_000, "answers what is no chat completion", 3),
        (b'{"choices": []}', "answers what is no chat completion", 3),
        (b"x" * (1 << 20) + b"x", "answers with more than 1 MiB", 3),
        (completion("It looks like a boot."), "not what was asked for: no JSON: `It looks like a boot.`", 3),
        (completion('{"unit": "5:18", "text": "a", "none": false}'), "about unit `5:18` in the place of 5:17", 3),
        (completion('{"unit": "5:17", "text": "a"}'), "not the keys none, text, unit", 3),
        (completion(json.dumps({"unit": "5:17", "text": "a" * 121, "none": False})), "up to 120 characters", 3),
        (completion('{"unit": "5:17", "text": "", "none": false}'), "an empty text without none: true", 3),
        (completion('{"unit": "5:17", "text": "a", "none": 0}'), "none is true or false", 3),
        (completion(None), "it has no text", 3),  # type: ignore[arg-type]
        (completion(SECRET), "sends the key back in its reply", 1),
    ],
)
def test_a_failure_is_one_line_and_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Any, said: str, calls: int
) -> None:
    monkeypatch.setenv(KEY, SECRET)
    with Chat(lambda _: answer) as chat:
        made = of(chat, tmp_path)
        with pytest.raises(UserError, match=r"see\.names\.url: 127\.0\.0\.1:") as error:
            made.ask(NAMING)
        assert said in str(error.value) and SECRET not in str(error.value) and made.calls == calls == len(chat.asked)
    assert not (tmp_path / "cache").exists()


def test_a_server_that_hangs_or_is_not_there(tmp_path: Path) -> None:
    with Chat(lambda _: 1.0) as chat, pytest.raises(UserError, match=r"no reply within 0\.05 s \(unit 5:17, 3 tries\)"):
        of(chat, tmp_path, timeout=0.05).ask(NAMING)
    with pytest.raises(UserError, match="refuses the connection; is the server running"):
        of(None, tmp_path).ask(NAMING)


def test_a_reply_that_drips_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Drip:
        def read1(self, _: int) -> bytes:
            return b" "

    now = iter(range(10_000))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    with pytest.raises(TimeoutError):
        of(None, tmp_path)._read(Drip())


def test_requests_are_counted_before_the_first_and_never_go_beyond(tmp_path: Path) -> None:
    with Chat(lambda _: completion("garbage")) as chat:
        made = of(chat, tmp_path, max_calls=2)
        with pytest.raises(
            UserError, match=r"see\.names\.max_calls: naming takes 3 requests, and max_calls is 2; raise it"
        ):
            made.afford(3, "naming")
        assert chat.asked == []
        with pytest.raises(UserError, match="2 requests were made, tries again among them; replies so far are kept"):
            made.ask(NAMING)
        assert len(chat.asked) == 2


def test_what_leaves_this_machine_unencrypted_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(url: str) -> list[str]:
        lines: list[str] = []
        of(None, tmp_path, url=url, say=lines.append).warn()
        return lines

    for url in ("http://127.0.0.1:8000/v1", "http://localhost/v1", "http://[::1]:80/v1", "https://api.example.com/v1"):
        assert said(url) == []
    (line,) = said("http://10.0.0.7:8000/v1")
    assert "10.0.0.7:8000 is another machine" in line and "probe images leave this machine" in line and "\n" not in line
    monkeypatch.setenv(KEY, SECRET)
    (line,) = said("http://127.0.0.1.example.com/v1")
    assert "probe images and the key" in line and SECRET not in line
    monkeypatch.setenv(KEY, "bad\nkey")
    with pytest.raises(UserError, match=f"{KEY}: holds a character"):
        said("http://10.0.0.7/v1")


# ---- cells


def reply(cells: list[int], tokens: list[tuple[str, dict[str, float]]] | None) -> bytes:
    content = json.dumps({"unit": "5:17", "cells": cells})
    if tokens is None:
        return completion(content)
    entries = [
        {"token": token, "top_logprobs": [{"token": t, "logprob": math.log(p)} for t, p in top.items()]}
        for token, top in tokens
    ]
    return completion(content, logprobs={"content": entries})


HEAD: list[tuple[str, dict[str, float]]] = [("5", {}), (":", {}), ("17", {}), ('"', {}), (" [", {})]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (None, [3.0, 10.0]),
        (
            [*HEAD, ("3", {"3": 0.6, "5": 0.2, "x": 0.2}), (",", {}), (" 10", {"10": 1.0})],
            [(0.6 * 3 + 0.2 * 5) / 0.8, 10.0],
        ),
        ([*HEAD, ("3", {"4": 1.0}), ("1", {}), ("0", {})], [3.0, 10.0]),  # not a token for each number
        ([*HEAD, ("3", {}), ("10", {"11": 0.5, "-1": 0.5})], [3.0, 10.0]),
        ([], [3.0, 10.0]),
    ],
)
def test_cells_are_expected_values_where_the_server_says_how_sure_it_is(
    tmp_path: Path, tokens: Any, expected: list[float]
) -> None:
    with Chat(lambda _: reply([3, 10], tokens)) as chat:
        made = of(chat, tmp_path)
        assert made.ask(CELLS)["cells"] == pytest.approx(expected)
        assert chat.asked[0]["logprobs"] is True and "bright </b> {corner}" in text_of(chat.asked[0])
        assert of(chat, tmp_path).known(CELLS)["cells"] == pytest.approx(expected)  # type: ignore[index]


@pytest.mark.parametrize(
    "cells", ["[1]", "[1, 2, 3]", "[1, 11]", "[1, -1]", "[1, 2.5]", "[1, true]", '"12"', "[1, NaN]"]
)
def test_cells_that_are_none_are_refused(cells: str) -> None:
    with pytest.raises(BadReplyError, match="cells are"):
        prompts.parsed(f'{{"unit": "5:17", "cells": {cells}}}', CELLS)


def test_a_server_without_logprobs_is_asked_without(tmp_path: Path) -> None:
    with Chat(lambda body: (400, {}, b"unknown field") if "logprobs" in body else reply([1, 2], None)) as chat:
        made = of(chat, tmp_path)
        assert made.ask(CELLS)["cells"] == [1, 2] and made.calls == 2
        assert made.ask(prompts.simulating("5:17", "other", PNG, 1, 2))["cells"] == [1, 2] and len(chat.asked) == 3


@pytest.mark.parametrize(
    "kept", ["", "[]", "{}", '{"reply": {"text": 5}}', '{"reply": {"cells": [1]}}', '{"reply": []}']
)
def test_a_kept_reply_that_is_none_is_asked_for_again(tmp_path: Path, kept: str) -> None:
    with Chat(named) as chat:
        made = of(chat, tmp_path)
        made.ask(NAMING)
        (path,) = (tmp_path / "cache").iterdir()
        path.write_text(kept)
        again = of(chat, tmp_path)
        assert again.known(NAMING) is None
        assert prompts.about(prompts.NAME)["sha256"] != prompts.about(prompts.SIMULATE)["sha256"]


def test_a_name_is_a_line_of_plain_text() -> None:
    found = prompts.parsed('{"unit": "5:17", "text": " a\\n\\u0007 b\\u202e ", "none": false}', NAMING)
    assert found == {"text": "a b"}
    assert prompts.parsed('{"unit": "5:17", "text": "", "none": true}', NAMING) == {"text": None}
