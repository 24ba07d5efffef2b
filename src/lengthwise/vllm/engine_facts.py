"""What is known of an engine: read off vLLM's scheduler, or seen while it serves.

`EngineFacts` is what the pre-pass is told. The functions below it say what a planned step does, in
the terms that its time is fitted to (`simulate.engine`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.policy import prices
from lengthwise.policy.discipline import Discipline
from lengthwise.policy.facts import RUNNER, EngineState, may_decide, new_facts, prepare_one
from lengthwise.policy.prices import StepTime
from lengthwise.policy.select import Rows, blocks_for, host_tokens
from lengthwise.request import LiveTable
from lengthwise.vllm.compat import offloading_connector, requests, schedulers

# A few numbers each: to call the compiled function from here costs more than what it does.
observed: Callable[..., float] = prices.observed.py_func  # type: ignore[attr-defined]
share_lost: Callable[..., float] = prices.share_lost.py_func  # type: ignore[attr-defined]


class EngineFacts:
    """The facts of one engine, step after step.

    Args:
        scheduler: vLLM's scheduler.
        live: the table of its requests.

    Attributes:
        array: FACTS, shape [1].
        step_time: measured costs.
        admissions: made so far.
        decoded: tokens of answers that the engine has computed so far.
        prefilled: the same of prompts.
        work: what the step that was planned last does, None where it runs nothing.
    """

    def __init__(self, scheduler: Any, live: LiveTable) -> None:
        limits = schedulers.step_limits(scheduler)
        self.array = new_facts(1, **limits)
        self.step_time = StepTime()
        self.admissions = 0
        self.decoded = self.prefilled = 0
        self.work: dict[str, int] | None = None
        self._work_before: dict[str, int] | None = None
        self._held: dict[str, int] = {}  # tokens of preempted requests, computed by then
        self._scheduler = scheduler
        self._live = live
        self._looked_at, self._looking = self.array["looked_at"], self.array["looking"]
        self._most_blocks = blocks_for(limits["token_budget"], limits["block_size"])
        # A token takes a place in a block of every group of layers.
        self._kv_groups = schedulers.kv_groups(scheduler)
        self._token_bytes = offloading_connector.token_bytes(scheduler)
        self._loads_measured = False

    def may_decide(self, chosen: Discipline, step: int, paused: Sequence[Any]) -> bool:
        """Whether a step may have anything to decide: most have not, and need no more of this."""
        scheduler = self._scheduler
        return may_decide(
            chosen,
            step,
            self._live.arrivals > self._looked_at[0],
            self._looking[0] > 0,
            bool(paused) and schedulers.free_slots(scheduler) > 0,
            schedulers.free_blocks(scheduler) // self._kv_groups,
            len(scheduler.running) + self._most_blocks,
        )

    def gather(
        self, chosen: Discipline, now: float, step: int, paused: Sequence[Any], throttled: bool
    ) -> bool:
        """Write the facts of the step that comes next.

        Args:
            chosen: what decides.
            now: s.
            step: its number.
            paused: requests that are left out.
            throttled: the parent was told to hold prefills back.

        Returns:
            Whether there may be anything to decide.
        """
        scheduler, live = self._scheduler, self._live
        self.array["decoded"], self.array["prefilled"] = self.decoded, self.prefilled
        state = EngineState(
            now_s=now,
            step=step,
            rows=live.count,
            running=len(scheduler.running),
            paused=len(paused),
            waiting=len(scheduler.waiting),
            free_slots=schedulers.free_slots(scheduler) - self._slots_kept(paused),
            free_places=schedulers.free_places(scheduler) - len(paused),
            free_blocks=schedulers.free_blocks(scheduler) // self._kv_groups,
            may_swap=chosen.preempts and schedulers.may_swap(scheduler, throttled),
            arrivals=live.arrivals,
            admissions=self.admissions,
        )
        return prepare_one(chosen.rules, self.array, self.step_time.times, state)

    def runners(self, running: Sequence[Any], paused: int) -> NDArray[np.void]:
        """The running requests, the last of which are paused, as the pre-pass is told of them."""
        running_now = len(running) - paused
        return np.array(
            [
                (
                    self._live.row(request.request_id),
                    request.num_output_tokens,
                    request.num_computed_tokens,
                    requests.tokens_this_step(request),
                    place >= running_now,
                    request.is_prefill_chunk,
                    False,
                    0,
                    False,
                )
                for place, request in enumerate(running)
            ],
            RUNNER,
        )

    def ask_of(self, running: Sequence[Any], runners: NDArray[np.void], chosen: Discipline) -> None:
        """Whether those who might make way may, and what that would give back."""
        # Each column is taken out once: that costs as much as a question to vLLM.
        may_make_way, freed, paused, in_flight = (
            runners[name] for name in ("may_make_way", "freed_blocks", "paused", "in_flight")
        )
        for place in np.nonzero(may_make_way)[0].tolist():
            request = running[place]
            if chosen.pauses and not paused[place]:
                may_make_way[place] = requests.may_pause(request)
                if in_flight[place] and may_make_way[place]:
                    freed[place] = schedulers.blocks_freed(self._scheduler, request)
                    in_flight[place] = not schedulers.may_make_way(self._scheduler, request)
            elif schedulers.may_make_way(self._scheduler, request):
                freed[place] = schedulers.blocks_freed(self._scheduler, request)
            else:
                may_make_way[place] = False

    def ready(self, waiting: Rows, chosen: Discipline) -> tuple[NDArray[np.bool_], list[int]]:
        """Which of the waiting rows could be admitted now, and which the parent ends when it comes
        to them.

        Only as many as may come in are looked at; further behind it makes no difference.
        """
        # Which adapters there is room for depends on who is paused, which is decided later.
        room = schedulers.Room(self._scheduler, adapters=not chosen.pauses)
        ready, failed = np.ones(len(waiting), np.bool_), []
        missing = int(self.array["free_slots"][0]) + chosen.max_swaps
        if chosen.peeks:
            missing += int(self._looking[0]) + chosen.max_swaps
        for place, row in enumerate(waiting.tolist()):
            if missing == 0:
                break
            request = self._live.request(row)
            ready[place] = requests.is_ready(request) and room.take(request)
            missing -= int(ready[place])
            if not ready[place] and requests.has_failed(request):
                failed.append(row)
        return ready, failed

    def planned(self, output: Any, in_full: bool) -> None:
        """Note what a planned step does.

        Args:
            output: vLLM's plan of it.
            in_full: `work` is to say all that a record has of a step.
        """
        self._work_before, self.work = self.work, None
        if not output.num_scheduled_tokens:
            return
        names, prefill = _prefilled(output)
        decode = output.total_num_scheduled_tokens - prefill
        self.work = {"prefill_tokens": prefill, "decode_tokens": decode}
        self.decoded += decode
        self.prefilled += prefill
        if in_full:
            scheduler = self._scheduler
            self.work.update(
                _step_reads(output, names, scheduler.requests),
                running=len(scheduler.running),
                waiting=len(scheduler.waiting),
                free_blocks=schedulers.free_blocks(scheduler),
                preempted=len(output.preempted_req_ids or ()),
            )

    def took(self, duration_s: float, lags: bool) -> None:
        """Note what a step took: that of `work` or, where outputs lag a step, the one before."""
        ran = self._work_before if lags else self.work
        if ran is not None:
            self.step_time.observe(ran["prefill_tokens"], ran["decode_tokens"], duration_s)

    def preempted(self, request: Any) -> None:
        """Note that a request loses its memory in a step."""
        self._held[request.request_id] = request.num_computed_tokens

    def lost(self, request_id: str, computed: int) -> int:
        """Tokens that a request, which gets a slot, has to compute again; 0 where it is new.

        Args:
            request_id: its name.
            computed: its tokens that need not be computed now.
        """
        held = self._held.pop(request_id, None)
        if held is None:
            return 0
        lost, share = max(held - computed, 0), self.array["lost_share"]
        share[0] = observed(float(share[0]), share_lost(held, lost))
        return lost

    def forget(self, request_id: str) -> None:
        """A request has ended."""
        self._held.pop(request_id, None)

    def left(self, thrown_out: bool) -> None:
        """Note that a request left the batch: finished, or thrown out because memory ran out."""
        share = self.array["thrown_out"]
        share[0] = observed(float(share[0]), float(thrown_out))

    def offloaded(self, request: Any) -> int | None:
        """Computed tokens of a request that host memory holds when it is preempted; None where
        nothing is offloaded."""
        if self._token_bytes == 0.0:
            return None
        row = self._live.table[self._live.row(request.request_id)].copy()
        row["computed_tokens"] = request.num_computed_tokens
        return host_tokens(self.array[0], row)

    def loaded(self, output: Any) -> None:
        """Note what a step's output says of loads from host memory, and of how long they took."""
        size, seconds = offloading_connector.loaded(output)
        if size == 0.0:
            return
        token_s = seconds / size * self._token_bytes
        before = float(self.array["load_s"][0]) if self._loads_measured else token_s
        self.array["load_s"] = observed(before, token_s)
        self._loads_measured = True

    def _slots_kept(self, paused: Sequence[Any]) -> int:
        """Free slots that the parent gives to those that hold KV, before all others."""
        if not paused and self.array["host_blocks"][0] == 0:
            return 0
        return schedulers.ready_holders(self._scheduler)


def _prefilled(output: Any) -> tuple[Collection[str], int]:
    """The requests of a planned step that compute more than their next token, and their tokens.

    Those are the newly admitted, the resumed, and all with more than one token; tokens that a draft
    model proposed do not count.
    """
    scheduled = output.num_scheduled_tokens
    started, resumed = output.scheduled_new_reqs, output.scheduled_cached_reqs.resumed_req_ids
    one_each = output.total_num_scheduled_tokens == len(scheduled)
    if one_each and not started and not resumed:
        return (), 0
    names = {new.req_id for new in started}.union(resumed)
    if not one_each:
        drafts = output.scheduled_spec_decode_tokens
        names.update(
            name for name, tokens in scheduled.items() if tokens > 1 + len(drafts.get(name, ()))
        )
    return names, sum(scheduled[name] for name in names)


def _step_reads(
    output: Any, prefilling: Collection[str], requests: Mapping[str, Any]
) -> dict[str, int]:
    """How large a step's batch is and what it reads; takes a walk through the batch.

    Args:
        output: the planned step.
        prefilling: the names that `_prefilled` gives.
        requests: vLLM's requests by name, after the step was planned.

    Returns:
        `requests` in the batch; `kv_tokens`, the computed tokens of all of them once the step is
        done; `attention_tokens`, for each prefilled token those that it attends to.
    """
    scheduled = output.num_scheduled_tokens
    computed = {name: requests[name].num_computed_tokens for name in scheduled}
    return {
        "requests": len(scheduled),
        "kv_tokens": sum(computed.values()),
        "attention_tokens": sum(
            # The last attends to all that is computed then, itself included; the first to so many
            # fewer as tokens come after it.
            scheduled[name] * (2 * computed[name] - scheduled[name] + 1) // 2
            for name in prefilling
        ),
    }
