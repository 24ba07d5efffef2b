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
from lengthwise.request import PAUSED, RUNNING, WAITING, new_table
from lengthwise.simulate.engine import EngineSettings, StepCost
from lengthwise.simulate.simulation import Simulation, simulate
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


def played(game: Game, policy: str = "sjf", **guards: Any) -> Simulation:
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
        make_discipline(policy, **guards),
        COST,
        EngineSettings(slots=game.slots, max_seqs=64),
        predictions=np.stack([said] * 5, axis=1),
        log_steps=True,
    )


def excess(game: Game, served: Simulation, whole: bool = False) -> float:
    """By how much work the promise is broken for whom it is broken most; not above 0 if kept.

    From its arrival to its first step the engine does at most: what was said to wait at once, at
    most; `max_lead` requests as they have been on average; what those that came earlier and wait
    still truly take; and what the batch takes until its slots are free, twice: once before the
    order is looked at, and once behind the request's turn.

    With pauses the same holds to its `whole` answer, the steps aside in which it runs itself.
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
        last = np.searchsorted(steps["start_s"], request["finish_s"] - 1e-9) if whole else start
        of_others = done[last - 1] if last > 0 else 0.0
        if whole:  # a step in which it runs does no more than a token for each slot, and prompts
            of_others -= game.answers[i] * game.slots * (1.0 + PRICE)
        of_others -= done[before - 1] if before > 0 else 0.0
        queue, mean = 0.0, 0.0
        for step in range(before, start + 1):
            now = steps["start_s"][step]
            waits = (requests["arrival_s"] <= now + 1e-9) & (requests["scheduled_s"] > now - 1e-9)
            queue = max(queue, float((np.array(game.said) + prompts + 1.0)[waits].sum()))
        for step in range(before, last + 1):
            if step > 0:
                mean = max(mean, float(done[step - 1] / max(admitted[step - 1], 1)))
        earlier = requests["finish_s" if whole else "scheduled_s"][:i] > came - 1e-9
        owed = (np.array(game.answers) + prompts)[:i][earlier].sum()
        batch = game.slots * (max(game.answers) + 1 + PRICE)
        bound = queue + game.max_lead * mean + owed + 2 * batch
        worst = max(worst, float(of_others - bound))
    return worst


@settings(max_examples=150, deadline=None)
@given(games())
def test_no_adversary_puts_more_work_before_a_request(game: Game) -> None:
    assert excess(game, played(game, max_lead=game.max_lead)) <= 0.0


@settings(max_examples=150, deadline=None)
@given(games())
def test_no_adversary_keeps_a_request_paused_for_longer(game: Game) -> None:
    served = played(game, "srpt", max_lead=game.max_lead, pausing=True)
    assert excess(game, served, whole=True) <= 0.0


def test_without_the_guard_a_request_stays_paused() -> None:
    # One that seems long starts alone, and is paused for a stream of others.
    many = [0.0] + [0.05 + 0.02 * k for k in range(150)]
    game = Game(many, [40] + [5] * 150, [40.0] + [1.0] * 150, 1, 1.0)
    unbound = played(game, "srpt", pausing=True)
    assert unbound.requests["pauses"][0] > 0
    assert excess(game, unbound, whole=True) > 0.0
    assert excess(game, played(game, "srpt", max_lead=1.0, pausing=True), whole=True) <= 0.0


def test_without_the_guard_the_same_check_fails() -> None:
    # One that looks long, and a stream of others that look short.
    many = [0.0, 0.0] + [0.02 * k for k in range(1, 150)]
    game = Game(many, [5, 5] + [5] * 149, [1.0, 40.0] + [1.0] * 149, 1, 1.0)
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


def test_what_is_done_while_a_request_runs_is_not_done_before_it() -> None:
    """So that a long answer is not overdue for being long, whether it is looked at on the way or
    not; what is done while it is paused counts again."""
    table = new_table(3)
    rows = table.view(np.recarray)
    rows.expected = rows.remaining = 20.0
    rows.predicted = 1
    order, discipline = StepOrder(), make_discipline("srpt", max_lead=1.0)

    def ranked(done: int, *states: int, everyone: bool = True) -> list[float]:
        rows.state = states
        facts = facts_of(3, decoded=done, admissions=done // 20, running=2)
        order.rank(discipline, table, facts, everyone=everyone)
        return [float(late) for late in np.round(rows.lateness * (rows.queued_work + 20.0))]

    assert ranked(60, WAITING, WAITING, WAITING) == [60.0, 60.0, 60.0]
    ranked(100, RUNNING, RUNNING, WAITING, everyone=False)
    assert ranked(200, RUNNING, RUNNING, WAITING) == [60.0, 60.0, 200.0]
    assert ranked(260, RUNNING, PAUSED, WAITING) == [60.0, 120.0, 260.0]
    assert ranked(300, PAUSED, RUNNING, WAITING) == [100.0, 120.0, 300.0]
    assert ranked(320, WAITING, RUNNING, WAITING) == [120.0, 120.0, 320.0]
    rows.predicted = 0  # the order is that of arrival
    assert ranked(320, RUNNING, PAUSED, WAITING) == [320.0, 320.0, 320.0]


def test_where_nothing_is_predicted_it_is_fcfs_though_memory_runs_out() -> None:
    generator, n = np.random.default_rng(0), 150
    answers = np.clip(generator.lognormal(np.log(700), 0.5, n), 50, 3000).astype(np.int64)
    arrival_s = np.cumsum(generator.exponential(0.8, n))
    trace = Trace("alike", arrival_s, np.full(n, 3000), answers, [], "synthetic")
    engine = EngineSettings(slots=32, kv_blocks=3000)
    # Predictions that fail: the running median stands in for all.
    unknown = np.full((n, 5), np.nan)
    fcfs, guarded, unguarded = (
        simulate(
            trace, discipline, StepCost(1e-2, 1e-4, 1e-5), engine, predictions=unknown
        ).requests
        for discipline in (
            make_discipline("fcfs"),
            make_discipline("sjf", max_lead=110.0),
            make_discipline("sjf"),
        )
    )
    assert fcfs["memory_preemptions"].sum() > 20
    for served in (guarded, unguarded):
        assert (served["finish_s"] == fcfs["finish_s"]).all()


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
