"""Runs of free blocks and blocks by name are two readings of one memory."""

from __future__ import annotations

import dataclasses
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.policy.discipline import make_discipline
from lengthwise.simulate.engine import EngineSettings, StepCost
from lengthwise.simulate.kv_blocks import (
    NOBODY,
    give_to_runs,
    left_of_run,
    new_runs,
    take_from_runs,
    take_run_back,
)
from lengthwise.simulate.predictions import noisy
from lengthwise.simulate.replica import SERVED, limits_of, new_engines
from lengthwise.simulate.simulation import simulate
from lengthwise.workload.arrivals import synthetic_trace


@pytest.mark.parametrize("policy", ["fcfs", "srpt", "mlfq"])
@pytest.mark.parametrize("blocks", [90, 160, 2000])
def test_prompts_that_share_nothing_need_no_names(policy: str, blocks: int) -> None:
    trace = synthetic_trace(1500, 12.0, mean_prompt=60, mean_output=80, sigma=0.8, seed=1)
    counts = -(-trace.prompt_tokens // 16)
    named = dataclasses.replace(
        trace,
        block_hashes=np.arange(counts.sum()),  # every block of every prompt is one of its kind
        block_offsets=np.concatenate([[0], np.cumsum(counts)]),
        hash_tokens=16,
    )
    engine = EngineSettings(slots=16, kv_blocks=blocks, block_size=16)
    discipline = make_discipline(policy, preemption=None if policy == "fcfs" else "greedy")
    predictions = noisy(trace.output_tokens, 0.5, seed=1)
    runs, names = (
        simulate(each, discipline, StepCost(7e-3, 1e-4, 1e-4), engine, predictions=predictions)
        for each in (trace, named)
    )
    for column in ("scheduled_s", "finish_s", "recomputed_tokens", "preemptions"):
        assert runs.requests[column].tolist() == names.requests[column].tolist()
    if policy != "fcfs":
        assert runs.requests["recomputed_tokens"].sum() > 0


@settings(deadline=None, max_examples=200)
@given(
    st.integers(2, 12),
    st.lists(st.tuples(st.sampled_from(["use", "end", "preempt", "resume"]), st.integers(0, 40))),
)
def test_runs_are_a_queue_of_single_blocks(blocks: int, deeds: list[tuple[str, int]]) -> None:
    """Against a queue of blocks that knows each by its owner."""
    limits = limits_of(EngineSettings(), blocks, shares=False)
    engine = new_engines(1, blocks, limits)[0:1]
    runs = new_runs(1, blocks)[0]
    requests = np.zeros(200, SERVED)
    requests["memory"] = NOBODY
    queue: deque[int] = deque([-1] * blocks)  # whose content each free block has, -1 for none
    held: list[tuple[int, int]] = []  # request and its blocks
    waiting: list[int] = []
    for number, (deed, which) in enumerate(deeds[:200]):
        if deed == "use" and queue:
            count = 1 + which % len(queue)
            take_from_runs(engine[0], runs, count)
            for _ in range(count):
                queue.popleft()
            held.append((number, count))
        elif deed in ("end", "preempt") and held:
            request, count = held.pop(which % len(held))
            full = max(count - which % 2, 0)
            owner = request if deed == "preempt" else NOBODY
            give_to_runs(engine[0], runs, requests, owner, full, count)
            queue.extendleft([-1] * (count - full))
            queue.extend([request if deed == "preempt" else -2] * full)
            if deed == "preempt":
                waiting.append(request)
        elif deed == "resume" and waiting:
            request = waiting.pop(which % len(waiting))
            found = left_of_run(engine[0], runs, requests["memory"][request])
            assert found == queue.count(request)
            hits = max(found - which % 2, 0)
            take_run_back(engine[0], runs, requests["memory"][request], hits)
            requests["memory"][request] = NOBODY
            for _ in range(hits):
                # Its first blocks were freed last.
                queue.reverse()
                queue.remove(request)
                queue.reverse()
            queue = deque(-2 if owner == request else owner for owner in queue)
            if hits:
                held.append((request, hits))
        for request in waiting:
            assert left_of_run(engine[0], runs, requests["memory"][request]) == queue.count(request)
        assert engine["blank"][0] == queue.count(-1)
