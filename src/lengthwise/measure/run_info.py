"""What was run: `run.json`, the file that lets somebody else repeat a measurement."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Final

LIVE: Final = "live"  #: an engine that computes its steps, on the wall's clock
VIRTUAL: Final = "virtual"  #: vLLM without its forward pass, on a clock of its own

SCHEMA = "lengthwise.run/1"


@dataclass(frozen=True)
class RunInfo:
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
        return {"schema": SCHEMA, **asdict(self), "notes": list(self.notes)}

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> RunInfo:
        """Read what `to_json` gave; keys that this version does not know are left out.

        Raises:
            TypeError: a field without a default is missing.
        """
        known = {member.name for member in fields(cls)}
        found = {name: item for name, item in value.items() if name in known}
        notes = found.get("notes")
        found["notes"] = tuple(notes) if isinstance(notes, list) else ()
        return cls(**found)  # type: ignore[arg-type]


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
