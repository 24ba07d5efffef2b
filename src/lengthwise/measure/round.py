"""One round of a run: one policy at one load, all requests of the workload once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

SCHEMA = "lengthwise.rounds/1"


@dataclass(frozen=True)
class RoundInfo:
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

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> RoundInfo:
        """Read what `to_json` gave; keys that this version does not know are left out.

        Raises:
            TypeError: a field without a default is missing.
        """
        known = {member.name for member in fields(cls)}
        found = {name: item for name, item in value.items() if name in known}
        for name in ("flags", "remarks"):
            lines = found.get(name)
            found[name] = tuple(lines) if isinstance(lines, list) else ()
        return cls(**found)  # type: ignore[arg-type]
