"""What the adapter does before vLLM's own step: order the queue, and preempt where it pays."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from lengthwise.policy.cutoff import FADES, batch_cutoff, observed, share_lost
from lengthwise.policy.discipline import make_discipline
from lengthwise.policy.memory import fitting
from lengthwise.policy.order import victims_last
from lengthwise.policy.rollout import LOOKAHEAD
from lengthwise.policy.select import (
    SPARE,
    SWAP_EVERY,
    Engine,
    Rows,
    StepOrder,
    blocks_for,
    choose_swaps,
    outranked_by_any,
)
from lengthwise.policy.step_time import StepTime
from lengthwise.vllm import compat
from lengthwise.vllm.table import LiveTable


class Planner:
    """Plans one step after the other for one scheduler.

    Ranking is put off until something asks for the order: where no slot is free and nothing may
    be preempted, a step costs the same with 100,000 waiting requests as with none.

    Args:
        scheduler: vLLM's scheduler.
        live: the table of its requests.
        classes_matter: see below; it is set as soon as a request has another class than 0.
        give_up: called when the policy has raised; exchanges the discipline for that of fcfs.

    Attributes:
        discipline: what decides; exchanged when the settings change.
        step_time: measured costs.
        classes_matter: whether requests of several priority classes may be queued.
        preempting: true while the planner itself preempts, rather than the parent for memory.
    """

    def __init__(
        self,
        scheduler: Any,
        live: LiveTable,
        classes_matter: bool,
        give_up: Callable[[Exception], None],
    ) -> None:
        self.discipline = make_discipline("fcfs")
        self.step_time = StepTime()
        self.classes_matter = classes_matter
        self.preempting = False
        self._scheduler = scheduler
        self._live = live
        self._give_up = give_up
        self._order = StepOrder()
        self._now = 0.0
        self._step = 0
        self._ranked = False
        self._admissions = 0
        self._admitted: list[int] = []
        self._lost_share = 0.0
        self._thrown_out = 0.0

    def plan(self, now: float, step: int, throttled: bool) -> tuple[bool, list[int] | None]:
        """Prepare the step: preempt, arrange memory victims, choose who may come in.

        Args:
            now: the step's clock reading, seconds.
            step: the step's number.
            throttled: the parent was told to hold prefills back.

        Returns:
            Whether the queue is to be served in the policy's order, and the only rows to serve in
            this step, None for no limit.
        """
        self._now, self._step, self._ranked = now, step, False
        if not self._reorders:
            return False, None
        try:
            return True, self._arrange(throttled)
        except Exception as error:  # a user's policy may do anything; requests are served
            self._abandon(error)
            return self._reorders, None

    def _arrange(self, throttled: bool) -> list[int] | None:
        """Preempt and put memory victims last; the only rows that may come in, None for all."""
        step = self._step
        if self.discipline.adapts >= 0 and step % SWAP_EVERY == 0:
            self._adapt()
        front = None
        if self._may_swap(throttled):
            front = self._swap()
        if front is None and self.discipline.memory_growth > 0.0:
            front = self._front_that_fits()
        if self._memory_is_short():
            self._put_victims_last()
        return front

    def next_rows(self, after: int) -> list[int]:
        """The next waiting rows in this step's order, behind the given one (-1: the first)."""
        try:
            return self._next_rows(after)
        except Exception as error:
            self._abandon(error)
            # Those that were looked at before have left the queue: the first of it is the next.
            return self._next_rows(-1)

    def _abandon(self, error: Exception) -> None:
        """The policy has raised: rank anew by the order of the queue.

        Where it had begun, overtaking is counted twice for some, which puts them nearer to the
        front: no bound is broken.
        """
        self._give_up(error)
        self._ranked = False

    def _next_rows(self, after: int) -> list[int]:
        self._rank(everyone=False)
        want = max(self._free_slots(), 0) + SPARE
        table, count = self._live.table, self._live.count
        if after < 0:
            rows = self._order.first(self.discipline, table, count, want, self._admissions)
        else:
            rows = self._order.after(table, count, after, want)
        return [int(row) for row in rows]

    def admitted(self, row: int) -> bool:
        """Note that a waiting request got a slot.

        Returns:
            Whether the starvation guard promoted it.
        """
        self._admissions += 1
        if not self._reorders:
            return False
        columns = self._live.table[row]
        self._admitted.append(int(columns["arrival_index"]))
        if not self.discipline.counts_steps:
            return False
        guards = self.discipline.guards[0]
        if columns["promoted"] == 0 and columns["idle_steps"] >= guards["starvation_threshold"]:
            columns["promoted"] = guards["starvation_quantum"]
            return True
        return False

    def came_back(self, computed: int, lost: int) -> None:
        """Note that a preempted request runs again.

        Args:
            computed: tokens that it had computed when it was preempted.
            lost: how many of them it has to compute again.
        """
        self._lost_share = observed(self._lost_share, share_lost(computed, lost))

    def left(self, thrown_out: bool) -> None:
        """Note that a request left the batch: finished, or thrown out because memory ran out."""
        self._thrown_out = observed(self._thrown_out, float(thrown_out))

    def ran(self, request_ids: Iterable[str]) -> None:
        """Note which requests run in this step, for the guard that counts steps."""
        if not self.discipline.counts_steps:
            return
        rows = np.array([self._live.row(request_id) for request_id in request_ids], np.int64)
        self._live.table["last_step"][rows] = self._step
        self._live.table["promoted"][rows] = np.maximum(self._live.table["promoted"][rows] - 1, 0)

    # Order ----------------------------------------------------------------------------------

    @property
    def _reorders(self) -> bool:
        """Whether the queue may be served in another order than its own."""
        return self.classes_matter or not self.discipline.is_fcfs

    def _rank(self, everyone: bool = True) -> None:
        """Rank all requests, or only those that wait, once a step.

        Whatever needs the ranks of running requests comes before the queue is asked.
        """
        if self._ranked:
            return
        self._ranked = True
        weight = self._prefill_weight()
        if self.discipline.reads_prefix_cache:
            self._look_up_prefix_cache(weight)
        self._admitted.sort()
        self._order.rank(
            self.discipline,
            self._live.table,
            self._live.count,
            self._now,
            self._step,
            np.array(self._admitted, dtype=np.int64),
            everyone,
            weight,
        )
        self._admitted.clear()

    def _prefill_weight(self) -> float:
        """Output tokens that take as much of the engine's time as a prefilled one; 0: not asked."""
        if not self.discipline.service_time:
            return 0.0
        return self.step_time.prefill_weight(max(len(self._scheduler.running), 1))

    def _look_up_prefix_cache(self, prefill_weight: float) -> None:
        """Refresh `cached_tokens` of those who would be next: a look-up is too dear for all."""
        table, count = self._live.table, self._live.count
        self._order.rank(
            self.discipline,
            table,
            count,
            self._now,
            self._step,
            prefill_weight=prefill_weight,
        )
        want = max(self._free_slots(), 0) + SPARE
        for row in self._order.first(self.discipline, table, count, want, self._admissions):
            request = self._live.request(row)
            table["cached_tokens"][row] = compat.cached_tokens(self._scheduler, request)

    def _free_slots(self) -> int:
        scheduler = self._scheduler
        taken = len(scheduler.running) + scheduler.num_waiting_for_streaming_input
        return int(scheduler.max_num_active_reqs - taken)

    def _bring_running_up_to_date(self) -> Rows:
        """Write the columns of running requests that change with every token.

        Returns:
            Their rows, in the order of `running`.
        """
        running = self._scheduler.running
        rows = np.array([self._live.row(r.request_id) for r in running], dtype=np.int64)
        self._live.table["age"][rows] = [r.num_output_tokens for r in running]
        self._live.table["computed_tokens"][rows] = [r.num_computed_tokens for r in running]
        return rows

    def _adapt(self) -> None:
        """Set the parameter that is "auto" by the present prices."""
        running = self._scheduler.running
        if not running:
            return
        rows = np.array([self._live.row(r.request_id) for r in running], dtype=np.int64)
        self._lost_share *= FADES
        self.discipline.parameters.view(np.float64)[self.discipline.adapts] = batch_cutoff(
            self._live.table,
            rows,
            len(running) + len(self._scheduler.waiting),
            self._lost_share,
            self._thrown_out,
            self.step_time.decode_s(len(running)),
            self.step_time.prefill_s_per_token,
        )

    # Preemption for newcomers ---------------------------------------------------------------

    def _may_swap(self, throttled: bool) -> bool:
        scheduler = self._scheduler
        return bool(
            self.discipline.preempts
            and self._step % SWAP_EVERY == 0
            and len(scheduler.waiting) > 0
            and scheduler.running
            and not throttled
            and not scheduler.kv_holding_waiting
            and scheduler.pause_state.name == "UNPAUSED"
            and scheduler.scheduler_config.enable_chunked_prefill
            and compat.may_preempt_voluntarily(scheduler)
        )

    def _swap(self) -> list[int] | None:
        """Preempt for newcomers where that pays.

        Returns:
            The rows that get in, if anyone was preempted: nobody else may, or a victim could come
            back in the same step.
        """
        scheduler, table = self._scheduler, self._live.table
        running = list(scheduler.running)
        rows = self._bring_running_up_to_date()
        self._rank()
        slots = max(self._free_slots(), 0)
        want = LOOKAHEAD * (slots + len(running))
        waiting = self._order.first(
            self.discipline, table, self._live.count, want, self._admissions
        )
        waiting = self._ready(waiting, slots + self.discipline.max_swaps)
        if len(waiting) == 0:
            return None
        newcomers = waiting[: slots + self.discipline.max_swaps]
        outranked = outranked_by_any(self._order.groups, self._order.ranks, rows, newcomers)
        outranked &= table["preemptions"][rows] < self.discipline.max_preemptions
        if not outranked.any():
            return None
        preemptible = np.array(
            [
                candidate and self._is_preemptible(request)
                for request, candidate in zip(running, outranked.tolist(), strict=True)
            ],
            dtype=np.bool_,
        )
        freed = np.array(
            [
                compat.blocks_freed(scheduler, request) if candidate else 0
                for request, candidate in zip(running, preemptible.tolist(), strict=True)
            ],
            dtype=np.int64,
        )
        wanted = np.array([compat.tokens_this_step(r) for r in running], dtype=np.int64)
        computed, size = table["computed_tokens"][rows], scheduler.block_size
        growth = int((-(-(computed + wanted) // size) - -(-computed // size)).sum())
        engine = Engine(
            free_slots=slots,
            free_blocks=compat.free_blocks(scheduler) - growth - compat.watermark_blocks(scheduler),
            token_budget=scheduler.max_num_scheduled_tokens - int(wanted.sum()),
            block_size=scheduler.block_size,
            caching=bool(scheduler.cache_config.enable_prefix_caching),
            requests=len(running) + len(scheduler.waiting),
            step_s=self.step_time.decode_s(len(running)),
            prefill_s=self.step_time.prefill_s_per_token,
            tokens_per_step=self.step_time.tokens_per_step,
        )
        victims, admitted = choose_swaps(
            self.discipline.preemption == "greedy",
            self.discipline.max_swaps,
            self._order.groups,
            self._order.ranks,
            table,
            waiting,
            rows,
            preemptible,
            freed,
            engine,
        )
        if len(victims) == 0:
            return None
        self.preempting = True
        try:
            for row in victims:
                victim = self._live.request(row)
                scheduler.running.remove(victim)
                scheduler._preempt_request(
                    victim, self._now, drop_stale_output=scheduler.requires_kv_delivery
                )
        finally:
            self.preempting = False
        return [int(row) for row in waiting[:admitted]]

    def _ready(self, waiting: Rows, newcomers: int) -> Rows:
        """The waiting rows without those that could not be admitted now.

        Only as many as may come in are looked at; further behind it makes no difference.
        """
        lora = self._scheduler.lora_config
        loras = {r.lora_request.lora_int_id for r in self._scheduler.running if r.lora_request}
        ready: list[int] = []
        for place, row in enumerate(waiting):
            if len(ready) >= newcomers:
                ready.extend(waiting[place:])
                break
            request = self._live.request(row)
            fits_lora = (
                lora is None
                or not request.lora_request
                or request.lora_request.lora_int_id in loras
                or len(loras) < lora.max_loras
            )
            if fits_lora and compat.is_ready(request):
                ready.append(int(row))
                if request.lora_request:
                    loras.add(request.lora_request.lora_int_id)
        return np.array(ready, dtype=np.int64)

    def _is_preemptible(self, request: Any) -> bool:
        """Whether a running request may be preempted now: not in the middle of its prefill, not
        when its last token is on its way, not while older output of it is."""
        return bool(
            not request.is_prefill_chunk
            and request.num_output_tokens > 0
            and not request.has_encoder_inputs
            and request.num_stale_output_tokens == 0
            and not compat.finishes_in_flight(request)
            and self._scheduler._request_blocks_can_be_freed(request)
        )

    # Memory ---------------------------------------------------------------------------------

    def _front_that_fits(self) -> list[int] | None:
        """The waiting rows whose predicted growth fits, when some does not."""
        scheduler, table = self._scheduler, self._live.table
        slots = self._free_slots()
        if slots <= 0 or len(scheduler.waiting) == 0:
            return None
        running = self._bring_running_up_to_date()
        self._rank()
        waiting = self._order.first(
            self.discipline, table, self._live.count, slots, self._admissions
        )
        if len(running) == 0 and not compat.is_ready(self._live.request(waiting[0])):
            return None  # what lets nobody in must not hold back those behind
        count = fitting(
            table,
            running,
            waiting,
            self.discipline.memory_growth,
            compat.free_blocks(scheduler),
            scheduler.block_size,
        )
        return None if count == len(waiting) else [int(row) for row in waiting[:count]]

    def _memory_is_short(self) -> bool:
        """Whether the parent may have to preempt in this step because blocks run out."""
        scheduler = self._scheduler
        free = compat.free_blocks(scheduler)
        budget_blocks = blocks_for(scheduler.max_num_scheduled_tokens, scheduler.block_size)
        if free >= len(scheduler.running) + budget_blocks:
            return False
        wanted: int = sum(
            blocks_for(compat.tokens_this_step(r), scheduler.block_size) for r in scheduler.running
        )
        return bool(free < wanted)

    def _put_victims_last(self) -> None:
        """Order `running`, from whose tail the parent takes its victims."""
        running: list[Any] = self._scheduler.running
        rows = self._bring_running_up_to_date()
        self._rank()
        prefilling = np.array([r.is_prefill_chunk for r in running], np.bool_)
        table, order = self._live.table, self._order
        places = victims_last(table, order.groups, order.ranks, rows, prefilling)
        running[:] = [running[place] for place in places]
