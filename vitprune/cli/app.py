"""The command line: its verbs in the order of `--help`, and how it ends. An error is one line; exit code 2 is the user's,
1 ours, 130 Ctrl-C, 143 SIGTERM."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from typing import Annotated

import typer

from vitprune.cli import files, planning, runs, seeing
from vitprune.cli.around import completion, handing, lists
from vitprune.core.errors import UserError, one_line
from vitprune.core.progress.reporter import to_logs
from vitprune.runs.engine import threads

TERMINATED = 128 + signal.SIGTERM
STOPPED = "vitprune: stopped; the same command continues where it was"
VERBS = (
    runs.run, planning.plan, runs.discover, runs.prune, runs.evaluate, runs.export, seeing.see, runs.compare,
    files.predict, files.report, files.check, runs.paper, files.bench, lists.criteria, lists.models, lists.doctor,
    completion.completion, handing.push, handing.serve, handing.triton,
)  # fmt: skip

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Class-specific structured pruning of Vision Transformers: discover, prune, repair, judge, export, report.",
)
for verb in VERBS:
    app.command()(verb)
app.add_typer(lists.recipes, name="recipe")


def _version(value: bool) -> None:
    if value:
        from vitprune.core.version import __version__

        print(f"vitprune {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="show the whole trace of an error")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    """Options before the verb."""


def main() -> None:
    """Entry point of the `vitprune` command."""
    threads.wait_quietly()
    debug = "--debug" in sys.argv
    if not debug:
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=UserWarning)
        warnings.filterwarnings("ignore", message="Image size .* exceeds limit")  # Pillow's; the decoder has its own
    if completion.ASKED in os.environ:
        completion.known()
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        ended = app(prog_name="vitprune", standalone_mode=False)
        sys.exit(ended if isinstance(ended, int) else 0)
    except SystemExit as end:
        if end.code in (130, TERMINATED):
            _fail(STOPPED, int(end.code), False)
        raise
    except UserError as error:
        _fail(f"vitprune: {error}", 2, debug)
    except KeyboardInterrupt:
        _fail(STOPPED, 130, False)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        if (wrong := _misused(error)) is not None:
            _fail(wrong, 2, debug)
        if _lacks_memory(error):
            _fail("vitprune: not enough memory; free some and run the same command again, it continues", 2, debug)
        _fail(
            f"vitprune: internal error, {type(error).__name__}: {one_line(error)} (add --debug before the verb for the trace)",
            1,
            debug,
        )
    finally:
        signal.signal(signal.SIGTERM, before)


def _misused(error: Exception) -> str | None:
    """What is wrong with the words of the command, in one line; None where it is another error. typer's own box has several
    lines, and which module its errors are of changes with its version."""
    show = getattr(error, "show", None)
    if type(error).__name__ == "NoArgsIsHelpError" and callable(show):
        show()  # the help, whole
        sys.exit(2)
    if type(error).__name__ == "Abort":
        return "vitprune: nothing was answered, so nothing is done; --yes goes on without a question"
    if not hasattr(error, "format_message"):
        return None
    asked = getattr(getattr(error, "ctx", None), "command_path", None) or _asked(sys.argv[1:])
    return f"vitprune: {one_line(error.format_message()).rstrip('.')}; `{asked} --help` says what may be given"


def _asked(words: list[str]) -> str:
    """The command that the words begin with, for an error that does not say whose it is."""
    found, command = ["vitprune"], typer.main.get_command(app)
    for word in words:
        below = getattr(command, "commands", {}).get(word)
        if below is not None:
            command = below
            found.append(word)
        elif not word.startswith("-"):
            break
    return " ".join(found)


def _lacks_memory(error: Exception) -> bool:
    """Without torch, which `predict` does not need, only what Python and numpy raise."""
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from vitprune.core import memory

    return memory.lacking(error)


def _terminated(*_: object) -> None:
    """Leave as Ctrl-C does, so that nothing half-written and no helper process stays behind."""
    sys.exit(TERMINATED)


def _fail(line: str, code: int, trace: bool) -> None:
    if trace:
        import traceback

        traceback.print_exc()
    to_logs(line)
    print(line, file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
