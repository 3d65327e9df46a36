"""The verbs that hand a finished model on: to the Hub, to Triton, to a page in the browser."""

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


def triton(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="an exported .onnx file, or the folder it is in")],
    repository: Annotated[Path, typer.Argument(metavar="REPOSITORY", help="Triton's --model-repository")],
    name: Annotated[str | None, typer.Option("--name", help="of the model; without it the folder's")] = None,
    max_batch: Annotated[int, typer.Option("--max-batch", min=1, max=4096, help="images at a time")] = 32,
    half: Annotated[bool, typer.Option("--fp16/--fp32", help="what the TensorRT engine may compute in")] = True,
) -> None:
    """Write a Triton model repository, and the script that makes a TensorRT engine in it."""
    from vitprune.deploy import triton as writer

    print("\n".join(map(str, writer.write(model, repository, name, max_batch, half))))
