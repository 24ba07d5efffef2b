"""What can be said of a settings file before any server starts with it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from lengthwise.errors import InputError, LengthwiseError, one_line
from lengthwise.policy.discipline import Discipline, make_discipline
from lengthwise.policy.prepass import warm_up
from lengthwise.predict.load import NO_PREDICTOR, load_predictor
from lengthwise.probe.probe_folder import Probe
from lengthwise.serve.command import model_path, probe_of
from lengthwise.serve.listen import why_not
from lengthwise.settings import Settings, off_path, read_settings

Verdict = Literal["ok", "dangerous", "refused"]
VERDICTS: Final[tuple[Verdict, ...]] = ("ok", "dangerous", "refused")  #: in order of exit codes

_SLOTS: Final = 256  # of the engine that the guards are shown for; no verdict depends on it
_MIB: Final = 1 << 20


@dataclass(frozen=True)
class Finding:
    """One line about a settings file.

    Attributes:
        verdict: "refused" where the engine would keep its last good settings, or not start;
            "dangerous" where it would do as it is told and somebody may regret it.
        says: what it is and, unless it is ok, what to do.
    """

    verdict: Verdict
    says: str


def check_settings(
    path: Path, model: str | None = None, probe: Path | None = None
) -> list[Finding]:
    """Look at a settings file and at all that it names. Nothing is written or left open.

    Args:
        path: the file.
        model: the model that will be served, as `lengthwise serve` takes it; a predictor and a
            probe are then checked against it.
        probe: the probe that will be read.

    Returns:
        What was found, refusals first; a file that is ok has one finding that says what it does.
    """
    try:
        settings, _ = read_settings(path)
        discipline = make_discipline(**settings.discipline_arguments(_SLOTS))
        if "#" in settings.policy:
            warm_up(discipline)  # a policy of the user's own may not compile
    except LengthwiseError as error:
        return [Finding("refused", one_line(error))]
    except (Exception, SystemExit) as error:  # whatever the policy's file does
        says = f"{type(error).__name__}: {one_line(error)}"
        return [Finding("refused", f"the policy cannot be used: {says}")]
    found = [Finding("refused", says) for says in _refusals(settings, discipline, model, probe)]
    found += [Finding("dangerous", says) for says in _dangers(path, settings, discipline)]
    if not found:
        found = [Finding("ok", _described(settings, discipline))]
    return found + [Finding("ok", says) for says in _remarks(path, settings, discipline)]


def worst(findings: list[Finding]) -> int:
    """The exit code: 0 where all is ok, 1 where something is dangerous, 2 where it is refused."""
    return max((VERDICTS.index(each.verdict) for each in findings), default=0)


def _described(settings: Settings, discipline: Discipline) -> str:
    spec = discipline.policy.predictor or settings.predictor
    parts = [f"policy {settings.policy}"]
    if settings.shadow:
        parts.append("in shadow: the order is that of stock vLLM")
    if discipline.needs_predictions:
        parts.append(f"predictor {spec}")
    if not discipline.is_fcfs:
        parts.append(f"preemption {discipline.preemption}")
        if settings.pauses:
            parts.append(f"pausing {settings.pausing}".lower())
        parts.append(f"max_overtakes {settings.max_overtakes}")
        if settings.max_lead is not None:
            parts.append(f"max_lead {settings.max_lead}")
    return ", ".join(parts)


def _refusals(
    settings: Settings, discipline: Discipline, model: str | None, probe: Path | None
) -> Iterator[str]:
    tokenizer = None
    try:
        if model is not None and Path(model_path(model)).is_dir():
            tokenizer = model_path(model)
    except InputError as error:
        yield one_line(error)
    spec = discipline.policy.predictor or settings.predictor
    wanted = {"predictor": spec, "stand_in": settings.stand_in}
    for name, given in wanted.items():
        if given is None or given == NO_PREDICTOR or not discipline.needs_predictions:
            continue
        try:
            load_predictor(given, tokenizer=tokenizer)
        except Exception as error:  # a damaged artifact may fail in many ways
            yield f"{name}: {one_line(error)}"
    if probe is not None:
        try:
            if tokenizer is not None:
                probe_of(probe, None, tokenizer)
            else:
                Probe.load(probe)
        except Exception as error:
            yield f"probe: {one_line(error)}"
    for name, folder in _folders(settings):
        above = _nearest(folder)
        if not above.is_dir():
            yield f"{name}: {above} is not a folder: name another"
        elif not os.access(above, os.W_OK | os.X_OK):
            yield f"{name}: cannot write to {above}: name another folder, or change its owner"
    yield from _refused_port(settings)


def _refused_port(settings: Settings) -> Iterator[str]:
    """A port that is in use is none: the engine takes the next free one."""
    if settings.metrics_port is None:
        return
    host = settings.metrics_host or ""
    try:
        family = socket.getaddrinfo(host or "0.0.0.0", settings.metrics_port)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((host, settings.metrics_port))
    except (OSError, UnicodeError) as error:
        lasts = PermissionError | socket.gaierror | UnicodeError
        if isinstance(error, lasts) or error.errno == errno.EADDRNOTAVAIL:
            yield (
                f"metrics_port {settings.metrics_port} cannot be opened at {host or 'any address'}:"
                f" {why_not(error)}; choose another"
            )


def _dangers(path: Path, settings: Settings, discipline: Discipline) -> Iterator[str]:
    bounds = settings.max_overtakes, settings.max_lead, settings.max_wait_s
    bounded = any(bound is not None for bound in bounds)
    greedy = discipline.preempts and discipline.preemption == "greedy"
    if not discipline.is_fcfs and discipline.policy.name != "priority" and not bounded:
        yield (
            "max_overtakes, max_lead and max_wait_s are off: nothing bounds how long a request "
            "can wait"
            + (", and greedy preemption throws out running ones for it" if greedy else "")
            + "; set one of them"
        )
    if greedy and bounded:
        yield (
            'preemption "greedy" recomputes what it throws out whatever that costs: "pays" '
            "preempts where it is worth it"
        )
    if settings.length_log is not None and settings.length_log.text:
        yield (
            "length_log.text writes users' prompts to disk: leave it out unless they may be kept"
        )
    if settings.policy == "priority" or settings.client_priority:
        yield (
            "any client can go ahead of all others, since the priority that a request carries is "
            "believed: only for clients that you trust"
        )
    spec = discipline.policy.predictor or settings.predictor
    if discipline.needs_predictions:
        if spec is not None and spec.partition(":")[0] in ("oracle", "noisy-oracle"):
            yield (
                f"{spec} believes the length that a client says its answer will have "
                "(lengthwise_true_tokens): for benchmarks alone"
            )
        elif settings.tau_floor is None and spec != NO_PREDICTOR:
            yield "tau_floor is off: predictions that have gone wrong decide on; 0.1 is the default"
    if settings.record is not None:
        yield "record grows without bound: for benchmarks and for hours, not for weeks"
        if not Path(settings.record).is_absolute():
            yield f"record {settings.record!r} is relative to where vLLM starts: give a whole path"
    log = settings.length_log
    if log is not None and (above := _nearest(Path(log.folder))).is_dir():
        free = shutil.disk_usage(above).free // _MIB
        if free < log.megabytes:
            yield (
                f"length_log may take {log.megabytes} MiB and the disk has {free} MiB left: "
                "set fewer megabytes"
            )
    for key in _repeated_keys(path):
        yield f"{key!r} is given more than once, and the last one counts: keep one"
    if path.stat().st_mode & stat.S_IWOTH:
        yield f"everybody on this machine may change {path}: chmod o-w {path}"


def _remarks(path: Path, settings: Settings, discipline: Discipline) -> Iterator[str]:
    if off_path(path).exists():
        yield f"{off_path(path)} is there: whatever the settings say, the order is fcfs"
    if settings.predictor == NO_PREDICTOR and discipline.policy.predicts:
        yield "predictor none: the order is fcfs until there is one"
    if not os.access(path.parent, os.W_OK):
        yield (
            f"{path.parent} cannot be written to, so there will be no status file and no switch "
            "by `lengthwise off`: change the policy in the file itself"
        )


def _folders(settings: Settings) -> Iterator[tuple[str, Path]]:
    if settings.record is not None:
        yield "record", Path(settings.record)
    if settings.length_log is not None:
        yield "length_log", Path(settings.length_log.folder)
    if settings.journal is not None:
        yield "journal", Path(settings.journal)


def _nearest(folder: Path) -> Path:
    """The folder, or what is there of the way to it; the engine makes the rest."""
    return next(each for each in (folder, *folder.absolute().parents) if os.path.lexists(each))


def _repeated_keys(path: Path) -> list[str]:
    repeated: list[str] = []

    def note(pairs: list[tuple[str, object]]) -> dict[str, object]:
        seen: dict[str, object] = {}
        for key, value in pairs:
            if key in seen:
                repeated.append(key)
            seen[key] = value
        return seen

    json.loads(path.read_bytes(), object_pairs_hook=note)
    return repeated
