"""Bounded lead: what may be done before a request, against an adversary who says all lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.policy.discipline import make_discipline
from lengthwise.policy.guards import BEHIND, guard_record, hastened, lateness, tier
from lengthwise.policy.prepass import StepOrder
from lengthwise.request import RUNNING, WAITING, new_table
from lengthwise.simulate.engine_settings import EngineSettings
from lengthwise.simulate.simulation import Simulation, simulate
from lengthwise.simulate.step_cost import StepCost
from lengthwise.workload.trace import Trace
from tests.support.step_facts import facts_of

COST = StepCost(1e-2, 0.0, 0.0)  # every step takes as long, whatever is in it
STEP_S = 1e-2
#: Output tokens that a prefilled one can cost at most, by the least and the dearest prices that are
#: measured of such steps: each has a floor.
PRICE = 1.0


@dataclass(frozen=True)
class Game:
    """What an adversary chooses."""

    arrival_s: list[float]
    answers: list[int]
    said: list[float]
    slots: int
    max_lead: float


@st.composite
def games(draw: st.DrawFn) -> Game:
    n = draw(st.integers(2, 40))
    times = draw(st.lists(st.floats(0.0, 1.0), min_size=n, max_size=n))
    # A victim that seems long, and others that seem short, rightly or wrongly.
    said = draw(st.lists(st.sampled_from([1.0, 5.0, 40.0]), min_size=n, max_size=n))
    answers = draw(st.lists(st.sampled_from([1, 5, 40]), min_size=n, max_size=n))
    return Game(
        sorted(times),
        answers,
        said,
        draw(st.integers(1, 3)),
        draw(st.sampled_from([0.0, 1.0, 4.0])),
    )


def played(game: Game, **guards: Any) -> Simulation:
    n = len(game.answers)
    trace = Trace(
        "game",
        np.array(game.arrival_s),
        np.ones(n, np.int64),
        np.array(game.answers),
        [],
        "synthetic",
    )
    said = np.array(game.said)
    return simulate(
        trace,
        make_discipline("sjf", **guards),
        COST,
        EngineSettings(slots=game.slots),
        predictions=np.stack([said] * 5, axis=1),
        log_steps=True,
    )


def excess(game: Game, served: Simulation) -> float:
    """By how much work the promise is broken for whom it is broken most; not above 0 if kept.

    From its arrival to its first step the engine does at most: what was said to wait at once, at
    most; `max_lead` requests as they have been on average; what those that came earlier and wait
    still truly take; and what the batch takes until its slots are free, twice: once before the
    order is looked at, and once behind the request's turn.
    """
    requests, steps = served.requests, served.steps
    prompts = np.array([PRICE] * len(requests))
    done = np.cumsum(steps["decode_tokens"] + PRICE * steps["prefill_tokens"])
    admitted = np.cumsum(steps["prefill_tokens"])  # prompts have one token
    worst = -np.inf
    for i, request in enumerate(requests):
        began, came = request["scheduled_s"], request["arrival_s"]
        before = np.searchsorted(steps["start_s"], came - 1e-9)
        start = np.searchsorted(steps["start_s"], began - 1e-9)
        of_others = done[start - 1] if start > 0 else 0.0
        of_others -= done[before - 1] if before > 0 else 0.0
        queue, mean = 0.0, 0.0
        for step in range(before, start + 1):
            now = steps["start_s"][step]
            waits = (requests["arrival_s"] <= now + 1e-9) & (requests["scheduled_s"] > now - 1e-9)
            queue = max(queue, float((np.array(game.said) + prompts + 1.0)[waits].sum()))
            if step > 0:
                mean = max(mean, float(done[step - 1] / max(admitted[step - 1], 1)))
        earlier = requests["scheduled_s"][:i] > came - 1e-9
        owed = (np.array(game.answers) + prompts)[:i][earlier].sum()
        batch = game.slots * (max(game.answers) + 1 + PRICE)
        bound = queue + game.max_lead * mean + owed + 2 * batch
        worst = max(worst, float(of_others - bound))
    return worst


@settings(max_examples=150, deadline=None)
@given(games())
def test_no_adversary_puts_more_work_before_a_request(game: Game) -> None:
    assert excess(game, played(game, max_lead=game.max_lead)) <= 0.0


def test_without_the_guard_the_same_check_fails() -> None:
    # One that looks long, and a stream of others that look short.
    many = [0.0, 0.0] + [0.02 * k for k in range(1, 400)]
    game = Game(many, [5, 5] + [5] * 399, [1.0, 40.0] + [1.0] * 399, 1, 1.0)
    assert excess(game, played(game)) > 0.0
    assert excess(game, played(game, max_lead=1.0)) <= 0.0


def test_a_request_is_overdue_once_the_queue_and_the_lead_are_served() -> None:
    row = new_table(1).view(np.recarray)[0]
    row.state, row.remaining, row.queued_work = WAITING, 50.0, 300
    guards = guard_record(max_lead=2.0).view(np.recarray)[0]
    assert lateness(row, guards, 499.0, 100.0) < 1.0
    assert lateness(row, guards, 500.0, 100.0) == 1.0
    row.remaining = 25600.0  # 256 times the mean: half as much may be done before it
    assert lateness(row, guards, 250.0, 100.0) == 1.0
    row.lateness = 1.0
    assert tier(row, guards) == 0
    assert lateness(row, guard_record().view(np.recarray)[0], 1e9, 100.0) == 0.0
    row.state = RUNNING
    assert tier(row, guards) == 0, "one that was let in late is not put back at once"


@given(st.floats(-1e6, 1e6), st.floats(0.0, 0.999), st.floats(0.0, 0.999))
def test_a_rank_moves_to_the_front_only(rank: float, late: float, later: float) -> None:
    late, later = sorted((late, later))
    assert hastened(rank, later) <= hastened(rank, late) <= rank
    assert hastened(np.inf, late) == np.inf
    assert hastened(-np.inf, late) == -np.inf


def test_where_nothing_is_predicted_each_counts_as_the_mean_request() -> None:
    """And not as no work at all, by which everybody would be late at once."""
    table = new_table(4)
    table["state"], table["prompt_tokens"] = WAITING, 20
    discipline = make_discipline("shortest-prefill-first", max_lead=1.0)
    assert not discipline.needs_predictions
    order, facts = StepOrder(), facts_of(4, step=1, decoded=500, prefilled=100, admissions=6)
    order.rank(discipline, table, facts)
    assert (table["queued_work"] == 4 * round(500 / 6)).all()
    table["expected"] = table["remaining"] = 7.0
    table["queued_work"] = 0
    order.rank(discipline, table, facts)
    assert (table["queued_work"] == 4 * 7).all()


def test_of_a_tenant_that_is_ahead_nothing_is_brought_forward() -> None:
    """However late its requests get: shares go before leads, and nothing is divided by zero."""
    discipline = make_discipline("srpt", max_lead=1.0, max_tenant_lead=10.0)
    table = new_table(3)
    rows = table.view(np.recarray)
    rows.state, rows.expected, rows.remaining, rows.arrival_index = WAITING, 50.0, 50.0, range(3)
    rows.remaining[1] = 40.0
    rows.lead[:2] = 11
    order = StepOrder()
    for decoded in (0, 119, 120, 121, 10**6):  # 90 to 140 tokens wait, 1 · 20 more may go before
        rows.queued_work = 100
        facts = facts_of(3, decoded=decoded, admissions=decoded // 20)
        order.rank(discipline, table, facts)
        assert (order.groups[:2] == BEHIND).all()
        assert (order.ranks[:2] == [50.0, 40.0]).all()
