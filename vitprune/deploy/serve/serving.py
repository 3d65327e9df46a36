"""The page and its one question, over HTTP: loopback unless another host is asked for, images of at most LARGEST bytes."""

from __future__ import annotations

import errno
import ipaddress
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from vitprune.core.errors import UserError, one_line
from vitprune.deploy.serve.answers import Answering

LARGEST = 20 << 20  # bytes of an image
PATIENCE = 5  # seconds for answers that are on their way when it ends
TERMINATED = 128 + signal.SIGTERM
PAGE = Path(__file__).parent / "page.html"
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
HEADERS = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


def application(answering: Answering, hosts: list[str]) -> Any:
    """The ASGI application; `hosts` are the names that it answers to, so that no other site's name leads to it."""
    from fastapi import FastAPI, Request
    from fastapi.concurrency import run_in_threadpool
    from fastapi.responses import HTMLResponse, JSONResponse
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    made = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    made.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    page = PAGE.read_text("utf-8")

    async def index(request: Request) -> HTMLResponse:
        return HTMLResponse(page, headers=HEADERS)

    async def answer(request: Request) -> JSONResponse:
        content = bytearray()
        async for part in request.stream():
            content += part
            if len(content) > LARGEST:
                return JSONResponse({"error": f"larger than {LARGEST >> 20} MB"}, 413, HEADERS)
        try:
            found = await run_in_threadpool(answering.answer, bytes(content), "the image")
        except UserError as error:
            return JSONResponse({"error": str(error)}, 422, HEADERS)
        return JSONResponse(found, headers=HEADERS)

    made.add_route("/", index, methods=["GET"])
    made.add_route("/answer", answer, methods=["POST"])
    return made


def serve(folder: Path, host: str, port: int) -> None:
    """Serve until Ctrl-C or SIGTERM. Raises UserError where the extra is not installed, the folder has no ONNX file, or the
    place is taken."""
    try:
        import fastapi  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise UserError("serve: needs FastAPI and uvicorn: pip install 'vitprune[serve]'") from error
    print(f"serve: opening the models in {folder}", file=sys.stderr, flush=True)
    answering = Answering.of(folder)
    place = bound(host, port)
    shown = f"[{host}]" if ":" in host else host
    print(f"http://{shown}:{place.getsockname()[1]}/  ({', '.join(answering.models)}); Ctrl-C ends it", flush=True)
    if not is_loopback(host):
        print(f"note: everybody who reaches {host} can ask; there is no password", file=sys.stderr)
    hosts = ["127.0.0.1", "localhost", "[::1]", shown] if is_loopback(host) else ["*"]
    config = uvicorn.Config(
        application(answering, hosts), log_level="warning", limit_concurrency=16, timeout_graceful_shutdown=PATIENCE
    )
    try:
        uvicorn.Server(config).run(sockets=[place])
    except KeyboardInterrupt:  # uvicorn raises the signal that ended it once more
        pass
    except SystemExit as end:
        if end.code != TERMINATED:
            raise
    print("serve: ended", file=sys.stderr)


def bound(host: str, port: int) -> socket.socket:
    """A socket at the place, taken now. Raises UserError where it cannot be had."""
    try:
        kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(kind, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen()  # who comes before the server does is not sent away
        return made
    except (OSError, UnicodeError) as error:  # the latter of a name that no machine can have
        foreign = isinstance(error, socket.gaierror | UnicodeError) or error.errno in NOT_HERE
        advice = "--host: an address of this machine, as 127.0.0.1" if foreign else "--port"
        said = one_line(error) if isinstance(error, UnicodeError) else error.strerror or error
        raise UserError(f"serve: {host}:{port} cannot be had ({said}); give another {advice}") from error


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
