"""The verbs that hand a finished model on: to the Hub, to a page in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="the folder of a run, or of one of its groups")]


def push(
    folder: Folder,
    target: Annotated[str, typer.Argument(metavar="hf-hub:OWNER/NAME", help="where it goes")],
    private: Annotated[bool, typer.Option("--private", help="a new repository is yours alone")] = False,
    onnx: Annotated[bool, typer.Option("--onnx/--no-onnx", help="the ONNX files too")] = True,
) -> None:
    """Put a slim model on the Hugging Face Hub: weights, configuration, card, ONNX files; `vitprune.load` opens it there."""
    from vitprune.deploy import hub

    where, files = hub.push(folder, target, private, onnx)
    print(f"Written: {', '.join(files)}\nRepository: {where}")


def serve(
    folder: Folder,
    host: Annotated[str, typer.Option("--host", help="another than this machine's own lets others in")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free")] = 8420,
) -> None:
    """A page to drop an image on: dense and slim answers side by side, their times, and where each model looks."""
    from vitprune.deploy.serve import serving

    serving.serve(folder, host, port)
