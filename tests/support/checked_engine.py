"""A `SteppedEngine` that checks, after every step, what the scheduler promises.

The promises are numbered as in the design. Checked here:
1. every request is waiting, running or finished, once; 2. KV blocks are conserved; 3. overtaking is
bounded; 4. runnable work plus room runs; and, for finished requests, whole answers. Also that a
running request makes way only for one that is admitted in the same step.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from bench.support.engine_harness import Ask, Step, SteppedEngine


class AnyText:
    """A compiled grammar that accepts everything."""

    def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
        return True


@dataclass(frozen=True)
class Preemption:
    """One preemption: in which step, of whom, and why."""

    step: int
    request_id: str
    reason: str  # "newcomer", "memory" or "reset"


class CheckedEngine(SteppedEngine):
    """Steps and checks.

    Args:
        scheduler: from `build_scheduler`.
        lag: see `SteppedEngine`.
        max_overtakes: the bound that the scheduler was given, None for none.
        overtake_share: how much higher it is for each of its class that one found waiting.
        max_preemptions: the bound on preemptions of one request for newcomers.
    """

    def __init__(
        self,
        scheduler: Any,
        lag: int = 0,
        max_overtakes: int | None = None,
        max_preemptions: int = 2,
        overtake_share: float = 0.0,
    ) -> None:
        super().__init__(scheduler, lag, check_memory=True)
        self.preemptions: list[Preemption] = []
        self._max_overtakes = max_overtakes
        self._overtake_share = overtake_share
        self._ahead: dict[str, int] = {}  # request → how many of its class it found waiting
        self._max_preemptions = max_preemptions
        self._swaps: Counter[str] = Counter()  # preemptions for newcomers, by victim
        self._overtaken: Counter[str] = Counter()  # later arrivals admitted first, by who waits
        self._never_admitted: dict[str, int] = {}  # request → order of arrival
        self._was_blocked: set[str] = set()
        self._step_before: int | None = None  # the parent's count of steps, while in `schedule`
        self._preempt = scheduler._preempt_request
        scheduler._preempt_request = self._note_preemption
        self._pool = scheduler.kv_cache_manager.block_pool
        self._all_free = self._pool.get_num_free_blocks()

    def add(self, ask: Ask) -> Any:
        if ask.request_id not in self.requests:
            self._never_admitted[ask.request_id] = len(self.requests)
            own = self._class_of(ask)
            waiting = [self.asked[request.request_id] for request in self.scheduler.waiting]
            self._ahead[ask.request_id] = sum(self._class_of(other) == own for other in waiting)
        return super().add(ask)

    def step(self) -> Step:
        scheduler = self.scheduler
        queued = {request.request_id for request in scheduler.waiting}
        known = len(self.preemptions)
        for request in scheduler.waiting:
            if not _is_ready(request):
                self._was_blocked.add(request.request_id)
        ready, idle_excused = self._ready(), self._all_about_to_finish()
        slots_taken = len(scheduler.running) + scheduler.num_waiting_for_streaming_input
        self._step_before = scheduler.current_step
        step = super().step()
        self._step_before = None
        self._check_swaps(step, self.preemptions[known:], queued)
        self._check_overtaking(step)
        if not step.scheduled and scheduler.pause_state.name == "UNPAUSED":
            # Requests that only wait for their last token still hold their slots and memory.
            assert idle_excused, "requests are running, but none was scheduled"
            assert slots_taken or not ready, "requests are ready, but none was scheduled"
        self.check()
        return step

    def check(self) -> None:
        """Promises 1 and 2, which hold between any two calls."""
        scheduler = self.scheduler
        places = Counter(
            request.request_id
            for place in (scheduler.running, scheduler.waiting, scheduler.kv_holding_waiting)
            for request in place
        )
        assert set(places) == set(scheduler.requests) == set(self.live())
        assert all(count == 1 for count in places.values()), "a request is in two places"
        queued = len(scheduler.waiting) + len(scheduler.kv_holding_waiting)
        assert queued + len(scheduler.running) == len(places), "the queue's length is wrong"
        held = {
            block
            for request_id in places
            for block in scheduler.kv_cache_manager.get_block_ids(request_id)[0]
        }
        held.discard(self._pool.null_block.block_id)
        assert self._pool.get_num_free_blocks() + len(held) == self._all_free, "blocks were lost"

    def drain(self) -> None:
        """Let everything finish, then check that nothing is left and every answer is whole."""
        self.run(20_000)
        assert not self.live()
        assert self._pool.get_num_free_blocks() == self._all_free
        assert self.scheduler.reset_prefix_cache()
        for request_id, reason in self.finished.items():
            whole = self.asked[request_id].whole_answer()
            got = self.answers[request_id]
            assert got == (whole[: len(got)] if reason == "abort" else whole), request_id

    def _note_preemption(self, request: Any, *args: Any, **kwargs: Any) -> None:
        if self._step_before is None:
            reason = "reset"
        else:
            # The parent counts its step first thing, after whatever ours did before.
            before = self.scheduler.current_step == self._step_before
            # A paused request is freed before the parent's step, too, but for memory.
            reason = "newcomer" if before and self.scheduler._planner.preempting else "memory"
        self.preemptions.append(Preemption(self._steps, request.request_id, reason))
        self._preempt(request, *args, **kwargs)

    def _ready(self) -> list[str]:
        return [r.request_id for r in self.scheduler.waiting if _is_ready(r)]

    def _all_about_to_finish(self) -> bool:
        """Whether each request with a slot has its last token in flight (none, if none does)."""
        paused = set(self.scheduler._planner.paused)
        return all(
            request.num_output_placeholders > 0
            and request.num_output_tokens + request.num_output_placeholders >= request.max_tokens
            for request in self.scheduler.running
            if request not in paused
        )

    def _check_swaps(self, step: Step, preemptions: list[Preemption], queued: set[str]) -> None:
        victims = [p.request_id for p in preemptions if p.reason == "newcomer"]
        self._swaps.update(victims)
        assert all(self._swaps[victim] <= self._max_preemptions for victim in victims)
        if not victims:
            return
        newcomers = queued.intersection(step.admitted)
        assert not newcomers.intersection(victims), "a victim came back in the same step"
        assert len(newcomers) >= len(victims), "a request made way for one that was not admitted"

    def _check_overtaking(self, step: Step) -> None:
        priorities = {request_id: self._class_of(ask) for request_id, ask in self.asked.items()}
        order = list(self.requests)
        place = {request_id: index for index, request_id in enumerate(order)}
        for request_id in step.admitted:
            self._never_admitted.pop(request_id, None)
        for request_id in [i for i in self._never_admitted if i in self.finished]:
            del self._never_admitted[request_id]
        for waiting, arrival in self._never_admitted.items():
            self._overtaken[waiting] += sum(
                place[request_id] > arrival and priorities[request_id] >= priorities[waiting]
                for request_id in step.admitted
            )
            if self._max_overtakes is not None and waiting not in self._was_blocked:
                more = self._overtake_share * self._ahead[waiting]
                bound = math.ceil(self._max_overtakes + more)
                bound += self.scheduler.max_num_active_reqs - 1
                assert self._overtaken[waiting] <= bound, f"{waiting} was overtaken too often"
            # Nor may it be moved ahead for those who did not overtake it.
            live = self.scheduler._live
            counted = live.table["overtaken"][live.row(waiting)] if waiting in live else 0
            assert counted <= self._overtaken[waiting], f"{waiting}: {counted} counted"

    def _class_of(self, ask: Ask) -> int:
        # Whether clients' priorities count is a setting. Those beyond what fits into 62 bits, the
        # tier beside them, are one class.
        most = 2**60
        return int(self.scheduler.waiting.believes_clients * max(-most, min(most, ask.priority)))


def _is_ready(request: Any) -> bool:
    """Whether a waiting request could be admitted, given a slot and memory."""
    if request.status.name == "WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR":
        return request.structured_output_request.grammar is not None
    if request.status.name not in ("WAITING", "PREEMPTED"):
        return False
    return not request.num_stale_output_tokens or request.drop_stale_output
