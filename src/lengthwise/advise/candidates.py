"""The policies and bounds that a tuner chooses from."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from lengthwise.advise.objectives import MAX_WAIT, Cap

# How many may overtake, times slots, and for each that a request found waiting; and shares of
# admissions in policy order. From the tightest, since of two that are equally good the first is
# taken.
_OVERTAKES: Final = (
    *((0.5, 0.0), (1.0, 0.0), (2.0, 0.0)),
    *((1.0, 0.25), (1.0, 0.5), (1.0, 1.0)),
    *((5.0, 0.0), (20.0, 0.0)),
)
_LEADS: Final = (50.0, 110.0)  # mean requests that may be served before one beyond the queue
_BLENDS: Final = (1.0, 0.95, 0.9, 0.7, 0.5)

#: Orders that do not preempt, and their refinements that do. Of those alike one is enough: ltr
#: orders as sjf does, since an expected length grows with the score, and so does an srpt or a trail
#: that never preempts.
ORDERS: Final = ("sjf", "hrrn")
REFINEMENTS: Final[tuple[tuple[str, dict[str, float]], ...]] = (
    ("srpt", {}),
    ("trail", {"c": 0.2}),
    ("trail", {"c": 0.5}),
    ("trail", {"c": 0.8}),
)
#: The same where whoever makes way keeps its KV, with bounds on its stall, s, the tightest first;
#: with a probe, also with looks at requests before their turn.
PAUSING: Final[tuple[tuple[str, dict[str, float]], ...]] = (("srpt", {}), ("gittins", {}))
_STALLS_S: Final = (2.0, 10.0)


@dataclass(frozen=True)
class Candidate:
    """Something to choose.

    Attributes:
        policy: its name.
        parameters: of the policy.
        guards: the other arguments of `make_discipline` that are not the defaults.
    """

    policy: str
    parameters: dict[str, float] = field(default_factory=dict)
    guards: dict[str, Any] = field(default_factory=dict)

    @property
    def discipline(self) -> dict[str, Any]:
        """The arguments of `make_discipline`, which are settings of `serve` too."""
        return {"policy": self.policy, "parameters": self.parameters, **self.guards}

    @property
    def label(self) -> str:
        """As `lengthwise simulate --policy` takes it."""
        options = {**self.parameters, **self.guards}.items()
        shown = ";".join(f"{name}={str(value).lower()}" for name, value in options)
        return f"{self.policy}:{shown}" if shown else self.policy


def orders(slots: int, caps: Sequence[Cap] = ()) -> Iterator[Candidate]:
    """Every order with every bound, the simplest and tightest first.

    Args:
        slots: of the engine, in which bounds on overtaking are counted.
        caps: one on waiting adds a bound on waiting, at half of it.
    """
    bounds: list[dict[str, Any]] = [
        {"max_overtakes": max(1, int(times * slots))} | ({"overtake_share": share} if share else {})
        for times, share in _OVERTAKES
    ]
    bounds += [{"max_lead": lead} for lead in _LEADS]
    bounds += [{"max_wait_s": 0.5 * cap.limit} for cap in caps if cap.metric == MAX_WAIT]
    for policy, bound, blend in itertools.product(ORDERS, (*bounds, {}), _BLENDS):
        yield Candidate(policy, {}, bound | ({"blend": blend} if blend < 1.0 else {}))


def refinements(
    bounds: Iterable[dict[str, Any]], pauses: bool = False, looks: bool = False
) -> Iterator[Candidate]:
    """Every preempting policy with each of these bounds.

    Args:
        bounds: arguments of `make_discipline`.
        pauses: there are places for paused requests.
        looks: there is a probe, which reads prompts before their turn.
    """
    bounds = list(bounds)
    for guards, (policy, parameters) in itertools.product(bounds, REFINEMENTS):
        yield Candidate(policy, parameters, guards)
    if not pauses:
        return
    peeks: tuple[dict[str, Any], ...] = ({}, {"peek": True}) if looks else ({},)
    for guards, (policy, parameters), stall_s, peek in itertools.product(
        bounds, PAUSING, _STALLS_S, peeks
    ):
        pausing = {"pausing": True, "max_stall_s": stall_s, **peek}
        yield Candidate(policy, parameters, {**guards, **pausing})


def grid(
    slots: int, caps: Sequence[Cap] = (), pauses: bool = False, looks: bool = False
) -> Iterator[Candidate]:
    """Every policy with every bound, for an exhaustive search."""
    found = list(orders(slots, caps))
    yield from found
    bounds = (each.guards for each in found if each.policy == ORDERS[0])
    yield from refinements(bounds, pauses, looks)
