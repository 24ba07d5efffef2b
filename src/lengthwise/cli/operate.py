"""The verbs around a server: `check`, `compile`, `status`, `explain`, `off` and `on`.

`lengthwise check` looks at settings before a server starts with them, and `lengthwise compile`
compiles ahead what servers would compile when they start. `lengthwise status` is what the engines
that watch a settings file say of themselves, `lengthwise explain` why a request waited.
`lengthwise off` and `lengthwise on` are the kill switch.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from lengthwise.cli.options import JsonOption
from lengthwise.errors import InputError, LengthwiseError

Target = Annotated[
    str,
    typer.Argument(
        help="The settings file that the server watches, or the URL of a server that `lengthwise "
        "serve` or `lengthwise gateway` started on this machine.",
        metavar="SETTINGS|URL",
        show_default=False,
    ),
]
Timeout = Annotated[
    float, typer.Option(min=0, help="Seconds for the engines to follow; 0 does not wait.")
]

_VARIABLE = "NUMBA_CACHE_DIR"


def check(
    settings: Annotated[
        list[Path], typer.Argument(help="Settings files.", show_default=False, metavar="FILE...")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="The model that will be served: predictor and probe are checked against it."
        ),
    ] = None,
    probe: Annotated[
        Path | None, typer.Option(help="The probe that will be read: `serve --probe`.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Say whether a server would take settings up, and what of them is dangerous.

    Nothing is started and nothing written: it takes a second. One line for each thing found. The
    exit code is 0 where all is well, 1 where something is dangerous (a server would take it up),
    and 2 where a server would refuse it.

    Example: `lengthwise check settings.json && mv settings.json /etc/lengthwise/`
    """
    from lengthwise.cli.output import print_json
    from lengthwise.serve.settings_check import check_settings, worst

    found = {path: check_settings(path, model, probe) for path in settings}
    code = max(map(worst, found.values()))
    if json:
        print_json(
            {
                str(path): [{"verdict": each.verdict, "says": each.says} for each in findings]
                for path, findings in found.items()
            },
            pretty=False,
        )
    else:
        for path, findings in found.items():
            for each in findings:
                print(f"{path}: {each.verdict}: {each.says}")
    raise typer.Exit(code)


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
    from lengthwise.serve.command import require_vllm

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


def status(
    target: Annotated[
        str,
        typer.Argument(
            help="The settings file that servers watch, or the URL of a server that `lengthwise "
            "serve` or `lengthwise gateway` started on this machine, for its engines alone.",
            metavar="SETTINGS|URL",
            show_default=False,
        ),
    ],
    json: JsonOption = False,
) -> None:
    """Say what the engines of this machine that watch a settings file do: one line for each.

    Which server each belongs to, its number there, its process, the policy in force, and whether it
    refused what the file says now.

    Example: `lengthwise status settings.json`
    """
    from lengthwise.cli.output import print_json
    from lengthwise.serve.whereabouts import port_of, settings_file, statuses

    path = settings_file(target)
    found = statuses(path)
    if "://" in target:
        found = [each for each in found if _port(each) == port_of(target)]
    if json:
        print_json(found, pretty=False)
    for each in [] if json else found:
        print(_in_words(each))
    if not found:
        raise LengthwiseError(f"no engine that watches {path} says anything: is the server up?")


def _port(status: Mapping[str, Any]) -> int | None:
    from lengthwise.serve.whereabouts import port_of

    return port_of(str(status["server"])) if status.get("server") else None


def _in_words(status: Mapping[str, Any]) -> str:
    where = status.get("server") or "a server"
    parts = [f"policy {status.get('policy')}"]
    if status.get("off"):
        parts.append("switched off")
    if status.get("shadow"):
        parts.append("in shadow")
    if status.get("below_tau_floor"):
        parts.append("predictions too wrong to be believed")
    for name, reason in (status.get("switched_off") or {}).items():
        parts.append(f"{name} is off: {reason}")
    if status.get("state") == "refused":
        parts.append(f"refused the file: {status.get('error')}")
    counters = status.get("counters") or {}
    parts.append(f"{counters.get('finished', 0):,} requests ended")
    return f"{where}, engine {status.get('engine')}, process {status['pid']}: {', '.join(parts)}"


def explain(
    target: Annotated[
        str,
        typer.Argument(
            help="The folder that the setting `journal` names, or the URL of a server that "
            "`lengthwise serve` started on this machine.",
            metavar="URL|JOURNAL",
            show_default=False,
        ),
    ],
    request: Annotated[
        str,
        typer.Argument(
            help="The id of its response, its `X-Request-Id` or its `lengthwise_id`.",
            metavar="ID",
            show_default=False,
        ),
    ],
    json: JsonOption = False,
) -> None:
    """Say why a request waited: its rank and tier, what was predicted, who overtook it, when it was
    paused or preempted, for how long and for whom.

    The server must keep a journal (the setting `journal`). It may run on meanwhile: the journal is
    a quarter of a second behind. A request that still waits is explained as far as it got.

    Example: `lengthwise explain http://localhost:8000 cmpl-8f0a6c`
    """
    from lengthwise.cli.output import print_json
    from lengthwise.serve.journal_reader import explain as explained
    from lengthwise.serve.journal_reader import in_words

    told = explained(_journal_of(target), request)
    if json:
        print_json(asdict(told), pretty=False)
    else:
        print("\n".join(in_words(told)))


def _journal_of(target: str) -> Path:
    if "://" not in target:
        return Path(target)
    from lengthwise.serve.whereabouts import settings_file
    from lengthwise.settings import read_settings

    path = settings_file(target)
    settings, _ = read_settings(path)
    if settings.journal is None:
        raise InputError(
            f"the server keeps no journal: set `journal` to a folder in {path}, and ask again "
            "about requests that come from then on"
        )
    return Path(settings.journal)


def off(target: Target, timeout: Timeout = 30.0, json: JsonOption = False) -> None:
    """Put a running server back into vLLM's own order, from its next step on.

    A file `SETTINGS.off` beside the settings says so; the settings themselves stay as they are.
    `lengthwise on` takes it away. Predictors stay loaded, so that the way back takes a step, too.

    Example: `lengthwise off http://localhost:8000`
    """
    _switch(target, True, timeout, json)


def on(target: Target, timeout: Timeout = 30.0, json: JsonOption = False) -> None:
    """Let the settings of a running server decide again, after `lengthwise off`.

    Example: `lengthwise on http://localhost:8000`
    """
    _switch(target, False, timeout, json)


def _switch(target: str, off: bool, timeout_s: float, as_json: bool) -> None:
    from lengthwise.cli.output import print_json
    from lengthwise.serve.whereabouts import settings_file, switch

    path = settings_file(target)
    engines = switch(path, off, timeout_s)
    if as_json:
        print_json({"settings": str(path), "off": off, "engines": engines}, pretty=False)
        return
    order = "vLLM's own order" if off else "the order of the settings"
    who = f"{engines} engine{'s'[: engines != 1]} in" if engines else "no engine answers yet for"
    print(f"{path}: {who} {order}")
