"""vLLM's scheduler with a policy in front of it.

The adapter is a mixin over the class that vLLM itself would use. It adds a short pass before the
parent's `schedule()`; the parent still does everything that correctness hangs on. In order:

1. take up changed settings, measure the last step, predict what has newly arrived;
2. let the `Planner` preempt where that pays, and open the queue's step in the frozen order;
3. call the parent; note who was admitted.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lengthwise.counters import Counters
from lengthwise.policy.discipline import Discipline
from lengthwise.policy.live_table import LiveTable
from lengthwise.policy.step_time import batch_s
from lengthwise.policy.tenants import Tenants
from lengthwise.request import BY_PROBE, PARKED, RUNNING
from lengthwise.settings import Settings, off_path, settings_of
from lengthwise.settings.off_switch import OffSwitch
from lengthwise.settings.watch import SettingsWatcher
from lengthwise.telemetry.engine_file import EngineFile, EngineState, engines_folder
from lengthwise.telemetry.queue_times import QueueTimes
from lengthwise.telemetry.rolling_tau import RollingTau
from lengthwise.vllm import compat, offloading
from lengthwise.vllm.active import Engine, Opener, stock_order
from lengthwise.vllm.journal_notes import JournalNotes
from lengthwise.vllm.observers import Containment
from lengthwise.vllm.plan import Planner
from lengthwise.vllm.predictions import Predictions, deadline_of, name_of, prompt_of, tenant_of
from lengthwise.vllm.probe_output import attached
from lengthwise.vllm.queue import PolicyQueue
from lengthwise.vllm.refinement import open_refinement
from lengthwise.vllm.step_work import prefilling, step_reads, step_tokens
from lengthwise.workload.length_log import FULL

_POLICY: Final = "policy"
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
        policy: Any
        connector: Any
        kv_holding_waiting: Any
        max_num_active_reqs: int
        max_num_running_reqs: int

    def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        compat.require_supported_version()
        compat.refuse_unsupported(vllm_config)
        super().__init__(vllm_config, *args, **kwargs)  # type: ignore[call-arg]
        compat.check_scheduler(self)
        self.counters = Counters()
        self._live = LiveTable()
        self._by_priority = compat.goes_by_priority(self)
        self._parent_chooses_victims = False
        self._planner = Planner(self, self._live, self._by_priority, self._give_up_policy)
        self.waiting = PolicyQueue(self._live, lambda: self._planner.next_rows(), self._by_priority)
        self._predictions = Predictions(self._live, self.counters)
        self._predictor_name = ""
        self._predicts = False
        self._tau = RollingTau(self.counters)
        self._disciplines: tuple[Discipline, Discipline] = 2 * (self._planner.discipline,)
        self._contained = Containment(self.counters)
        self._notes = JournalNotes(
            self._live, self.waiting, self._contained, lambda row: self._planner.place_of(row)
        )
        self._active = self._offered = self._prepared = stock_order()
        self._off = False  # the kill switch
        self._offering = threading.Lock()
        self._planning = False  # a step is being planned
        self._refinement = open_refinement(self._live, self.counters, vllm_config)
        self._opener = Opener(
            Engine(
                index=compat.engine_index(vllm_config),
                limits=compat.engine_limits(self),
                tokenizer=vllm_config.model_config.tokenizer,
                model=vllm_config.model_config.served_model_name,
                state=self._numbers,
                by_priority=self._by_priority,
                refusal_to_pause=compat.refusal_to_pause(self, vllm_config),
                has_probe=self._refinement is not None,
            ),
            self.counters,
        )
        self._step = 0
        self._clock: Callable[[], float] = time.monotonic  # read once a step, and at arrivals
        self._now = self._clock()
        self._lags = bool(vllm_config.scheduler_config.async_scheduling)
        self._last_work: dict[str, int] | None = None
        self._work_before: dict[str, int] | None = None
        self._first_step: dict[str, tuple[float, int]] = {}  # when, and its cached tokens then
        self._held_tokens: dict[str, int] = {}  # of preempted requests, computed by then
        self._believes_priority = self._by_priority
        self._parked: set[str] = set()
        self._queue_times = QueueTimes()
        self._watcher, self._off_switch = self._start_settings(vllm_config)
        self._engine_file = self._open_engine_file()

    def begin_anew(self, clock: Callable[[], float]) -> None:
        """Forget all that was measured of steps and requests; for an engine that is idle.

        Args:
            clock: shows seconds; all times come from it from now on.
        """
        self._clock = clock
        self._now = clock()
        self._step = 0
        self._last_work = self._work_before = None
        self._live.tenants = Tenants()
        self._planner = Planner(self, self._live, self._by_priority, self._give_up_policy)
        self._choose_order()
        if self._active.shadow is not None:
            self._active.shadow.clear()

    # Settings -------------------------------------------------------------------------------

    def _start_settings(self, vllm_config: Any) -> tuple[SettingsWatcher | None, OffSwitch | None]:
        settings = settings_of(vllm_config.additional_config)
        watcher = off_switch = None
        if isinstance(settings, Path):
            watcher = SettingsWatcher(
                settings,
                self._apply,
                self.counters,
                self._state,
                self._settle,
                compat.engine_index(vllm_config),
            )
            off_switch = OffSwitch(off_path(settings), self.switch_off)
        else:
            self._apply(settings)
        self._take_up()
        return watcher, off_switch

    def _apply(self, settings: Settings) -> dict[str, Any]:
        """Make settings ready and offer them; called at start-up, then in the watcher's thread."""
        prepared = self._opener.prepare(settings)
        with self._offering:
            self._prepared = prepared
            self._offer()
        return prepared.says()

    def switch_off(self, off: bool) -> None:
        """Go back to vLLM's own order from the next step on, or on again; from any thread."""
        with self._offering:
            self._off = off
            self._offer()

    def _offer(self) -> None:
        self._offered = self._prepared.in_stock_order() if self._off else self._prepared

    def _settle(self) -> bool:
        """Whether what was offered last is in force; closes what is no longer used."""
        # Between two steps it is: whatever comes next takes it up before anything else.
        between_steps = not self._planning
        if between_steps and len(self._live) == 0:
            self._opener.retire(self._prepared)
        else:  # requests that are running still write to what is in force
            self._opener.retire(self._prepared, self._active)
        return self._offered is self._active or between_steps

    def _take_up(self) -> None:
        """Exchange the settings, between two steps."""
        active = self._offered
        if active is self._active:
            return
        before = self._active
        measured = (active.recorder, active.shadow) == (before.recorder, before.shadow)
        self._active = active
        self._notes.journal = active.journal
        self.counters.settings_changes += 1
        self._contained.restart()
        # Under `--scheduling-policy priority`, that policy is what stock vLLM does.
        as_stock = self._by_priority and active.discipline.policy.name == "priority"
        self._disciplines = active.fcfs if as_stock else active.discipline, active.fcfs
        self._predicts = active.predicts
        self._predictor_name = Path(active.predictor or "").name
        if self._predictions.use(active.source):
            self._tau.restart(self._live.arrivals)
        decides = active.source is not None and active.discipline.policy.predicts
        self._tau.set_floor(active.settings.tau_floor if decides else None)
        self._choose_order()
        self._take_classes(active.settings)
        if not measured:
            self._last_work = None  # the step before was not measured for this record

    def _take_classes(self, settings: Settings) -> None:
        """Whether requests' own priorities count: where vLLM's would, or the operator says so."""
        believed = self._by_priority or settings.believes_priority
        if believed == self._believes_priority:
            return
        self._believes_priority = believed
        self._planner.classes_matter = self._by_priority
        for request_id in self._live.request_ids():
            row = self._live.row(request_id)
            priority = self._class_of(self._live.request(row))
            self._live.table["priority"][row] = priority
            self._planner.classes_matter |= priority != 0
        self.waiting.count_classes()

    def _class_of(self, request: Any) -> int:
        return compat.priority_class(request) if self._believes_priority else 0

    def apply_now(self, settings: Settings) -> None:
        """Take settings up at once; for a scheduler that no other thread steps."""
        self._apply(settings)
        self._take_up()

    def _choose_order(self) -> None:
        """The policy's order; that of fcfs while its predictions are below the floor."""
        as_queued = self._tau.below_floor or _POLICY in self._contained.off
        discipline = self._disciplines[as_queued]
        if discipline is self._planner.discipline:
            return
        self._planner.discipline = discipline
        self._parent_chooses_victims = self._by_priority and discipline.is_fcfs
        compat.let_parent_choose_victims(self, self._parent_chooses_victims)

    def _give_up_policy(self, error: Exception) -> None:
        """The policy has raised: the order is that of fcfs from now on."""
        self._contained.switch_off(_POLICY, error)
        self._choose_order()

    def _state(self) -> dict[str, Any]:
        """What the status file says beside the settings in force and the counters."""
        # What is offered to an idle engine is taken up with its next request.
        same = self._offered.source is self._active.source
        tau = self._tau.tau if same else None
        return {
            **(self._offered.says() if self._off else {}),
            "off": self._off,
            "rolling_tau": None if tau is None else round(tau, 3),
            "below_tau_floor": self._tau.below_floor,
            "switched_off": dict(self._contained.off),
            "shadow_estimate": shadow.estimate if (shadow := self._offered.shadow) else None,
        }

    def _open_engine_file(self) -> EngineFile | None:
        folder = engines_folder()
        index = self._opener.engine.index
        return None if folder is None else EngineFile(folder, self._numbers, index)

    def _numbers(self) -> EngineState:
        """The numbers of now, for metrics; asked in threads of their own."""
        engine = self._opener.engine
        return EngineState(
            engine=engine.index,
            model_name=engine.model,
            policy=self._active.settings.policy,
            counters=self.counters.snapshot(),
            gauges=self._gauges(),
            queue_times=self._queue_times.snapshot(),
        )

    def _gauges(self) -> dict[str, float]:
        prices = self._planner.step_time.counted
        return {
            "off": float(self._off),
            "shadow": float(self._offered.shadow is not None),
            "rolling_tau": math.nan if self._tau.tau is None else self._tau.tau,
            "below_tau_floor": float(self._tau.below_floor),
            "running_requests": float(len(self.running) - self._planner.paused_now),
            "paused_requests": float(self._planner.paused_now),
            "waiting_requests": float(len(self.waiting)),
            "step_decode_seconds": batch_s(prices, max(len(self.running), 1)),
            "prefill_token_seconds": float(prices["prefill_s"]),
            **(shadow.gauges() if (shadow := self._offered.shadow) else {}),
        }

    # Requests -------------------------------------------------------------------------------

    def add_request(self, request: Any) -> None:
        """Give a new request its row before the parent queues it."""
        if request.request_id not in self.requests:
            self._take_up()
            row = self._live.add(request.request_id, request)  # may replace the table
            if self._refinement is not None:
                self._refinement.forget(row)
            columns = self._live.table[row]
            columns["priority"] = self._class_of(request)
            self._start_waiting(columns)
            columns["prompt_tokens"] = request.num_prompt_tokens
            columns["most_tokens"] = compat.most_tokens(self, request)
            columns["deadline_s"] = deadline_of(request)
            columns["tenant"] = self._live.tenants.arrive(tenant_of(request))
            columns["adapter"] = compat.adapter(request)
            self._planner.classes_matter |= bool(columns["priority"] != 0)
            self._notes.arrived(request)
            if self._predicts:
                self._predictions.expect(request.request_id)
        super().add_request(request)  # type: ignore[misc]

    def _start_waiting(self, columns: Any) -> None:
        """A request, or a session's turn, arrives: what bounds its wait begins anew."""
        columns["arrival_s"] = self._clock()
        columns["last_step"] = self._step
        columns["ahead"] = self.waiting.of_class(int(columns["priority"]))
        columns["overtaken"] = columns["promoted"] = 0
        columns["decoded_before"], columns["prefilled_before"] = self._planner.work
        columns["queued_work"] = 0.0

    def _update_request_as_session(self, session: Any, update: Any) -> None:
        """A session goes on: the same row, a longer prompt, a new prediction."""
        super()._update_request_as_session(session, update)  # type: ignore[misc]
        row = self._live.row(session.request_id)
        # Its last turn has ended, at a length of which nothing is known.
        self._contained.call(
            "rolling tau", self._tau.ended, int(self._live.table["arrival_index"][row]), None, None
        )
        self._live.arrive_anew(session.request_id)
        self._first_step.pop(session.request_id, None)
        if self._refinement is not None:
            self._refinement.forget(row)
        columns = self._live.table[row]
        columns["prompt_tokens"] = session.num_prompt_tokens
        columns["age"] = 0
        self._start_waiting(columns)
        if self._predicts:
            self._predictions.expect(session.request_id)

    def _preempt_request(self, request: Any, timestamp: float, *args: Any, **kwargs: Any) -> None:
        """Note a preemption, whoever decided on it."""
        if self._planning:
            self._held_tokens[request.request_id] = request.num_computed_tokens
        offloaded = self._planner.offloaded(request) if offloading.offloads(self) else None
        super()._preempt_request(request, timestamp, *args, **kwargs)  # type: ignore[misc]
        columns = self._live.table[self._live.row(request.request_id)]
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
            self.counters.memory_preemptions += 1
            self._planner.left(thrown_out=True)
        self._notes.preempted(request, self._now, why)

    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """A request ended, one way or another: its row is free."""
        if request.request_id not in self._live:  # not added by way of us
            return super()._free_request(request, *args, **kwargs)  # type: ignore[misc]
        columns = self._live.table[self._live.row(request.request_id)]
        predicted = self._predictions.forget(request.request_id)
        self._held_tokens.pop(request.request_id, None)
        self.counters.finished += 1
        self.counters.overtakes += int(columns["overtaken"])
        self._live.tenants.leave(
            int(columns["tenant"]), request.num_prompt_tokens, request.num_output_tokens
        )
        ended = request.get_finished_reason()
        finished = None if ended is None else str(ended)
        if finished != _ABORTED:
            self._planner.left(thrown_out=False)
        # Whether a caller's own limit leaves room for the answer is asked before it is known which
        # came out: among those that fit, all answers would look short.
        # As it was said of the whole answer: what ranks is cut at the caller's limit.
        high = predicted["high_tokens"]
        whole = finished == FULL and (high is None or request.max_tokens >= high)
        self._contained.call(
            "rolling tau",
            self._tau.ended,
            int(columns["arrival_index"]),
            float(columns["score"]) if columns["predicted"] else None,
            request.num_output_tokens if whole else None,
        )
        began_s, cached_tokens = self._first_step.pop(request.request_id, (None, None))
        active = self._active
        if active.writes:
            arrival_s = float(columns["arrival_s"])
            values = {
                "queue_s": None if began_s is None else began_s - arrival_s,
                **predicted,
                "output_tokens": request.num_output_tokens,
                "prompt_tokens": request.num_prompt_tokens,
                "cached_tokens": cached_tokens,
                "finished": finished,
            }
            if active.recorder is not None:
                self._contained.call(
                    "record",
                    active.recorder.request,
                    id=name_of(request),
                    arrival_s=arrival_s,
                    preemptions=request.num_preemptions,
                    overtaken=int(columns["overtaken"]),
                    probe_tokens=float(columns["initial"])
                    if columns["predicted"] == BY_PROBE
                    else None,
                    **values,
                )
            # A prompt that came as embeddings has no words to learn from.
            if active.length_log is not None and request.prompt_token_ids is not None:
                values["predictor"] = self._predictor_name if columns["predicted"] else None
                prompt = prompt_of(request, int(columns["most_tokens"]))
                self._contained.call(
                    "length log", active.length_log.answer, prompt, arrival_s, values
                )
        if active.shadow is not None:
            self._contained.call("shadow", active.shadow.request, request, columns, self._clock())
        self._notes.ended(request, self._clock(), finished)
        self.waiting.forget(request)
        self._live.release(request.request_id)
        return super()._free_request(request, *args, **kwargs)  # type: ignore[misc]

    def shutdown(self) -> None:
        """The engine ends: what is still to be written is, and all that was opened is closed."""
        if self._off_switch is not None:
            self._off_switch.close()
        if self._watcher is not None:
            self._watcher.close()
        self._offered = self._offered.closed()
        self._active = self._offered
        self._notes.journal = None
        self._opener.retire()
        if self._watcher is not None:
            self._watcher.write_status()
        if self._engine_file is not None:
            self._engine_file.close()
        super().shutdown()  # type: ignore[misc]

    # Steps ----------------------------------------------------------------------------------

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """One step of the parent, in the policy's order."""
        throttled = bool(kwargs.get("throttle_prefills", args[0] if args else False))
        self._planning = True
        self._begin_step(self._clock())
        running = list(self.running) if self._parent_chooses_victims else None
        try:
            in_order, front = self._planner.plan(self._now, self._step, throttled)
            if running is not None and self._parent_chooses_victims:
                # As it was: the tail is not where victims are taken from.
                runs = set(self.running)
                self.running[:] = [request for request in running if request in runs]
            self.waiting.open_step(in_order, front)
            output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        finally:
            self._planner.put_back()
        self.counters.pauses += self._planner.newly_paused
        self.waiting.close_step()
        self._note_parked()
        self._end_step(output)
        self.counters.peeks += self._planner.newly_looking
        self._planning = False
        return output

    def get_request_counts(self) -> tuple[int, int]:
        """Running and waiting requests; within a step, too, paused ones are there to be served."""
        running, waiting = super().get_request_counts()  # type: ignore[misc]
        return running + self._planner.left_out, waiting

    def make_stats(self, *args: Any, **kwargs: Any) -> Any:
        """The parent's, without paused requests among the running ones: see the gauges."""
        stats = super().make_stats(*args, **kwargs)  # type: ignore[misc]
        if stats is not None:
            stats.num_running_reqs -= self._planner.paused_now
        return stats

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Take up what the probe says of the step, then let the parent take up its tokens."""
        if self._refinement is not None and self._planner.discipline.refines:
            self._refinement.take(attached(model_runner_output))
        if self.connector is not None:
            self._planner.loaded(*offloading.loaded(model_runner_output))
        outputs = super().update_from_output(  # type: ignore[misc]
            scheduler_output, model_runner_output
        )
        self._note_parked()
        return outputs

    def _note_parked(self) -> None:
        """Those that hold KV and wait, for a session's next turn or for KV that is sent, do not
        run; the parent keeps them in a queue of its own."""
        if not self.kv_holding_waiting and not self._parked:
            return
        parked = {request.request_id for request in self.kv_holding_waiting}
        for request_id in parked ^ self._parked:
            if request_id in self._live:
                running = compat.is_running(self.requests[request_id])
                state = self._live.table["state"]
                row = self._live.row(request_id)
                if request_id in parked or running:
                    state[row] = RUNNING if running else PARKED
        self._parked = parked

    def _begin_step(self, now: float) -> None:
        self._take_up()
        self._choose_order()
        # Without a running request the engine may have idled since the last step.
        duration_s = now - self._now if self.running else None
        if self._last_work is not None:
            # With asynchronous scheduling, what ran since the last plan is the step before it.
            ran = self._work_before if self._lags else self._last_work
            if (
                ran is not None
                and duration_s is not None
                and self._planner.discipline.measures_steps
            ):
                self._contained.call(
                    "measured prices",
                    self._planner.step_time.observe,
                    ran["prefill_tokens"],
                    ran["decode_tokens"],
                    duration_s,
                )
            if self._active.recorder is not None:
                step = self._active.recorder.step
                self._contained.call(
                    "record", step, t=self._now, duration_s=duration_s, **self._last_work
                )
            if self._active.shadow is not None:
                self._contained.call(
                    "shadow", self._active.shadow.step, duration_s, self._last_work
                )
        self._now = now
        self._step += 1
        self.counters.steps += 1
        if self._predicts:
            self._contained.call("predictor", self._predictions.work)

    def _end_step(self, output: Any) -> None:
        # Who left the queue went before those that are still there, although its KV may have to
        # come from elsewhere before it runs. A session's next turn was not there: it has its slot.
        for row in self.waiting.rows_that_left():
            self.counters.promotions += self._planner.admitted(row)
        for request_id, computed in compat.admitted(output):
            self._note_admission(self.requests[request_id], computed)
        self._notes.look_at_queue(self._now)
        self._notes.look_at_paused(self._planner.paused, self._now)
        scheduled = output.num_scheduled_tokens
        self._planner.ran(scheduled)
        self._work_before = self._last_work
        if not scheduled:
            self._last_work = None
            return
        prefills = prefilling(output)
        self._last_work = step_tokens(output, prefills)
        self._planner.worked(self._last_work["decode_tokens"], self._last_work["prefill_tokens"])
        if self._active.measures_work:
            self._last_work.update(
                step_reads(output, prefills, self.requests),
                running=len(self.running),
                waiting=len(self.waiting),
                free_blocks=compat.free_blocks(self),
                preempted=len(output.preempted_req_ids or ()),
            )

    def _note_admission(self, request: Any, computed: int) -> None:
        """A request runs from this step on, for the first time or again.

        Args:
            request: vLLM's.
            computed: its tokens that need not be computed now.
        """
        self.counters.admissions += 1
        held = self._held_tokens.pop(request.request_id, None)
        if held is not None:  # it was preempted: what was lost of its KV is computed anew
            lost = max(held - computed, 0)
            self.counters.recomputed_tokens += lost
            self._planner.came_back(held, lost)
        self._notes.ran(request, self._now)
        if request.request_id not in self._first_step:
            self._first_step[request.request_id] = self._now, computed
            self._contained.call("queue times", self._note_wait, request)

    def _note_wait(self, request: Any) -> None:
        """Count how long a request waited for its first step."""
        columns = self._live.table[self._live.row(request.request_id)]
        self._queue_times.observe(
            self._now - float(columns["arrival_s"]),
            compat.priority_class(request),
            float(columns["expected"]) if columns["predicted"] else None,
        )


@cache
def scheduler_class(base: type) -> type:
    """The Lengthwise scheduler over one of vLLM's scheduler classes."""
    return type(f"Lengthwise{base.__name__}", (LengthwiseMixin, base), {})


class Scheduler:
    """What `--scheduler-cls lengthwise.vllm.Scheduler` names.

    Constructing it gives the adapter over the class that vLLM itself would have chosen: the
    asynchronous scheduler where asynchronous scheduling is on, since anything else would cost most
    of the throughput there, and the synchronous one elsewhere.
    """

    def __new__(cls, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
        """Build the adapter; takes what vLLM's own schedulers take."""
        compat.require_supported_version()
        if vllm_config.scheduler_config.async_scheduling:
            from vllm.v1.core.sched.async_scheduler import AsyncScheduler as Base
        else:
            from vllm.v1.core.sched.scheduler import Scheduler as Base
        return scheduler_class(Base)(vllm_config, *args, **kwargs)
