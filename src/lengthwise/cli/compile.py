"""`lengthwise compile`: compile ahead what servers would compile when they start."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from lengthwise.cli.options import JsonOption
from lengthwise.errors import InputError, LengthwiseError

_VARIABLE = "NUMBA_CACHE_DIR"


def compile(
    into: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the compiled code, made if missing.",
            show_default=f"the environment's {_VARIABLE}",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Compile ahead what servers would compile when they start, one to three minutes.

    For images of containers: every server that is then started with the environment variable
    `NUMBA_CACHE_DIR` naming the folder finds its code compiled, also where nothing can be written.

    Example: `NUMBA_CACHE_DIR=/opt/lengthwise lengthwise compile`
    """
    from lengthwise.cli.output import ConsoleProgress
    from lengthwise.policy import policy_names
    from lengthwise.serve.served_model import require_vllm

    given = into or Path(os.environ.get(_VARIABLE, ""))
    if given == Path():
        raise InputError(
            f"where to? name a folder with --into DIR or {_VARIABLE}; servers are then started "
            f"with {_VARIABLE} set to it"
        )
    folder = given.absolute()
    _require_writable(folder)
    require_vllm()
    with ConsoleProgress() as progress, tempfile.TemporaryFile() as said:
        progress.stage(f"compiling into {folder}", total=len(policy_names()))
        child = subprocess.Popen(
            [sys.executable, "-m", "lengthwise.serve.compile_all"],
            env={**os.environ, _VARIABLE: str(folder)},
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )
        assert child.stdout is not None
        for done, name in enumerate(child.stdout, start=1):
            progress.advance(done, name.strip())
        if child.wait() != 0:
            said.seek(0)
            last = said.read().decode(errors="replace").strip().splitlines()[-1:]
            raise LengthwiseError(f"not everything could be compiled: {' '.join(last)}")
    _report(folder, json)


def _require_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(
            f"cannot write to {folder}: {error.strerror}: choose another folder with --into"
        ) from error


def _report(folder: Path, as_json: bool) -> None:
    from lengthwise.cli.output import print_json

    sizes = [path.stat().st_size for path in folder.rglob("*.nbc")]
    if as_json:
        print_json(
            {"folder": str(folder), "functions": len(sizes), "bytes": sum(sizes)}, pretty=False
        )
        return
    print(
        f"{len(sizes)} compiled functions ({sum(sizes) / 1e6:.0f} MB) are in {folder}\n"
        f"start servers with {_VARIABLE}={folder}, on the same kind of processor; "
        "they need not be able to write there"
    )
