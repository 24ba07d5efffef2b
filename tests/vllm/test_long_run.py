"""Very many requests through one scheduler: nothing of them is left, and memory stays flat.

A million: LENGTHWISE_LONG_RUN=1000000 pytest -s tests/vllm/test_long_run.py
"""

from __future__ import annotations

import gc
import heapq
import os
import random
import re
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: pip install 'lengthwise[cpu]'")

from bench.support.engine_harness import Ask, build_scheduler
from bench.support.stand_in_runner import StandInRunner
from lengthwise.settings import parse_settings
from lengthwise.vllm import Scheduler

REQUESTS = int(os.environ.get("LENGTHWISE_LONG_RUN", "4000"))
CHANGES = 100  #: of settings
ABORTED = 0.1  #: share of requests
LIVE, SLOTS, BLOCKS, BLOCK_SIZE = 200, 32, 48, 16
NAME = re.compile(r"request-\d+")
CONTAINERS = (dict, list, tuple, set, frozenset, deque)


def settings_number(number: int, folder: Path) -> dict[str, Any]:
    """One of very different settings."""
    policies = ("srpt", "fcfs", "trail", "gittins", "mlfq", "priority", "hrrn", "ltr")
    settings: dict[str, Any] = {
        "policy": policies[number % len(policies)],
        "predictor": ("declared", "prompt-length", "none")[number % 3],
        "preemption": ("pays", "greedy", "never")[number % 5 % 3],
        "memory_growth": float(number % 2),
        "starvation_threshold": (None, 50)[number % 3 % 2],
        "blend": (1.0, 0.7)[number % 4 // 3],
        "shadow": number % 10 == 9,
        "client_priority": number % 4 == 0,
    }
    if number % 3 == 0:
        settings["journal"] = str(folder / f"journal-{number % 2}")
    if number % 4 == 0:
        settings["length_log"] = {"folder": str(folder / f"log-{number % 3}"), "megabytes": 1}
    return settings


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def names_within(parts: dict[str, object]) -> dict[str, str]:
    """Names of requests that can be reached through containers and objects of ours, and where."""
    found: dict[str, str] = {}
    seen: set[int] = set()
    waiting = deque(parts.items())
    while waiting:
        where, here = waiting.popleft()
        if id(here) in seen:
            continue
        seen.add(id(here))
        if isinstance(here, str) and NAME.fullmatch(here):
            found[here] = where
        kind = type(here)
        if kind.__module__.startswith("lengthwise") or isinstance(here, CONTAINERS):
            waiting.extend((f"{where}.{kind.__name__}", each) for each in gc.get_referents(here))
    return found


@pytest.mark.timeout(900 + REQUESTS // 100)
@pytest.mark.parametrize("lag", [0, 1])
def test_nothing_is_left_of_many_requests(lag: int, tmp_path: Path) -> None:
    from vllm.v1.request import RequestStatus

    scheduler = build_scheduler(
        Scheduler,
        num_blocks=BLOCKS,
        block_size=BLOCK_SIZE,
        max_num_seqs=SLOTS,
        token_budget=256,
        asynchronous=bool(lag),
        policy="priority" if lag else "fcfs",
        lengthwise={"settings": settings_number(0, tmp_path)},
    )
    seconds = [0.0]  # what pays depends on the time, which is therefore the same each time
    scheduler.begin_anew(lambda: seconds[0])
    threads = threading.active_count()
    rng = random.Random(lag)
    lengths: dict[str, int] = {}
    runner = StandInRunner(lengths, BLOCKS, BLOCK_SIZE)
    in_flight: deque[tuple[Any, Any]] = deque()
    leaving: list[tuple[int, str]] = []
    sent = ended = step = changes = 0
    after_a_tenth, started = 0.0, time.monotonic()
    while ended < REQUESTS:
        while sent < REQUESTS and len(lengths) < LIVE:
            name, answer = f"request-{sent}", rng.randint(1, 12)
            prompt = [rng.randrange(2, 1000) for _ in range(rng.randint(1, 40))]
            ask = Ask(
                name,
                prompt,
                answer,
                priority=rng.randrange(3),
                arrival_time=float(sent),
                hints={"lengthwise_expected_tokens": rng.randint(1, 20)},
            )
            lengths[name] = answer
            scheduler.add_request(ask.request(BLOCK_SIZE))
            if rng.random() < ABORTED:
                heapq.heappush(leaving, (step + rng.randrange(60), name))
            sent += 1
        while leaving and leaving[0][0] <= step:
            name = heapq.heappop(leaving)[1]
            if scheduler.finish_requests([name], RequestStatus.FINISHED_ABORTED):
                del lengths[name]
                ended += 1
        output = scheduler.schedule()
        in_flight.append((output, runner.execute(output)))
        if len(in_flight) > lag:
            for outputs in scheduler.update_from_output(*in_flight.popleft()).values():
                for each in outputs.outputs:
                    if each.finish_reason is not None:
                        del lengths[each.request_id]  # fails for one that ends twice
                        ended += 1
        step += 1
        seconds[0] += 0.005 + 1e-4 * output.total_num_scheduled_tokens
        if changes < CHANGES and ended >= REQUESTS * (changes + 1) / (CHANGES + 2):
            changes += 1
            scheduler._settings.offer(parse_settings(settings_number(changes, tmp_path)))
            scheduler._settings.settle()
        if not after_a_tenth and ended > REQUESTS / 10:
            after_a_tenth = resident_mib()
    for _ in range(2 + lag):
        scheduler.schedule()
    counters = scheduler.counters
    assert (counters.finished, counters.settings_changes) == (REQUESTS, 1 + CHANGES)
    assert (counters.switched_off, len(scheduler._live), len(scheduler.waiting)) == (0, 0, 0)
    assert counters.memory_preemptions > 0 < counters.preemptions
    parts = {name: part for name, part in vars(scheduler).items() if not is_vllms(part)}
    deadline = time.monotonic() + 20.0  # what is still to be written has a thread of its own
    while (left := names_within(parts)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == {}
    grown = resident_mib() - after_a_tenth
    assert grown < 40.0
    scheduler.shutdown()
    assert threading.active_count() < threads
    took_s = time.monotonic() - started
    print(f"\n{REQUESTS:,} requests, {step:,} steps, {took_s:.0f} s: {grown:+.1f} MiB")


def is_vllms(part: object) -> bool:
    return type(part).__module__.startswith("vllm")
