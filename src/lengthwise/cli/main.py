"""The `lengthwise` command: its verbs, and how errors leave it."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from importlib import metadata
from types import FrameType
from typing import Annotated, Any, Final

import typer

from lengthwise.cli.bench import bench
from lengthwise.cli.calibrate import calibrate
from lengthwise.cli.collect import collect
from lengthwise.cli.demo import demo
from lengthwise.cli.doctor import doctor
from lengthwise.cli.evaluate import evaluate
from lengthwise.cli.gateway import gateway
from lengthwise.cli.inspect import inspect
from lengthwise.cli.operate import check, compile, explain, off, on, status
from lengthwise.cli.predict_server import predict_server
from lengthwise.cli.report import report
from lengthwise.cli.serve import serve
from lengthwise.cli.simulate import simulate
from lengthwise.cli.theory import theory
from lengthwise.cli.train import train
from lengthwise.cli.train_probe import train_probe
from lengthwise.cli.tune import tune
from lengthwise.errors import LengthwiseError, one_line

app = typer.Typer(
    name="lengthwise",
    help="Answer sooner: an unmodified vLLM that runs short answers first.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
# vLLM's own flags are passed on, so options that are not ours are no error to `serve`.
_PASSES_ON: Final = {"allow_extra_args": True, "ignore_unknown_options": True}
# By what one wants. Within a group, in the order in which one comes to need them.
_VERBS: Final[dict[str, tuple[Callable[..., object], ...]]] = {
    "Try it": (demo, doctor),
    "Serve": (serve, check, status, explain, off, on, compile),
    "In front of other servers": (gateway, predict_server),
    "Predict lengths": (inspect, train, evaluate, collect, train_probe),
    "Decide how to serve": (tune, simulate, calibrate),
    "Compare and research": (bench, report, theory),
}
for _group, _verbs in _VERBS.items():
    for _verb in _verbs:
        app.command(
            rich_help_panel=_group, context_settings=_PASSES_ON if _verb is serve else None
        )(_verb)

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
#: What even a look at a path may fail with that a user gave, wherever that is.
_REFUSED: Final = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP)

# The base of typer's usage errors, which it does not export under this name.
_UsageError: Any = typer.BadParameter.__mro__[1]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"lengthwise {metadata.version('lengthwise')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; every error a user can cause ends in one line and an exit code.

    0: done. 1: a run failed or was stopped. 2: something given is wrong.
    """
    # What ends a service politely gets the same clean-up as Ctrl-C.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = app(standalone_mode=False)
    except _UsageError as error:
        where = error.ctx.command_path if error.ctx is not None else "lengthwise"
        _leave(f"{error.format_message()} (see {where} --help)", 2)
    except LengthwiseError as error:
        _leave(str(error), error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        _leave("stopped", 1)
    except BrokenPipeError:
        # The reader of our output (head, less) has gone: nothing is left to say to it.
        _print_no_more()
        sys.exit(1)
    except OSError as error:
        if error.errno in _REFUSED and error.filename is not None:
            _leave(f"{one_line(error.filename)}: {error.strerror}", 2)
        if error.errno not in _FULL:
            raise
        _print_no_more()  # it may be standard output that is on the full disk
        _leave(f"{error.filename or 'output'} cannot be written: {error.strerror}", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _print_no_more() -> None:
    """Let go of what was to be printed: at the end Python would try to write it again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _leave(message: str, code: int) -> None:
    line = " ".join(message.split())
    print(f"lengthwise: {line}", file=sys.stderr)
    sys.exit(code)
