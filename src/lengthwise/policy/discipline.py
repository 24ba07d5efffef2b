"""A policy with its parameters, guards and preemption rule: all that decides who runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from lengthwise.policy.guards import GUARDS, NEVER, guard_record
from lengthwise.policy.ranking import parameter_values, ranking_address
from lengthwise.policy.registry import Policy, Preemption, get_policy

#: Nobody overtakes an equal in these, but for those who were preempted and come back.
_IN_ORDER_OF_ARRIVAL: Final = ("fcfs", "priority")

#: What compiled code reads of a discipline.
RULES: Final = np.dtype(
    [
        ("reorders", np.bool_),  # the queue may be served in another order than its own
        ("preempts", np.bool_),
        ("greedy", np.bool_),
        ("pauses", np.bool_),
        ("peeks", np.bool_),
        ("counts_steps", np.bool_),
        ("reads_prefix_cache", np.bool_),
        ("service_time", np.bool_),
        ("measures_steps", np.bool_),
        ("predicts", np.bool_),
        ("refines", np.bool_),
        ("max_swaps", np.int64),
        ("max_preemptions", np.int64),
        ("blend", np.float64),
        ("memory_growth", np.float64),
        ("adapts", np.int64),  # place of the parameter that is "auto", -1 for none
    ],
    align=True,
)


@dataclass(frozen=True)
class Discipline:
    """Everything about ordering that a user sets, compiled and ready.

    Attributes:
        policy: the policy.
        parameters: its parameters, an array of one record.
        guards: array of one GUARDS record.
        preemption: "never", "pays" or "greedy".
        blend: share of admissions in policy order.
        max_preemptions: times that one request may be preempted for another.
        max_swaps: preemptions for newcomers in one step.
        memory_growth: weight of predicted growth in admission, 0 for none.
        service_time: whether ranks that are lengths count the prompt's work too.
        adapts: place among the parameters of the one that is "auto", -1 for none.
        pausing: whoever makes way is paused, as long as there is memory, and not preempted.
        peek: waiting requests are prefilled early, for the probe to read them.
    """

    policy: Policy
    parameters: NDArray[np.void]
    guards: NDArray[np.void] = field(default_factory=guard_record)
    preemption: Preemption = "never"
    blend: float = 1.0
    max_preemptions: int = 2
    max_swaps: int = 4
    memory_growth: float = 0.0
    service_time: bool = False
    adapts: int = -1
    pausing: bool = False
    peek: bool = False

    @cached_property
    def ranking(self) -> int:
        """The address of the policy's ranking; see `policy.ranking`. Compiled at the first look."""
        return ranking_address(self.policy)

    @cached_property
    def values(self) -> NDArray[np.float64]:
        """The parameters as a ranking takes them, in the same memory."""
        return parameter_values(self.parameters)

    @cached_property
    def rules(self) -> NDArray[np.void]:
        """An array of one RULES record."""
        return np.array(
            [
                (
                    not self.is_fcfs,
                    self.preempts,
                    self.preemption == "greedy",
                    self.pauses,
                    self.peeks,
                    self.counts_steps,
                    self.reads_prefix_cache,
                    self.service_time,
                    self.measures_steps,
                    self.needs_predictions,
                    self.refines,
                    self.max_swaps,
                    self.max_preemptions,
                    self.blend,
                    self.memory_growth,
                    self.adapts,
                )
            ],
            dtype=RULES,
        )

    @cached_property
    def counts_steps(self) -> bool:
        """Whether the guard against starvation is on, which counts steps."""
        return bool(self.guards["starvation_threshold"][0] < NEVER)

    @cached_property
    def shares_service(self) -> bool:
        """Whether tenants are told apart."""
        return bool(np.isfinite(self.guards["max_tenant_lead"][0]))

    @cached_property
    def is_fcfs(self) -> bool:
        """Whether the order is exactly that of the queue, so that nothing need be ranked."""
        return self.policy.name == "fcfs"

    @cached_property
    def preempts(self) -> bool:
        """Whether running requests may be preempted for waiting ones."""
        return not self.is_fcfs and self.preemption != "never"

    @cached_property
    def pauses(self) -> bool:
        """Whether running requests may be paused."""
        return self.preempts and self.pausing

    @cached_property
    def peeks(self) -> bool:
        """Whether waiting requests may be looked at before their turn."""
        return self.pauses and self.peek and self.refines

    @cached_property
    def reads_prefix_cache(self) -> bool:
        """Whether ranks depend on `cached_tokens`, which costs a look-up a request."""
        return self.policy.reads_prefix_cache or self.service_time

    @cached_property
    def measures_steps(self) -> bool:
        """Whether anything depends on what a step costs."""
        prices = self.preempts or self.service_time or self.needs_predictions
        return prices or self.adapts >= 0 or self.bounds_work

    @cached_property
    def bounds_work(self) -> bool:
        """Whether the guard that bounds the work done before a request is on."""
        return bool(np.isfinite(self.guards["max_lead"][0]))

    @cached_property
    def refines(self) -> bool:
        """Whether predictions made while a request decodes can change anything."""
        return self.needs_predictions and self.policy.refines

    @cached_property
    def needs_predictions(self) -> bool:
        """Whether a prediction can change anything."""
        return not self.is_fcfs and (
            self.policy.predicts or self.preempts or self.memory_growth > 0.0 or self.shares_service
        )


class DisciplineSettings(TypedDict, total=False):
    """What a discipline is made from beside its policy; defaults are those of `Discipline` and
    `guard_record`, and the meaning of each is given in the settings reference."""

    preemption: Preemption | None  # None: as the policy has it
    blend: float
    max_preemptions: int
    max_swaps: int
    memory_growth: float
    service_time: bool
    pausing: bool
    peek: bool
    max_overtakes: int | None
    overtake_share: float
    max_wait_s: float | None
    max_lead: float | None
    max_stall_s: float | None
    max_tenant_lead: float | None
    starvation_threshold: int | None
    starvation_quantum: int


def make_discipline(
    policy: str = "fcfs",
    *,
    parameters: Mapping[str, float | str] | None = None,
    **settings: Unpack[DisciplineSettings],
) -> Discipline:
    """A discipline from plain values.

    With `blend` 0 nothing is left of the policy: the discipline is that of fcfs.

    Args:
        policy: its name.
        parameters: the policy's own, of which one may be "auto".
        settings: see `DisciplineSettings`.

    Raises:
        InputError: an unknown policy or a parameter that it does not have.
        TypeError: an unknown setting.
    """
    given: dict[str, Any] = dict(settings)
    guards = {name: given.pop(name) for name in GUARDS.names or () if name in given}
    preemption = given.pop("preemption", None)
    follows = given.get("blend", 1.0) > 0.0
    if not follows:
        parameters = preemption = None
    chosen = get_policy(policy if follows else "fcfs")
    if chosen.name in _IN_ORDER_OF_ARRIVAL:
        guards["max_overtakes"] = guards["max_lead"] = None
    if chosen.name == "fcfs":  # which predicts nothing, whatever the classes
        given["memory_growth"], guards["max_tenant_lead"] = 0.0, None
    if not given.get("pausing", False):
        guards["max_stall_s"] = None
    if not chosen.predicts:
        given["service_time"] = False
    automatic = [name for name, value in (parameters or {}).items() if value == "auto"]
    return Discipline(
        policy=chosen,
        parameters=chosen.parameter_record(parameters or {}),
        guards=guard_record(**guards),
        preemption=preemption or chosen.preemption,
        adapts=list(chosen.parameters).index(automatic[0]) if automatic else -1,
        **given,
    )
