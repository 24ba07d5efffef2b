"""Which settings mean something in front of an engine: a gateway takes back nothing it has sent."""

from __future__ import annotations

from typing import Final

from lengthwise.errors import InputError
from lengthwise.policy import get_policy
from lengthwise.policy.discipline import Discipline, make_discipline
from lengthwise.settings import Settings

#: what only an engine can do, with what to use instead, or why it is of no use
_ENGINES_OWN: Final = {
    "preemption": "a gateway preempts nothing that has begun: leave it out",
    "pausing": "a gateway pauses nothing that has begun: leave it out",
    "peek": "a gateway has no probe: leave it out",
    "memory_growth": "a gateway does not see the engine's memory: --max-inflight bounds it",
    "service_time": "a gateway does not know what a step costs: leave it out",
    "starvation_threshold": "it counts an engine's steps: use max_overtakes or max_wait_s",
    "shadow": "a gateway has no order but its own: use --policy fcfs",
    "stand_in": "the running median stands in: leave it out",
    "record": "there are no steps to record: --log DIR keeps answers",
    "journal": "there are no steps to record: --log DIR keeps answers",
    "metrics_port": "a gateway's metrics are on its own port, at /metrics",
}


def refuse_unsuited(settings: Settings) -> None:
    """Refuse what a gateway cannot do.

    Raises:
        InputError: a setting, or the policy, that needs to see into the engine.
    """
    for name, instead in _ENGINES_OWN.items():
        given = getattr(settings, name)
        if given not in (Settings.model_fields[name].default, "never"):
            raise InputError(f"setting {name!r} is for the scheduler inside an engine: {instead}")
    policy = get_policy(settings.policy)
    if policy.adapts is not None and policy.refines:
        raise InputError(
            f"policy {policy.name!r} corrects its predictions from the model's hidden states, "
            "which a gateway never sees: use srpt"
        )
    if policy.adapts is not None or policy.preemption == "greedy":
        raise InputError(
            f"policy {policy.name!r} decides which running request makes way, and a gateway can "
            "take back nothing that has begun: use srpt"
        )
    if policy.reads_prefix_cache:
        raise InputError(
            f"policy {policy.name!r} asks the engine's prefix cache, which a gateway cannot see: "
            "use srpt, or fcfs"
        )


def discipline_of(settings: Settings, slots: int) -> Discipline:
    """The order that the settings ask for, with so many answers in flight at most."""
    return make_discipline(**settings.discipline_arguments(slots) | {"preemption": "never"})
