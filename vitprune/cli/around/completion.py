"""The verb `completion`: a script that completes verbs, options and values in a shell."""

from __future__ import annotations

import importlib
from enum import StrEnum
from types import ModuleType
from typing import Annotated

import typer

ASKED = "_VITPRUNE_COMPLETE"  # set by a shell that asks for what comes next


class Shell(StrEnum):
    """The shells that are known."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


def completion(
    shell: Annotated[Shell, typer.Argument(metavar="bash|zsh|fish", help="which shell")],
) -> None:
    """Print what completes verbs and options in a shell; in ~/.bashrc: eval "$(vitprune completion bash)"."""
    print(_library().get_completion_script(prog_name="vitprune", complete_var=ASKED, shell=shell.value))


def known() -> None:
    """Nothing; the shells are known to the library of the command line, which then answers them."""
    _library().completion_init()


def _library() -> ModuleType:
    """What typer knows of shells; its names are not marked as exported."""
    return importlib.import_module("typer.completion")
