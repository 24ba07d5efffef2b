"""Sessions in the simulator: the next turn comes its delay after the answer to the last one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lengthwise.errors import InputError
from lengthwise.policy.discipline import make_discipline
from lengthwise.simulate.engine import EngineSettings, StepCost
from lengthwise.simulate.simulation import Simulation, simulate
from lengthwise.workload.trace import Trace

COST = StepCost(step_s=1.0, prefill_s=0.0, decode_s=0.0)


def sessions(after: list[int], delays: list[float], output: list[int]) -> Trace:
    n = len(after)
    return Trace(
        name="sessions",
        arrival_s=np.arange(n) * 0.01,
        prompt_tokens=np.full(n, 10),
        output_tokens=np.array(output),
        rejected=[],
        layout="made",
        after=np.array(after),
        delay_s=np.array(delays),
    )


def served(trace: Trace, policy: str = "fcfs", replicas: int = 1, slots: int = 2) -> Simulation:
    discipline = make_discipline(policy)
    predictions = np.repeat(trace.output_tokens[:, None].astype(float), 5, axis=1)
    return simulate(
        trace,
        discipline,
        COST,
        EngineSettings(slots=slots),
        predictions=predictions if discipline.needs_predictions else None,
        replicas=replicas,
    )


@pytest.mark.parametrize("policy", ["fcfs", "srpt"])
@pytest.mark.parametrize("replicas", [1, 3])
def test_every_turn_arrives_its_delay_after_the_last_one_ended(policy: str, replicas: int) -> None:
    random = np.random.default_rng(7)
    n, sessions_at_once = 300, 12
    after = [-1 if row < sessions_at_once else row - sessions_at_once for row in range(n)]
    delays = np.where(np.array(after) < 0, 0.0, random.integers(0, 20, n) / 4)
    trace = sessions(after, delays.tolist(), random.integers(1, 30, n).tolist())
    found = served(trace, policy, replicas)
    requests = found.requests
    assert np.isfinite(requests["finish_s"]).all()
    later = np.array(after) >= 0
    expected = requests["finish_s"][np.array(after)[later]] + delays[later]
    assert requests["arrival_s"][later].tolist() == expected.tolist()
    assert requests["arrival_s"][~later].tolist() == trace.arrival_s[~later].tolist()
    assert (requests["scheduled_s"] >= requests["arrival_s"]).all()
    assert found.requests.tobytes() == served(trace, policy, replicas).requests.tobytes()


def test_who_is_served_sooner_asks_sooner() -> None:
    """A closed loop never has more requests in the system than it has sessions."""
    n = 60
    after = [row - 3 if row >= 3 else -1 for row in range(n)]
    requests = served(sessions(after, [0.0] * n, [4] * n), slots=1).requests
    arrivals, ends = np.sort(requests["arrival_s"]), np.sort(requests["finish_s"])
    inside = np.arange(1, n + 1) - np.searchsorted(ends, arrivals, side="right")
    assert inside.max() <= 3
    longer = served(sessions(after, [0.0] * n, [8] * n), slots=1).requests
    assert longer["arrival_s"][n - 1] > 1.5 * requests["arrival_s"][n - 1]


def test_turns_that_cannot_be_are_refused() -> None:
    trace = sessions([-1, 0, 1], [0, 1, 1], [1, 1, 1])
    with pytest.raises(InputError, match="may wait for an earlier one"):
        replace(trace, after=np.array([-1, 2, 1]))
    with pytest.raises(InputError, match="no time below 0"):
        replace(trace, delay_s=np.array([0.0, -1.0, 1.0]))
    with pytest.raises(InputError, match="wait for the same one"):
        replace(trace, after=np.array([-1, 0, 0]))
    with pytest.raises(InputError, match="give what each"):
        replace(trace, after=np.array([-1]))
