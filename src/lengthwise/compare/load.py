"""How requests are offered to the server in a round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lengthwise.errors import InputError
from lengthwise.workload import arrivals


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


def turns_of(load: Load, count: int) -> Turns | None:
    """The sessions among the first `count` requests; None where there are none."""
    if not isinstance(load, Trace) or load.turns is None:
        return None
    after, delays = load.turns.after[:count], load.turns.delay_s[:count]
    return Turns(after, [delay / load.speed for delay in delays])


def _require_positive(what: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{what} must be a number above 0, got {value}")
