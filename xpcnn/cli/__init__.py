"""The command line, `xpcnn COMMAND ...`: how commands are found, and how errors and exit codes come about.

Exit codes: 0 all is well; 1 it could not be done, or a check failed; 2 the command line is wrong; 130 Ctrl-C;
143 SIGTERM, where a training was saved, or a server's last requests were answered, first.
What goes wrong is one line on stderr; `xpcnn --debug COMMAND ...` shows the traceback.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from ..errors import ArgumentError, XpcnnError
from ..training.communicator import is_common, launched
from ..version import __version__
from .checks import bench, crosscheck, doctor, gradcheck, profile, summary
from .images import examine_data
from .models import convert, evaluate, explain, predict
from .runs import compare, report
from .serve import serve
from .training import lr_find, train

__all__ = ["app", "main"]

app = typer.Typer(
    name="xpcnn",
    help="Train, use and inspect convolutional networks on NumPy and CuPy.",
    epilog="xpcnn COMMAND --help explains a command. Start with: xpcnn train mnist --model lenet --epochs 3",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS: dict[str, dict[str, Callable[..., int | None]]] = {
    "Train": {"data": examine_data, "lr-find": lr_find, "train": train, "compare": compare, "report": report},
    "Use": {"evaluate": evaluate, "predict": predict, "explain": explain, "convert": convert, "serve": serve},
    "Look into a network": {
        "summary": summary,
        "profile": profile,
        "gradcheck": gradcheck,
        "crosscheck": crosscheck,
    },
    "Look into the machine": {"doctor": doctor, "bench": bench},
}
for panel, commands in COMMANDS.items():
    for name, command in commands.items():
        app.command(name, rich_help_panel=panel)(command)

ENDED = {130: "interrupted", 143: "terminated"}  # by SIGINT and SIGTERM


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; an error becomes one line on stderr."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        result = app(arguments, prog_name="xpcnn", standalone_mode=False)
        if result in ENDED:
            return _fail(ENDED[result], result)
        return result if isinstance(result, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130)
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        if hasattr(error, "format_message"):  # typer's errors about the command line
            if not (message := error.format_message()):  # no command at all: the help has been printed
                return 2
            return _fail(f"{message} (see xpcnn --help)", getattr(error, "exit_code", 2))
        if isinstance(error, ArgumentError):
            return _fail(str(error), 2)
        if isinstance(error, FileNotFoundError) and error.filename:
            return _fail(f"{error.filename} does not exist", 2)
        if isinstance(error, (XpcnnError, OSError)):
            return _fail(str(error), 1)
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return _fail(f"out of memory ({_one_line(error)}); try a smaller --batch-size", 1)
        if "--debug" in arguments:
            return 1
        return _fail(f"{type(error).__name__}: {_one_line(error)} (a bug; --debug before the command shows where)", 1)


def _fail(message: str, code: int) -> int:
    """Print what went wrong; of several processes that mpiexec has started and that say the same, the first does."""
    error = sys.exc_info()[1]
    alike = isinstance(error, (KeyboardInterrupt, type(None))) or hasattr(error, "format_message") or is_common(error)
    if not (alike and launched()[0]):
        print(f"xpcnn: {_one_line(message)}", file=sys.stderr)
    return code


def _one_line(message: object) -> str:
    return " ".join(str(message).split())


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"xpcnn {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Train, use and inspect convolutional networks on NumPy and CuPy."""
