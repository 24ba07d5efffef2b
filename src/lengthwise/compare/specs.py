"""Policies and loads as users write them, and how a load offers requests in a round."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lengthwise.errors import InputError
from lengthwise.policy import get_policy
from lengthwise.settings import Settings, parse_spec
from lengthwise.workload import arrivals
from lengthwise.workload.column_files import open_columns
from lengthwise.workload.trace import load_trace
from lengthwise.workload.trace_rows import Origin, read_seconds, why_no_time


def parse_policies(
    specs: Iterable[str], predictor: str | None, *, pausing: bool = False
) -> dict[str, Settings]:
    """Settings by label, from policy specs separated by commas.

    A comparison is of bare policies: overtaking is bounded, and poor predictions are not followed,
    where a spec says so (in `serve` that is the default).

    Args:
        specs: such as `fcfs,srpt:max_overtakes=50;blend=0.9`; the spec is the label.
        predictor: what policies predict with that do not name a predictor of their own.
        pausing: whoever makes way keeps its KV, where a spec does not say otherwise.

    Raises:
        InputError: a spec is wrong, given twice, or needs a predictor and has none.
    """
    labels = [label.strip() for text in specs for label in text.split(",") if label.strip()]
    if not labels:
        raise InputError("no policy was given: for example --policy fcfs,srpt")
    settings: dict[str, Settings] = {}
    for label in labels:
        if label in settings:
            raise InputError(f"policy {label!r} was given twice: give each once, use --repeats")
        policy = get_policy(label.partition(":")[0])
        if policy.predicts and not (predictor or policy.predictor or "predictor=" in label):
            raise InputError(
                f"policy {label!r} needs a predictor: add --predictor DIR (`lengthwise train` "
                "makes one), or --predictor noisy-oracle:0.5 to try it without"
            )
        bare = Settings(
            predictor=predictor,
            max_overtakes=None,
            max_lead=None,
            tau_floor=None,
            pausing=pausing and "auto",
        )
        settings[label] = parse_spec(label, bare)
    return settings


def parse_loads(
    loads: Iterable[str],
    rates: Iterable[float],
    clients: Iterable[int],
    *,
    burst: bool,
    trace: Trace | None,
) -> list[Load]:
    """The loads of a comparison, from the options that name them; a burst without any.

    Args:
        loads: multiples of capacity, or `burst`; each text may hold several, with commas.
        rates: requests per second.
        clients: clients of closed loops.
        burst: all requests at once.
        trace: recorded arrivals.

    Raises:
        InputError: a load is not a number above 0.
    """
    chosen: list[Load] = []
    for name in (name.strip() for text in loads for name in text.split(",") if name.strip()):
        if name == "burst":
            chosen.append(Burst())
            continue
        try:
            chosen.append(Capacity(float(name)))
        except ValueError:
            raise InputError(
                f"--load {name!r} is neither a number (1.05: just above capacity) nor 'burst'"
            ) from None
    chosen += [Rate(rate) for rate in rates]
    chosen += [Clients(count) for count in clients]
    if trace is not None:
        chosen.append(trace)
    if burst:
        chosen.append(Burst())
    return list(dict.fromkeys(chosen)) or [Burst()]


def read_trace(path: Path, speed: float) -> Trace:
    """Recorded arrivals: of a trace in any layout, or a column `arrival_s` of a parquet file.

    Raises:
        InputError: no such file, or nothing in it says when requests arrived.
    """
    if path.suffix == ".parquet":
        columns = open_columns(path)
        if "arrival_s" in columns.names:
            cells = columns.read("arrival_s")
            times = read_seconds(cells, 1.0, Origin())
            if not np.isfinite(times).all():
                row = int(np.argmin(np.isfinite(times)))
                why = why_no_time("arrival_s", cells[row].as_py())
                raise InputError(f"{path}, row {row + 1}: {why}")
            return Trace(tuple(times.tolist()), speed)
    # Whatever lengths it has: requests have their own.
    trace = load_trace(path, answer_tokens=1)
    trace.refuse_rejected()
    turns = None
    if trace.after is not None and trace.delay_s is not None:
        turns = Turns(tuple(trace.after.tolist()), tuple(trace.delay_s.tolist()))
    return Trace(tuple(trace.arrival_s.tolist()), speed, turns)


@dataclass(frozen=True)
class Burst:
    """All requests at once: the comparison does not depend on a clock.

    `count` is said where a run has bursts of several sizes; it is how many requests there are.
    """

    count: int | None = None

    @property
    def label(self) -> str:
        """How tables and records name it."""
        return "burst" if self.count is None else f"burst={self.count}"


@dataclass(frozen=True)
class Capacity:
    """Random arrivals whose work is `factor` times what the engine gets done in their time."""

    factor: float

    def __post_init__(self) -> None:
        """Raise InputError for a factor that makes no sense."""
        _require_positive("a load", self.factor)

    @property
    def label(self) -> str:
        """How tables and records name it."""
        return f"{self.factor:g}"


@dataclass(frozen=True)
class Rate:
    """Random arrivals, `per_second` requests a second."""

    per_second: float

    def __post_init__(self) -> None:
        """Raise InputError for a rate that makes no sense."""
        _require_positive("a rate", self.per_second)

    @property
    def label(self) -> str:
        """How tables and records name it."""
        return f"rate={self.per_second:g}"


@dataclass(frozen=True)
class Clients:
    """A closed loop: `count` clients, each sending its next request when the last is answered."""

    count: int

    def __post_init__(self) -> None:
        """Raise InputError for no clients."""
        _require_positive("the number of clients", self.count)

    @property
    def label(self) -> str:
        """How tables and records name it."""
        return f"concurrency={self.count}"


class Turns(NamedTuple):
    """Sessions: whose end each request waits for, by place; −1 for none."""

    after: Sequence[int]
    delay_s: Sequence[float]  #: from that end to when the request is sent

    def followers(self) -> dict[int, int]:
        """The place of the request that waits for each one, where one does."""
        return {before: place for place, before in enumerate(self.after) if before >= 0}


@dataclass(frozen=True)
class Trace:
    """Recorded arrival times (s), played `speed` times faster.

    Later turns of sessions come their delay after the turn before them was answered, however long
    that takes; only the delays get shorter.
    """

    times_s: Sequence[float]
    speed: float = 1.0
    turns: Turns | None = None

    def __post_init__(self) -> None:
        """Raise InputError for a speed that makes no sense."""
        _require_positive("the speed of a trace", self.speed)

    @property
    def label(self) -> str:
        """How tables and records name it."""
        return f"trace={self.speed:g}"


Load = Burst | Capacity | Rate | Clients | Trace


def arrival_times(
    load: Load, count: int, *, cv: float, seed: int, capacity_requests_per_s: float
) -> list[float] | None:
    """When each of `count` requests is sent, in s from the start of the round.

    Args:
        load: how requests are offered.
        count: number of requests.
        cv: coefficient of variation of random gaps; 1 is Poisson.
        seed: same seed, same times.
        capacity_requests_per_s: requests of this workload that the engine finishes a second.

    Returns:
        The times, or None for a closed loop.
    """
    match load:
        case Clients():
            return None
        case Burst():
            times = arrivals.burst(count)
        case Capacity(factor):
            rate = factor * capacity_requests_per_s
            times = arrivals.gamma(count, rate, cv, seed)
            # A few hundred random gaps miss their mean by several per cent, as much as the loads
            # that are compared differ: stretch them to the rate that was asked for.
            times *= count / rate / times[-1]
        case Rate(per_second):
            times = arrivals.gamma(count, per_second, cv, seed)
        case Trace(times_s, speed):
            times = arrivals.replay(times_s, count, speed)
    return [float(time) for time in times]


class Offer(NamedTuple):
    """How requests come in a round: at times, or as fast as some clients get answers."""

    scheduled_s: Sequence[float] | None = None  #: when each is sent, from the start; None: a loop
    turns: Turns | None = None  #: sessions among the requests, by place
    clients: int | None = None  #: the number of clients of a closed loop

    @classmethod
    def at_once(cls, count: int) -> Offer:
        """All of so many requests at the start."""
        return cls([0.0] * count)


def offer_of(
    load: Load, count: int, *, cv: float, seed: int, capacity_requests_per_s: float
) -> Offer:
    """How `count` requests come under a load; see `arrival_times`."""
    return Offer(
        arrival_times(
            load, count, cv=cv, seed=seed, capacity_requests_per_s=capacity_requests_per_s
        ),
        turns_of(load, count),
        load.count if isinstance(load, Clients) else None,
    )


def turns_of(load: Load, count: int) -> Turns | None:
    """The sessions among the first `count` requests; None where there are none."""
    if not isinstance(load, Trace) or load.turns is None:
        return None
    after, delays = load.turns.after[:count], load.turns.delay_s[:count]
    return Turns(after, [delay / load.speed for delay in delays])


def _require_positive(what: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{what} must be a number above 0, got {value}")
