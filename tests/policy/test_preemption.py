"""Preemption that pays: the rollout against plain Python, and what must and must not be swapped."""

from __future__ import annotations

import heapq
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from lengthwise.policy.discipline import Discipline, make_discipline
from lengthwise.policy.facts import RUNNER
from lengthwise.policy.length_law import expected_remaining
from lengthwise.policy.prepass import OFTEN, StepOrder, decide_one, look_one
from lengthwise.policy.prices import StepTime, batch_s
from lengthwise.policy.select import Swap, list_schedule, surviving_tokens, swap_gain
from lengthwise.request import RUNNING, WAITING, new_table
from tests.support.step_facts import facts_of

lengths = st.floats(1.0, 1e3)


def plain_schedule(slots: list[float], jobs: list[float]) -> tuple[float, list[float]]:
    heap = list(slots)
    heapq.heapify(heap)
    starts, total = [], 0.0
    for job in jobs:
        start = heapq.heappop(heap)
        starts.append(start)
        total += start + job
        heapq.heappush(heap, start + job)
    return total, starts


@settings(deadline=None)
@given(st.lists(lengths, min_size=1, max_size=8), st.lists(lengths, max_size=20))
def test_list_schedule_serves_each_job_by_the_first_free_slot(
    slots: list[float], jobs: list[float]
) -> None:
    starts = np.empty(len(jobs))
    total = list_schedule(np.array(slots), np.array(jobs), starts)
    expected_total, expected_starts = plain_schedule(slots, jobs)
    assert total == pytest.approx(expected_total)
    assert starts.tolist() == pytest.approx(expected_starts)


@settings(deadline=None)
@given(
    st.lists(lengths, min_size=1, max_size=6),
    st.lists(lengths, min_size=1, max_size=12),
    st.data(),
)
def test_the_gain_is_the_difference_of_two_rollouts_less_the_recompute(
    running: list[float], waiting: list[float], data: Any
) -> None:
    victim = data.draw(st.integers(0, len(running) - 1))
    position = data.draw(st.integers(0, len(waiting) - 1))
    without = sum(running) + plain_schedule(running, waiting)[0]
    swapped = [*running]
    swapped[victim] = waiting[0]
    queue = [*waiting[1:]]
    queue.insert(position, running[victim])
    with_swap = sum(swapped) + plain_schedule(swapped, queue)[0]
    prices = {"step_s": 0.01, "prefill_s": 1e-4, "tokens_per_step": 16.0, "caching": False}
    facts = facts_of(0, running=10, waiting=20, **prices)
    swap = Swap(victim, position, 100.0, 0.0, 10.0, 0.0)
    gain = swap_gain(facts[0], np.array(running), np.array(waiting), swap)
    expected = (without - with_swap) * 0.01 - 30 * 100 * 1e-4 - 10 * 1e-4
    assert gain == pytest.approx(expected, abs=1e-6)


def test_freed_blocks_survive_until_the_list_before_them_is_used_up() -> None:
    # 100 tokens are 6 full blocks of 16; 50 blocks lie ahead; a step uses one block.
    assert surviving_tokens(100.0, 40.0, 50.0, 16.0, 16) == 96.0
    assert surviving_tokens(100.0, 50.0, 50.0, 16.0, 16) == 96.0
    assert surviving_tokens(100.0, 53.0, 50.0, 16.0, 16) == 48.0, "the tail goes first"
    assert surviving_tokens(100.0, 1e6, 50.0, 16.0, 16) == 0.0


@pytest.mark.parametrize("sigma", [0.2, 0.8, 1.5])
@pytest.mark.parametrize("age", [1.0, 50.0, 300.0, 2000.0])
def test_expected_remaining_is_the_mean_residual_life(sigma: float, age: float) -> None:
    law = stats.lognorm(s=sigma, scale=100.0)
    low, high = law.ppf([0.1, 0.9])
    if law.sf(age) < 1e-9:
        pytest.skip("nothing of the law is left at this age")
    truth = integrate.quad(lambda x: law.sf(x), age, np.inf, limit=500)[0] / law.sf(age)
    ours = expected_remaining(law.mean(), low, 100.0, high, age)
    assert ours == pytest.approx(max(truth, 1.0), rel=1e-3)


@settings(deadline=None)
@given(lengths, st.floats(0.05, 2.0), st.floats(0.0, 1e5))
def test_expected_remaining_is_finite_and_at_least_one(
    median: float, sigma: float, age: float
) -> None:
    low, high = median * np.exp(-1.2816 * sigma), median * np.exp(1.2816 * sigma)
    remaining = expected_remaining(median * np.exp(sigma**2 / 2), low, median, high, age)
    assert np.isfinite(remaining)
    assert remaining >= 1.0


def test_a_sure_prediction_counts_down() -> None:
    assert expected_remaining(100.0, 100.0, 100.0, 100.0, 40.0) == 60.0
    assert expected_remaining(100.0, 100.0, 100.0, 100.0, 400.0) == 1.0


class Batch:
    """Slots full of running requests and a queue, as `choose_swaps` sees them."""

    def __init__(self, running: list[dict[str, Any]], waiting: list[dict[str, Any]]) -> None:
        self.table = new_table(len(running) + len(waiting))
        for row, fields in enumerate(running + waiting):
            state = RUNNING if row < len(running) else WAITING
            known = {"state": state, "sequence": row, "arrival_index": row, "prompt_tokens": 20}
            for name, value in {**known, **fields}.items():
                self.table[name][row] = value
            self.table["expected"][row] = self.table["remaining"][row]
        self.running = np.arange(len(running))
        self.waiting = len(waiting)

    def swaps(self, discipline: Discipline, **engine: Any) -> tuple[list[int], int]:
        order, facts = StepOrder(), facts_of(len(self.table))
        order.rank(discipline, self.table, facts)
        facts["running"], facts["waiting"] = len(self.running), self.waiting
        facts["free_blocks"], facts["may_swap"] = 1000, True
        times = StepTime().times[0]
        facts["step_s"] = batch_s(times, len(self.running))
        facts["prefill_s"] = times["prefill_s"]
        for name, value in engine.items():
            facts[name] = value
        runners = np.zeros(len(self.running), RUNNER)
        runners["row"] = self.running
        for name in ("age", "computed_tokens"):
            runners[name] = self.table[name][self.running]
        runners["freed_blocks"] = -(-runners["computed_tokens"] // 16)
        rules, ranked = discipline.rules, order.of(self.table)
        waiting = look_one(rules, facts, runners, ranked)
        ready = np.ones(len(waiting), np.bool_)
        victims, front, *_ = decide_one(rules, facts, runners, ranked, waiting, ready)
        return victims.tolist(), len(front)

    def kept(self, discipline: Discipline) -> list[int]:
        """Who runs, in the order in which memory is kept: it is taken from the last."""
        order, facts = StepOrder(), facts_of(len(self.table))
        order.rank(discipline, self.table, facts)
        facts["running"] = len(self.running)
        facts["step_s"], facts["prefill_s"] = 1e-2, 1e-4
        runners = np.zeros(len(self.running), RUNNER)
        runners["row"], runners["wanted_tokens"] = self.running, 1
        nobody = np.empty(0, np.int64)
        decision = decide_one(
            discipline.rules, facts, runners, order.of(self.table), nobody, nobody > 0
        )
        return decision[3].tolist()


LONG = {"remaining": 500.0, "computed_tokens": 64}
SHORT = {"remaining": 5.0}


def test_a_short_newcomer_takes_the_place_of_a_long_request() -> None:
    batch = Batch([LONG, {"remaining": 400.0, "computed_tokens": 64}], [SHORT])
    assert batch.swaps(make_discipline("srpt")) == ([0], 1)


def test_nobody_is_preempted_when_the_recompute_costs_more_than_it_wins() -> None:
    running = [{"remaining": 40.0, "computed_tokens": 2000}]
    batch = Batch(running, [{"remaining": 30.0}])
    assert batch.swaps(make_discipline("srpt"), caching=False) == ([], 0)
    assert batch.swaps(make_discipline("srpt", preemption="greedy"), caching=False) == ([0], 1)


def test_a_tie_is_no_reason_to_preempt_even_greedily() -> None:
    batch = Batch([SHORT], [SHORT])
    assert batch.swaps(make_discipline("srpt", preemption="greedy")) == ([], 0)


def test_free_slots_are_filled_before_anyone_is_preempted() -> None:
    batch = Batch([LONG], [SHORT, SHORT])
    assert batch.swaps(make_discipline("srpt"), free_slots=2) == ([], 2)
    assert batch.swaps(make_discipline("srpt"), free_slots=1) == ([0], 2)


def test_a_newcomer_must_fit_in_what_its_victim_gives_back() -> None:
    batch = Batch([LONG], [{"remaining": 5.0, "prompt_tokens": 100}])
    assert batch.swaps(make_discipline("srpt"), free_blocks=2) == ([], 0)
    assert batch.swaps(make_discipline("srpt"), free_blocks=3) == ([0], 1)


def test_without_token_budget_nobody_is_preempted() -> None:
    assert Batch([LONG], [SHORT]).swaps(make_discipline("srpt"), token_budget=0) == ([], 0)


def test_swaps_in_one_step_are_bounded() -> None:
    batch = Batch([LONG] * 6, [SHORT] * 6)
    victims, admitted = batch.swaps(make_discipline("srpt", max_swaps=3))
    assert len(victims) == len(set(victims)) == admitted == 3


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.floats(1.0, 500.0), st.integers(1, 80)), min_size=2, max_size=5),
    st.lists(st.floats(1.0, 500.0), min_size=1, max_size=5),
    st.randoms(use_true_random=False),
)
def test_nobody_gets_in_whom_a_victim_goes_before(
    running: list[tuple[float, int]], waiting: list[float], chance: random.Random
) -> None:
    """Else more would be let in than fit, and pass the victim by. Ranks say nothing of lengths."""
    scores = [float(score) for score in range(len(running) + len(waiting))]
    chance.shuffle(scores)
    held = [
        {"remaining": remaining, "computed_tokens": computed, "score": score}
        for (remaining, computed), score in zip(running, scores, strict=False)
    ]
    rest = scores[len(running) :]
    queue = [{"remaining": r, "score": s} for r, s in zip(waiting, rest, strict=True)]
    victims, admitted = Batch(held, queue).swaps(make_discipline("ltr", preemption="pays"))
    for score in sorted(rest)[:admitted]:
        assert all(score < scores[victim] for victim in victims)


def test_memory_is_taken_from_who_has_much_left_and_little_to_compute_again() -> None:
    long = {"remaining": 500.0, "computed_tokens": 4000, "predicted": 1}
    running = [long, {**long, "remaining": 400.0, "computed_tokens": 40}, {**long, **SHORT}]
    assert Batch(running, []).kept(make_discipline("sjf")) == [2, 0, 1]
    # Of equal contexts, from who has most left.
    alike = [{**long, "remaining": left} for left in (400.0, 500.0, 5.0)]
    assert Batch(alike, []).kept(make_discipline("sjf")) == [2, 0, 1]


def test_without_any_prediction_memory_is_taken_from_the_last_in_order() -> None:
    running = [
        {**LONG, "computed_tokens": tokens, "prompt_tokens": tokens} for tokens in (40, 4000)
    ]
    assert Batch(running, []).kept(make_discipline("sjf")) == [0, 1]
    assert Batch(running[::-1], []).kept(make_discipline("shortest-prefill-first")) == [1, 0]


def test_overdue_requests_keep_their_memory_longest_in_order_of_arrival() -> None:
    running = [{**LONG, "computed_tokens": tokens, "predicted": 1} for tokens in (40, 4000, 400)]
    overdue = [{**one, "overtaken": k} for k, one in enumerate(running)]
    guarded = make_discipline("sjf", max_overtakes=1)
    assert Batch(overdue, []).kept(guarded) == [1, 2, 0]


def test_nobody_loses_its_memory_again_and_again_for_what_it_saves() -> None:
    small = {**SHORT, "computed_tokens": 40, "predicted": 1, "score": 0.0}
    running = [{**small, "memory_preemptions": k} for k in (OFTEN, 1)]
    running.append(
        {**LONG, "remaining": 6.0, "computed_tokens": 4000, "predicted": 1, "score": 1.0}
    )
    assert Batch(running, []).kept(make_discipline("ltr")) == [0, 2, 1]
    for each in running[:2]:
        each["memory_preemptions"] = OFTEN
    assert Batch(running, []).kept(make_discipline("ltr")) == [0, 1, 2]


def test_a_better_class_is_never_preempted_for_a_worse_one() -> None:
    batch = Batch([{**LONG, "priority": -1}], [SHORT])
    assert batch.swaps(make_discipline("srpt", preemption="greedy")) == ([], 0)


def test_trail_past_the_cutoff_is_safe() -> None:
    batch = Batch([{**LONG, "age": 450}], [SHORT])
    assert batch.swaps(make_discipline("trail", preemption="greedy")) == ([], 0)


def test_step_time_learns_what_steps_cost() -> None:
    generator = np.random.default_rng(0)
    measured = StepTime()
    for _ in range(2000):
        decode = int(generator.integers(1, 64))
        prefill = int(generator.integers(0, 500)) if generator.random() < 0.2 else 0
        seconds = 0.004 + 5e-5 * prefill + 2e-4 * decode
        measured.observe(prefill, decode, seconds * float(generator.normal(1.0, 0.02)))
    assert measured.times[0]["prefill_s"] == pytest.approx(5e-5, rel=0.1)
    assert batch_s(measured.times[0], 32) == pytest.approx(0.004 + 32 * 2e-4, rel=0.1)


@pytest.mark.parametrize(
    ("step", "prefill", "prompt"),
    [
        (0.008, 2e-5, 4_000),
        (0.022, 1e-4, 1_500),
        (0.010, 1e-5, 30_000),
        (0.050, 2e-3, 1_000),  # a CPU: forty steps' time in one, and dearer than was assumed
        (0.005, 1e-2, 400),
    ],
)
def test_step_time_knows_rare_prefills_that_take_as_long_as_many_steps(
    step: float, prefill: float, prompt: int
) -> None:
    generator = np.random.default_rng(0)
    measured = StepTime()
    for count in range(1, 20_001):
        decode = int(generator.integers(40, 64))
        tokens = prompt if count > 200 and generator.random() < 0.04 else 0
        seconds = step + 2e-5 * decode + prefill * tokens
        measured.observe(decode_tokens=decode, prefill_tokens=tokens, seconds=seconds)
        if count in (2_000, 20_000):
            assert measured.times[0]["prefill_s"] == pytest.approx(prefill, rel=0.1)
            assert batch_s(measured.times[0], 50) == pytest.approx(step + 50 * 2e-5, rel=0.2)


def test_step_time_is_not_told_by_stalls_what_steps_cost() -> None:
    generator = np.random.default_rng(0)
    measured = StepTime()
    for _ in range(5_000):
        decode = int(generator.integers(1, 64))
        stall = 2.0 if generator.random() < 0.01 else 0.0
        measured.observe(0, decode, 0.01 + 1e-4 * decode + stall)
    assert batch_s(measured.times[0], 32) == pytest.approx(0.0132, rel=0.1)


def test_step_time_ignores_nonsense() -> None:
    measured = StepTime()
    before = batch_s(measured.times[0], 8)
    for seconds in (-1.0, 0.0, float("nan"), float("inf"), 1e9):
        measured.observe(10, 10, seconds)
    assert measured.times[0]["steps"] == 0
    assert batch_s(measured.times[0], 8) == before
