"""The settings: everything about scheduling that may change while serving, checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from lengthwise.errors import InputError, one_line, unknown_name
from lengthwise.files import replace_file
from lengthwise.policy import Preemption, get_policy

#: of those waiting when a request came: what may overtake it besides one for each slot, where
#: `max_overtakes` is "auto". See docs/background/guards.md for what it costs, and p99 with it.
OVERTAKE_SHARE: Final = 0.5

#: `max_lead` where it is "auto", in requests: without pauses and with them, which take of the same
#: tail. See the same page and bench/guards.py.
MAX_LEAD: Final = 110.0
MAX_LEAD_PAUSING: Final = 75.0


MOST: Final = 2**31 - 1  #: steps, requests or preemptions: what a column of the table holds
_MOST_SWAPS: Final = 4096


class LengthLogSettings(BaseModel):
    """Where the length log is kept, and how much of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str = Field(min_length=1, description="its folder, made if missing")
    megabytes: int = Field(
        default=64, ge=1, le=1 << 30, description="of all segments together; the oldest make room"
    )
    text: bool = Field(default=False, description="write the text of prompts as well")


class Settings(BaseModel):
    """What the scheduler does. The defaults are safe: fcfs, which is stock vLLM's order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: str = Field(default="fcfs", description="name of a registered policy, or MODULE#NAME")
    parameters: dict[str, FiniteFloat | Literal["auto"]] = Field(
        default={}, description="the policy's own parameters; trail's c may be auto"
    )
    predictor: str | None = Field(
        default=None,
        description="artifact folder, or oracle, noisy-oracle:TAU, prompt-length, declared, none",
    )
    tau_floor: float | None = Field(
        default=0.1,
        ge=-1.0,
        le=1.0,
        description="while the rolling Kendall tau of predictions is below, the order is that of "
        "fcfs; null: predictions are always believed",
    )
    stand_in: str | None = Field(
        default=None,
        description="predictor that fills in until a slow one (kind encoder) has answered; null: "
        "the running median of predictions",
    )
    preemption: Preemption | None = Field(
        default=None, description="never, pays or greedy; null: the policy's default"
    )
    max_preemptions: int = Field(
        default=2, ge=0, le=MOST, description="times that one request may be preempted for another"
    )
    max_swaps: int = Field(
        default=4, ge=1, le=_MOST_SWAPS, description="preemptions for newcomers in one step"
    )
    pausing: bool | Literal["auto"] = Field(
        default=False,
        description="a request that makes way keeps its KV and its place in the worker, as long as "
        "there is memory, and goes on later with nothing computed again; auto: where that can be",
    )
    peek: bool | Literal["auto"] = Field(
        default=False,
        description="with pausing and a probe: waiting requests are prefilled early where that is "
        "cheap, and are then ordered by what the probe read; auto: where that can be",
    )
    max_stall_s: float | None = Field(
        default=10.0,
        gt=0,
        le=MOST,
        description="a request that has been paused for this many seconds goes on ahead of all "
        "others; null: no bound",
    )
    blend: float = Field(
        default=1.0,
        ge=0.0,
        le=1.0,
        description="share of admissions in policy order; the others go to the longest queued: "
        "0 is exact fcfs, 1 the policy alone",
    )
    max_overtakes: Annotated[int, Field(ge=0, le=MOST)] | Literal["auto", "slots"] | None = Field(
        default="auto",
        description="later arrivals, of its class or a lower one, that may get a slot before a "
        "request does; slots: "
        f"one for each slot, and an overtake_share of {OVERTAKE_SHARE}; null: no bound; auto: "
        "slots, but where requests are paused no bound, and max_lead bounds them instead",
    )
    overtake_share: float = Field(
        default=0.0,
        ge=0.0,
        le=MOST,
        description="how many more may do so for each request of its class that waited when it "
        "came, so that the bound grows with the queue",
    )
    max_wait_s: float | None = Field(
        default=None,
        gt=0,
        le=MOST,
        description="a request that waited this many seconds goes ahead of all others",
    )
    max_tenant_lead: float | None = Field(
        default=None,
        ge=0,
        le=MOST,
        description="tokens of service that a tenant may be ahead of another one that waits, "
        "before its requests go behind all others; null: tenants are not told apart",
    )
    max_lead: Annotated[float, Field(ge=0.0, le=MOST)] | Literal["auto"] | None = Field(
        default=None,
        description="a request goes ahead of all others once the engine has done, since it came, "
        "the most work that waited at once meanwhile and that of this many mean requests; auto: "
        f"{MAX_LEAD:g}, or {MAX_LEAD_PAUSING:g} with pausing; null: no bound, but see "
        "max_overtakes",
    )
    starvation_threshold: int | None = Field(
        default=None,
        ge=1,
        le=MOST,
        description="LTR's N: steps without running after which a request is promoted",
    )
    starvation_quantum: int = Field(
        default=10,
        ge=1,
        le=MOST,
        description="LTR's M: steps that a promoted request keeps its promotion",
    )
    client_priority: bool = Field(
        default=False,
        description="believe the priority that a request carries although vLLM runs without "
        "--scheduling-policy priority: any client can then go ahead of all others",
    )
    memory_growth: float = Field(
        default=0.0,
        ge=0.0,
        le=1000.0,
        description="admit only if the predicted peak of KV blocks, with growth counted this many "
        "times, fits; 0: as stock vLLM",
    )
    service_time: bool = Field(
        default=False,
        description="rank by predicted time and not by tokens: prompt tokens that are not cached "
        "count too, at what they were measured to cost",
    )
    shadow: bool = Field(
        default=False,
        description="decide nothing: the order is that of stock vLLM, and what the policy would "
        "have changed is told",
    )
    record: str | None = Field(
        default=None,
        description="folder for one line per step and per finished request (no prompts)",
    )
    journal: str | None = Field(
        default=None,
        min_length=1,
        description="folder for a journal of at most 64 MiB of who came, ran and was put back, "
        "which lengthwise explain reads (no prompts)",
    )
    length_log: LengthLogSettings | None = Field(
        default=None,
        description="folder, megabytes (64) and text (false): a log of hashed features and answer "
        "lengths to train from (no prompts unless text is true)",
    )
    metrics_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="port for Prometheus metrics of the scheduler; engine i of a data-parallel "
        "server takes the i-th behind it, and where a port is in use, the next free one",
    )
    metrics_host: str | None = Field(
        default=None, min_length=1, description="address of that port; null: every address"
    )

    @property
    def believes_priority(self) -> bool:
        """Whether a request's own class counts although vLLM's order does not go by it."""
        return not self.shadow and (self.client_priority or self.policy == "priority")

    @property
    def pauses(self) -> bool:
        """Whether whoever makes way is to be paused: the policy lets running requests make way."""
        makes_way = (self.preemption or get_policy(self.policy).preemption) != "never"
        return bool(self.pausing) and makes_way and self.blend > 0.0

    def bounds_for(self, slots: int) -> dict[str, float | None]:
        """The bounds on overtaking and on leads in an engine with so many slots
        (`max_num_active_seqs`)."""
        heads, share, lead = self.max_overtakes, self.overtake_share, self.max_lead
        if heads == "auto" and self.pauses:
            # Counted heads look at waiting requests only, and a pause takes of the same tail.
            heads, share, lead = None, 0.0, "auto" if lead is None else lead
        if isinstance(heads, str):
            heads, share = slots, max(share, OVERTAKE_SHARE)
        if lead == "auto":
            lead = MAX_LEAD_PAUSING if self.pauses else MAX_LEAD
        return {"max_overtakes": heads, "overtake_share": share, "max_lead": lead}

    def discipline_arguments(self, slots: int) -> dict[str, Any]:
        """The arguments of `make_discipline` for an engine with so many slots."""
        same = (
            "policy",
            "parameters",
            "preemption",
            "blend",
            "max_wait_s",
            "starvation_threshold",
            "starvation_quantum",
            "max_preemptions",
            "max_swaps",
            "memory_growth",
            "service_time",
            "max_stall_s",
            "max_tenant_lead",
        )
        arguments = {name: getattr(self, name) for name in same}
        arguments["pausing"], arguments["peek"] = bool(self.pausing), bool(self.peek)
        return arguments | self.bounds_for(slots)

    def write(self, path: Path) -> str:
        """Write the settings as a file, atomically.

        Returns:
            The SHA-256 of the file's bytes, which the status file repeats once it is active.
        """
        data = (json.dumps(self.model_dump(), indent=2) + "\n").encode()
        replace_file(path, data)
        return hashlib.sha256(data).hexdigest()


def parse_settings(values: Mapping[str, Any]) -> Settings:
    """Check settings given as a mapping.

    Raises:
        InputError: an unknown key (with the nearest name), a value out of range, an unknown
            policy, a parameter that the policy does not have, or no predictor where it needs one.
    """
    for key in values:
        if key not in Settings.model_fields:
            raise unknown_name("setting", key, Settings.model_fields)
    try:
        settings = Settings.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        # Only these have names of their own below that of the setting.
        depth = 2 if first["loc"][0] in ("parameters", "length_log") else 1
        where = ".".join(str(part) for part in first["loc"][:depth])
        given = one_line(first["input"], repr)
        raise InputError(f"setting {where!r}: {first['msg']} (got {given})") from error
    for name in (settings.predictor, settings.stand_in):
        if name is not None and name.partition(":")[0] == "perception-only":
            raise InputError(
                f"predictor {name!r} asks a server about each prompt, and no step can wait for "
                "that: it is for lengthwise evaluate"
            )
    if settings.peek is True and not settings.pausing:
        raise InputError(
            "setting 'peek': who was looked at is paused until its turn comes: set pausing, too"
        )
    policy = get_policy(settings.policy)
    policy.parameter_record(settings.parameters)
    if policy.predicts and not (settings.predictor or policy.predictor):
        raise InputError(
            f"policy {settings.policy!r} needs a predictor: the folder of an artifact made by "
            "'lengthwise train', or declared; none until there is one"
        )
    return settings


def parse_spec(spec: str, base: Settings | None = None) -> Settings:
    """Settings from a policy as written on a command line: NAME or NAME:key=value;key=value.

    Keys are settings (`max_overtakes=50`) or parameters of the policy (`c=0.5`). `off` stands for
    null.

    Args:
        spec: the text.
        base: settings that the spec does not mention are taken from here.

    Raises:
        InputError: the spec, a name or a value is wrong.
    """
    base = base or Settings()
    name, _, options = spec.partition(":")
    policy = get_policy(name)
    values = base.model_dump()
    values["policy"] = name
    parameters: dict[str, float | str] = {}
    for option in filter(None, options.split(";")):
        key, separator, text = option.partition("=")
        if not separator:
            raise InputError(f"policy {spec!r}: {option!r} must be key=value")
        if key in policy.parameters:
            try:
                parameters[key] = text if text == "auto" else float(text)
            except ValueError as error:
                raise InputError(f"policy {spec!r}: {key} must be a number") from error
        elif key in Settings.model_fields and key not in ("policy", "parameters"):
            values[key] = None if text == "off" else text
        else:
            known = [*Settings.model_fields, *policy.parameters]
            raise unknown_name(f"option of policy {name!r}", key, known)
    if parameters or name != base.policy:
        values["parameters"] = parameters
    if policy.predictor is not None:
        values["predictor"] = policy.predictor
    return parse_settings(values)
