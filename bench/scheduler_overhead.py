"""Time that Lengthwise adds to a scheduler step, paired with stock vLLM in one run.

    python bench/scheduler_overhead.py                      a table
    python bench/scheduler_overhead.py --json               a list of rows
    python bench/scheduler_overhead.py --policies stock     stock against itself: the error
    python bench/scheduler_overhead.py --policies subclass  and against a subclass that adds nothing

vLLM's real scheduler classes run with a stand-in model runner. Stock and ours step in turn (stock
first, then ours first) with requests of the same shape, so a disturbance of the machine meets
both. A step is `add_request` for each answer that ended in the step before, `schedule` and
`update_from_output`; the stand-in runner is not timed. The batch is always full, and one request
is added for each that finishes, so the queue keeps its length.

Stock runs a copy of vLLM's modules of its own. CPython makes a function fast for the class that it
met last, and ours is a subclass, which runs vLLM's functions: where both take turns in them they
slow each other down, and a subclass that adds nothing seems to add 2.4 %. A server has one of them.

Answers are 64 to 192 tokens, independent of what is predicted for them: under every policy the
same work is done, and the difference is the cost of choosing. Each request carries a prediction
(log-normal, as a true length to the oracle), so that learnt predictors' own cost is left out.

Times are CPU time of the scheduler's thread, which never waits for anything: on an idle machine the
same as time on the clock, and on a busy one not what the neighbours took. A median leaves out what
is done only now and then (admission, the look for swaps); the means have it. The queue comes all at
once, and the steps until every request in it has its prediction are reported apart (`in burst`).
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import random
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.support.engine_harness import Ask, build_scheduler
from bench.support.stand_in_runner import StandInRunner

STOCK = "stock"
SUBCLASS = "subclass"
POLICIES = ("fcfs", "sjf", "ltr", "srpt", "trail", "hrrn", "mlfq")
BASES = ("Scheduler", "AsyncScheduler")
VLLM_POLICIES = ("fcfs", "priority")
WAITING = (0, 100, 1_000, 10_000, 100_000)
BLOCK_OF_STEPS = 50
BLOCK_SIZE = 16
PROMPT_TOKENS = 24
ANSWER_TOKENS = (64, 192)


@cache
def stock_class(base: str) -> Any:
    """One of vLLM's scheduler classes, from modules that nothing else runs."""
    package = "vllm.v1.core.sched"
    own = {name: f"{package}.{name}" for name in ("scheduler", "async_scheduler")}
    kept = {full: importlib.import_module(full) for full in own.values()}
    try:
        for full in kept:
            del sys.modules[full]
        copies = {name: importlib.import_module(full) for name, full in own.items()}
    finally:
        sys.modules.update(kept)
    return getattr(copies["scheduler" if base == "Scheduler" else "async_scheduler"], base)


def compared_class(policy: str, base: str) -> Any:
    """What stock is compared with."""
    if policy == STOCK:
        return None
    if policy == SUBCLASS:
        module = "scheduler" if base == "Scheduler" else "async_scheduler"
        return type(
            base, (getattr(importlib.import_module(f"vllm.v1.core.sched.{module}"), base),), {}
        )
    from lengthwise.vllm import Scheduler

    return Scheduler


def requests(seed: int, priorities: bool) -> Iterator[tuple[Any, int]]:
    """An endless stream of (vLLM request, answer length), the same for the same seed."""
    rng = random.Random(seed)
    index = 0
    while True:
        ask = Ask(
            request_id=f"r{index}",
            prompt=[rng.randrange(2, 1000) for _ in range(PROMPT_TOKENS)],
            answer=rng.randint(*ANSWER_TOKENS),
            priority=rng.randrange(3) if priorities else 0,
            arrival_time=float(index),
            hints={"lengthwise_true_tokens": max(1, round(rng.lognormvariate(5.0, 0.8)))},
        )
        yield ask.request(BLOCK_SIZE), ask.answer
        index += 1


class TimedEngine:
    """A scheduler with a full batch and a queue of constant length, and a clock on its calls."""

    def __init__(
        self,
        scheduler_class: Callable[..., Any] | None,
        base: str,
        vllm_policy: str,
        batch: int,
        waiting: int,
        settings: dict[str, object] | str | None,
    ) -> None:
        self._lag = int(base == "AsyncScheduler")
        num_blocks = 1 + batch * (1 + (PROMPT_TOKENS + ANSWER_TOKENS[1]) // BLOCK_SIZE) * 2
        self._scheduler = build_scheduler(
            scheduler_class,
            num_blocks=num_blocks,
            block_size=BLOCK_SIZE,
            max_num_seqs=batch,
            token_budget=2048,
            asynchronous=bool(self._lag),
            policy=vllm_policy,
            log_stats=True,  # as a server does
            lengthwise=None if settings is None else {"settings": settings},
        )
        self._answer_lengths: dict[str, int] = {}
        self._runner = StandInRunner(self._answer_lengths, num_blocks, BLOCK_SIZE)
        self._requests = requests(seed=1, priorities=vllm_policy == "priority")
        self._in_flight: deque[tuple[Any, Any]] = deque()
        self._to_replace = 0
        for _ in range(batch + waiting):
            self._scheduler.add_request(self._next_request())

    def _next_request(self) -> Any:
        request, answer = next(self._requests)
        self._answer_lengths[request.request_id] = answer
        return request

    @property
    def predicted(self) -> int:
        """Requests whose prediction has been tried; always 0 for stock."""
        counters = getattr(self._scheduler, "counters", None)
        return 0 if counters is None else int(counters.predictions + counters.fallbacks)

    def step(self) -> tuple[float, float]:
        """One step; microseconds in all, and in `schedule` alone."""
        scheduler = self._scheduler
        newcomers = [self._next_request() for _ in range(self._to_replace)]
        start = time.thread_time_ns()
        for request in newcomers:
            scheduler.add_request(request)
        before_schedule = time.thread_time_ns()
        output = scheduler.schedule()
        after_schedule = time.thread_time_ns()

        self._in_flight.append((output, self._runner.execute(output)))
        self._to_replace = 0
        update_time = 0
        if len(self._in_flight) > self._lag:
            due = self._in_flight.popleft()
            before_update = time.thread_time_ns()
            delivered = scheduler.update_from_output(*due)
            update_time = time.thread_time_ns() - before_update
            for outputs in delivered.values():
                self._to_replace += sum(o.finish_reason is not None for o in outputs.outputs)
        whole = after_schedule - start + update_time
        return whole / 1e3, (after_schedule - before_schedule) / 1e3


def paired_steps(
    stock: TimedEngine, ours: TimedEngine, steps: int
) -> list[tuple[float, float, float]]:
    """Step both in turn; (stock, ours, stock's `schedule` alone) in microseconds for each step."""
    times = []
    for index in range(steps):
        if index % 2:
            our_time, _ = ours.step()
            stock_time, stock_schedule = stock.step()
        else:
            stock_time, stock_schedule = stock.step()
            our_time, _ = ours.step()
        times.append((stock_time, our_time, stock_schedule))
    return times


def warm_up(stock: TimedEngine, ours: TimedEngine) -> list[tuple[float, float, float]]:
    """Step until the queue that came all at once has its predictions; `paired_steps`' times."""
    times = []
    while True:
        before = ours.predicted
        times += paired_steps(stock, ours, BLOCK_OF_STEPS)
        if ours.predicted - before < BLOCK_OF_STEPS:
            return times


def compare(stock: TimedEngine, ours: TimedEngine, steps: int) -> dict[str, float]:
    """Step both and compare; all values but the percentage in microseconds."""
    burst = warm_up(stock, ours)
    gc.collect()
    gc.freeze()  # a collection over 100,000 queued requests would hit either side at random
    times = paired_steps(stock, ours, steps)
    gc.unfreeze()
    stock_times, our_times, schedule_times = zip(*times, strict=True)
    differences = [our_time - stock_time for stock_time, our_time, _ in times]
    lower, added, upper = statistics.quantiles(differences, n=4)
    stock_us = statistics.median(stock_times)
    return {
        "stock_us": stock_us,
        "ours_us": statistics.median(our_times),
        "added_us": added,
        "added_percent": 100 * added / stock_us,
        "spread": upper - lower,  # interquartile range of the paired differences
        "stock_mean_us": statistics.fmean(stock_times),
        "ours_mean_us": statistics.fmean(our_times),
        "added_mean_us": statistics.fmean(differences),
        "stock_schedule_us": statistics.median(schedule_times),
        "added_in_burst_us": statistics.fmean(
            our_time - stock_time for stock_time, our_time, _ in burst
        ),
    }


def measure(
    policy: str, base: str, vllm_policy: str, waiting: int, batch: int, steps: int
) -> dict[str, object]:
    """One row: a policy on one base class with one queue length."""
    settings: dict[str, object] | None = None
    if policy not in (STOCK, SUBCLASS):
        settings = {"policy": policy, "predictor": "oracle", "tau_floor": None}
    stock = TimedEngine(stock_class(base), base, vllm_policy, batch, waiting, None)
    ours = TimedEngine(compared_class(policy, base), base, vllm_policy, batch, waiting, settings)
    times = compare(stock, ours, steps)
    return {
        "policy": policy,
        "base": base,
        "vllm_policy": vllm_policy,
        "waiting": waiting,
        "batch": batch,
        "steps": steps,
        **{name: round(value, 1) for name, value in times.items()},
    }


def table(row: dict[str, object]) -> str:
    """One row as a line of text."""
    return (
        f"{row['policy']:<6} {row['base']:<15} {row['vllm_policy']:<9} {row['waiting']:>7,}"
        f" {row['stock_us']:>9} {row['ours_us']:>9} {row['added_us']:>9} {row['added_percent']:>7}"
        f" {row['spread']:>8} {row['stock_mean_us']:>10} {row['added_mean_us']:>10}"
        f" {row['added_in_burst_us']:>9}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print a list of rows on stdout")
    parser.add_argument("--policies", default=",".join(POLICIES), help="default: %(default)s")
    parser.add_argument("--bases", default=",".join(BASES), help="default: %(default)s")
    parser.add_argument(
        "--vllm-policies", default=",".join(VLLM_POLICIES), help="default: %(default)s"
    )
    parser.add_argument(
        "--waiting", default=",".join(map(str, WAITING)), help="queue lengths, default: %(default)s"
    )
    parser.add_argument("--batch", type=int, default=16, help="slots, default: %(default)s")
    parser.add_argument("--steps", type=int, default=400, help="paired steps, default: %(default)s")
    arguments = parser.parse_args()

    header = (
        f"{'policy':<6} {'base':<15} {'vllm':<9} {'waiting':>7} {'stock µs':>9} {'ours µs':>9}"
        f" {'added µs':>9} {'%':>7} {'spread':>8} {'stock mean':>10} {'added mean':>10}"
        f" {'in burst':>9}"
    )
    progress = sys.stderr if arguments.json else sys.stdout
    print(header, file=progress)
    rows = []
    for waiting in map(int, arguments.waiting.split(",")):
        for base in arguments.bases.split(","):
            for vllm_policy in arguments.vllm_policies.split(","):
                for policy in arguments.policies.split(","):
                    row = measure(
                        policy, base, vllm_policy, waiting, arguments.batch, arguments.steps
                    )
                    rows.append(row)
                    print(table(row), file=progress, flush=True)
    if arguments.json:
        print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
