"""vLLM's scheduler with a policy in front of it.

The adapter is a mixin over the class that vLLM itself would use. It adds a short pass before the
parent's `schedule()`; the parent still does everything that correctness hangs on. In order:

1. take up changed settings, measure the last step, predict what has newly arrived;
2. let the `Planner` preempt where that pays, and open the queue's step in the frozen order;
3. call the parent; note who was admitted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from lengthwise.counters import Counters
from lengthwise.policy.guards import note_done
from lengthwise.request import LiveTable
from lengthwise.settings import Settings, settings_of
from lengthwise.vllm.compat import requests, schedulers, version
from lengthwise.vllm.hidden_states import attached
from lengthwise.vllm.live_settings import Engine, LiveSettings
from lengthwise.vllm.observers import Observers, Report
from lengthwise.vllm.plan import PausedCounts, Planner
from lengthwise.vllm.predictions import Predictions, open_refinement
from lengthwise.vllm.queue import PolicyQueue

_ABORTED: Final = "abort"  # why a request ended, in vLLM's words


class LengthwiseMixin:
    """The part of the scheduler that is ours; `scheduler_class` puts it before vLLM's.

    Attributes:
        counters: totals since the start.
    """

    if TYPE_CHECKING:
        # vLLM's own, checked at start-up by `compat`.
        running: list[Any]
        requests: dict[str, Any]
        connector: Any
        kv_holding_waiting: Any

    def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        version.require_supported_version()
        schedulers.refuse_unsupported(vllm_config)
        super().__init__(vllm_config, *args, **kwargs)  # type: ignore[call-arg]
        schedulers.check_scheduler(self)
        # What is known of requests, and who decides.
        self.counters = Counters()
        self._live = LiveTable()
        self._by_priority = schedulers.goes_by_priority(self)
        self.waiting = PolicyQueue(self._live, lambda: self._planner.next_rows(), self._by_priority)
        self._predictions = Predictions(self._live, self.counters)
        self._refinement = open_refinement(self._live, self.counters, vllm_config)
        # The step.
        self._clock: Callable[[], float] = time.monotonic  # read once a step, and at arrivals
        self._now = self._clock()
        self._step = 0
        self._planning = False  # a step is being planned
        self._lags = bool(vllm_config.scheduler_config.async_scheduling)
        # Who is told, and what may change.
        self._observers = Observers(
            self._live, self.waiting, self.counters, lambda row: self._planner.place_of(row)
        )
        self._planner = self._new_planner()
        self._report = Report(self)
        refusal_to_pause = schedulers.refusal_to_pause(self, vllm_config)
        self._settings = LiveSettings(
            Engine(
                index=schedulers.engine_index(vllm_config),
                limits=schedulers.engine_limits(self, pauses=refusal_to_pause is None),
                tokenizer=vllm_config.model_config.tokenizer,
                model=vllm_config.model_config.served_model_name,
                state=self._report.numbers,
                by_priority=self._by_priority,
                refusal_to_pause=refusal_to_pause,
                has_probe=self._refinement is not None,
            ),
            self.counters,
            planning=lambda: self._planning,
            serves=lambda: len(self._live) > 0,
        )
        self._active = self._settings.active
        self._settings.begin(settings_of(vllm_config.additional_config), self._report.status)
        self._take_up()
        self._engine_file = self._report.in_file()

    # A request comes ------------------------------------------------------------------------

    def add_request(self, request: Any) -> None:
        """Give a new request its row before the parent queues it."""
        if request.request_id not in self.requests:
            if self._settings.offered is not self._active:
                self._take_up()
            row = self._live.add(request.request_id, request)  # may replace the table
            if self._refinement is not None:
                self._refinement.forget(row)
            columns = self._live.table[row]
            columns["priority"] = self.waiting.believed_class(request)
            self._start_waiting(request, columns)
            columns["tenant"] = self._planner.tenants.arrive(requests.tenant_of(request))
            columns["adapter"] = requests.adapter(request)
            self._observers.arrived(request)
            if self._active.predicts:
                self._predictions.expect(request.request_id)
        super().add_request(request)  # type: ignore[misc]

    def _update_request_as_session(self, session: Any, update: Any) -> None:
        """A session goes on: the same row, a longer prompt, a new prediction."""
        super()._update_request_as_session(session, update)  # type: ignore[misc]
        self._observers.turn_ended(session)
        self._planner.choose_order()  # tau is of what has ended
        self._live.arrive_anew(session.request_id)
        row = self._live.row(session.request_id)
        if self._refinement is not None:
            self._refinement.forget(row)
        columns = self._live.table[row]
        columns["age"] = 0
        self._start_waiting(session, columns)
        if self._active.predicts:
            self._predictions.expect(session.request_id)

    def _start_waiting(self, request: Any, columns: Any) -> None:
        """A request, or a session's turn, arrives: what its caller says of it is read, and what
        bounds its wait begins anew."""
        columns["prompt_tokens"] = request.num_prompt_tokens
        columns["most_tokens"] = requests.most_tokens(self, request)
        columns["deadline_s"] = requests.deadline_of(request)
        columns["arrival_s"] = self._clock()
        columns["last_step"] = self._step
        columns["ahead"] = self.waiting.of_class(int(columns["priority"]))
        columns["overtaken"] = columns["promoted"] = columns["look"] = 0
        facts = self._planner.facts
        columns["decoded_before"] = columns["decoded_ranked"] = facts.decoded
        columns["prefilled_before"] = columns["prefilled_ranked"] = facts.prefilled
        columns["decoded_meanwhile"] = columns["prefilled_meanwhile"] = 0
        columns["queued_work"] = 0.0

    # Steps ----------------------------------------------------------------------------------

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """One step of the parent, in the policy's order."""
        throttled = bool(kwargs.get("throttle_prefills", args[0] if args else False))
        self._planning = True
        self._begin_step(self._clock())
        try:
            in_order, front = self._planner.plan(self._now, self._step, throttled)
            self.waiting.open_step(in_order, front)
            output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        finally:
            if self._planner.left_out:
                self._planner.put_back()
        self._end_step(output)
        self._planning = False
        return output

    def _begin_step(self, now: float) -> None:
        if self._settings.offered is not self._active:
            self._take_up()
        planner, facts = self._planner, self._planner.facts
        if self.kv_holding_waiting or self.waiting.parked:
            self.waiting.note_parked(self.kv_holding_waiting)
        if facts.work is not None:
            # Without a running request the engine may have idled since the last step.
            duration_s = now - self._now if self.running else None
            if planner.discipline.measures_steps and duration_s is not None:
                facts.took(duration_s, self._lags)
            if self._active.measures_work:
                self._observers.stepped(self._now, duration_s, facts.work)
        self._now = now
        self._step += 1
        self.counters.steps += 1
        if self._active.predicts and (self._predictions.pending or self._predictions.asks_worker):
            self._observers.contained.call("predictor", self._predictions.work)

    def _end_step(self, output: Any) -> None:
        # Who left the queue went before those that are still there, although its KV may have to
        # come from elsewhere before it runs. A session's next turn was not there: it has its slot.
        for row in self.waiting.close_step():
            self._planner.admitted(row)
        if output.scheduled_new_reqs or output.scheduled_cached_reqs.resumed_req_ids:
            for request_id, computed in schedulers.admitted(output):
                self.counters.admissions += 1
                self.counters.recomputed_tokens += self._planner.facts.lost(request_id, computed)
                self._observers.ran(self.requests[request_id], computed, self._now)
        if self._active.journal is not None:
            self._observers.planned(self._planner.paused, self._now)
        self._planner.facts.planned(output, in_full=self._active.measures_work)
        if self._planner.discipline.counts_steps and output.num_scheduled_tokens:
            self._planner.ran(output.num_scheduled_tokens)

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Take up what the probe says of the step, then let the parent take up its tokens."""
        if self._refinement is not None and self._planner.discipline.refines:
            self._refinement.take(attached(model_runner_output))
        if self.connector is not None:
            self._planner.facts.loaded(model_runner_output)
        return super().update_from_output(  # type: ignore[misc]
            scheduler_output, model_runner_output
        )

    # A request makes way, and ends ----------------------------------------------------------

    def _preempt_request(self, request: Any, timestamp: float, *args: Any, **kwargs: Any) -> None:
        """Note a preemption, whoever decided on it."""
        facts = self._planner.facts
        if self._planning:
            facts.preempted(request)
        offloaded = facts.offloaded(request)
        columns = self._live.table[self._live.row(request.request_id)]
        note_done(columns, facts.decoded, facts.prefilled)
        super()._preempt_request(request, timestamp, *args, **kwargs)  # type: ignore[misc]
        columns["age"] = request.num_output_tokens
        columns["computed_tokens"] = columns["look"] = 0
        if offloaded is not None:
            columns["cached_tokens"] = offloaded
        columns["last_step"] = self._step
        why = "reset"
        if self._planner.preempting:
            why = "policy"
            columns["preemptions"] += 1
            self.counters.preemptions += 1
        elif self._planning:  # else the cache is reset, which says nothing of memory
            why = "memory"
            columns["memory_preemptions"] += 1
            self.counters.memory_preemptions += 1
            facts.left(thrown_out=True)
        self._observers.preempted(request, self._now, why)

    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """A request ended, one way or another: its row is free."""
        if request.request_id not in self._live:  # not added by way of us
            return super()._free_request(request, *args, **kwargs)  # type: ignore[misc]
        columns = self._live.table[self._live.row(request.request_id)]
        self.counters.finished += 1
        self.counters.overtakes += int(columns["overtaken"])
        self._planner.tenants.leave(
            int(columns["tenant"]), request.num_prompt_tokens, request.num_output_tokens
        )
        self._planner.facts.forget(request.request_id)
        if str(request.get_finished_reason()) != _ABORTED:
            self._planner.facts.left(thrown_out=False)
        predicted = self._predictions.forget(request.request_id)
        self._observers.ended(request, predicted, self._clock())
        self._planner.choose_order()
        self.waiting.forget(request)
        self._live.release(request.request_id)
        return super()._free_request(request, *args, **kwargs)  # type: ignore[misc]

    def shutdown(self) -> None:
        """The engine ends: what is still to be written is, and all that was opened is closed."""
        self._settings.close()
        self._active = self._settings.active
        self._observers.use(self._active, other_predictor=False)
        if self._engine_file is not None:
            self._engine_file.close()
        super().shutdown()  # type: ignore[misc]

    # Settings -------------------------------------------------------------------------------

    def _take_up(self) -> None:
        """Exchange the settings, between two steps."""
        before, active = self._active, self._settings.take_up()
        self._active = active
        self.counters.settings_changes += 1
        self._observers.use(active, other_predictor=self._predictions.use(active.source))
        if active.predicts and not before.predicts:
            self._predictions.stand_in()  # those that came meanwhile expect none
        self.waiting.believe_clients(active.settings.believes_priority)
        self._planner.use(active)
        if (active.recorder, active.shadow) != (before.recorder, before.shadow):
            self._planner.facts.work = None  # the step before was not measured for this record

    def apply_now(self, settings: Settings) -> None:
        """Take settings up at once; for a scheduler that no other thread steps."""
        self._settings.offer(settings)
        self._take_up()

    def switch_off(self, off: bool) -> None:
        """Go back to vLLM's own order from the next step on, or on again; from any thread."""
        self._settings.switch_off(off)

    def begin_anew(self, clock: Callable[[], float]) -> None:
        """Forget all that was measured of steps and requests; for an engine that is idle.

        Args:
            clock: shows seconds; all times come from it from now on.
        """
        self._clock = clock
        self._now = clock()
        self._step = 0
        self._planner = self._new_planner()
        self._planner.use(self._active)
        if self._active.shadow is not None:
            self._active.shadow.clear()

    def _new_planner(self) -> Planner:
        return Planner(self, self._live, self.counters, self._observers, self._by_priority)


@cache
def scheduler_class(base: type, may_pause: bool = True) -> type:
    """The Lengthwise scheduler over one of vLLM's scheduler classes.

    Args:
        base: vLLM's.
        may_pause: the engine has places for requests that are paused.
    """
    ours = (PausedCounts, LengthwiseMixin) if may_pause else (LengthwiseMixin,)
    return type(f"Lengthwise{base.__name__}", (*ours, base), {})


class Scheduler:
    """What `--scheduler-cls lengthwise.vllm.Scheduler` names.

    Constructing it gives the adapter over the class that vLLM itself would have chosen: the
    asynchronous scheduler where asynchronous scheduling is on, since anything else would cost most
    of the throughput there, and the synchronous one elsewhere.
    """

    def __new__(cls, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
        """Build the adapter; takes what vLLM's own schedulers take."""
        version.require_supported_version()
        if vllm_config.scheduler_config.async_scheduling:
            from vllm.v1.core.sched.async_scheduler import AsyncScheduler as Base
        else:
            from vllm.v1.core.sched.scheduler import Scheduler as Base
        may_pause = schedulers.has_places_to_pause(vllm_config.scheduler_config)
        return scheduler_class(Base, may_pause)(vllm_config, *args, **kwargs)
