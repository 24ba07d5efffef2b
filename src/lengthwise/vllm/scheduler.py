"""vLLM's scheduler with a policy in front of it.

The adapter is a mixin over the class that vLLM itself would use. It adds a short pass before the
parent's `schedule()`; the parent still does everything that correctness hangs on. In order:

1. take up changed settings, measure the last step, predict what has newly arrived;
2. let the `Planner` preempt where that pays, and open the queue's step in the frozen order;
3. call the parent; note who was admitted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lengthwise.errors import InputError
from lengthwise.policy.discipline import Discipline, make_discipline
from lengthwise.policy.warm_up import warm_up
from lengthwise.predict.load import NO_PREDICTOR, load_predictor
from lengthwise.predict.prediction import Predictor
from lengthwise.predict.token_text import TokenText, token_text_of
from lengthwise.predict.tokenizer import load_tokenizer
from lengthwise.vllm import compat
from lengthwise.vllm.counters import Counters, serve_metrics
from lengthwise.vllm.length_log import LengthLog
from lengthwise.vllm.plan import Planner
from lengthwise.vllm.prediction_source import Source, open_source
from lengthwise.vllm.predictions import Predictions, prompt_of
from lengthwise.vllm.probe_output import attached
from lengthwise.vllm.queue import PolicyQueue
from lengthwise.vllm.record import Recorder
from lengthwise.vllm.refinement import open_refinement
from lengthwise.vllm.rolling_tau import RollingTau
from lengthwise.vllm.settings import LengthLogSettings, Settings, parse_settings
from lengthwise.vllm.step_work import prefilling, step_reads, step_tokens
from lengthwise.vllm.table import LiveTable
from lengthwise.vllm.watch import SettingsWatcher
from lengthwise.workload.length_log import FULL


@dataclass(frozen=True)
class Prepared:
    """Settings made ready in the watcher's thread, for the engine to take up between two steps."""

    settings: Settings
    discipline: Discipline
    fcfs: Discipline  # the same, with nothing left to predictions
    spec: str | None  # of the predictor
    source: Source | None


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
        max_num_active_reqs: int

    def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        compat.require_supported_version()
        compat.refuse_unsupported(vllm_config)
        super().__init__(vllm_config, *args, **kwargs)  # type: ignore[call-arg]
        compat.check_scheduler(self)
        self.counters = Counters()
        self._live = LiveTable()
        self._by_priority = compat.run_parent_as_fcfs(self)
        self._planner = Planner(self, self._live, self._by_priority)
        self.waiting = PolicyQueue(self._live, lambda after: self._planner.next_rows(after))
        self._predictions = Predictions(self._live, self.counters)
        self._predictor_spec: str | None = None  # in force
        self._predictor_name = ""
        self._predicts = False
        self._tau = RollingTau(self.counters)
        self._disciplines: tuple[Discipline, Discipline] = 2 * (self._planner.discipline,)
        self._length_log: LengthLog | None = None
        self._token_text: TokenText | None = None
        self._model = vllm_config.model_config.served_model_name
        self._source: Source | None = None  # of predictions; made ready last
        self._refinement = open_refinement(self._live, self.counters, vllm_config)
        self._tokenizer = vllm_config.model_config.tokenizer
        self._prepared: Prepared | None = None
        self._recorder: Recorder | None = None
        self._metrics_port: int | None = None
        self._step = 0
        self._clock: Callable[[], float] = time.monotonic  # read once a step, and at arrivals
        self._now = self._clock()
        self._lags = bool(vllm_config.scheduler_config.async_scheduling)
        self._last_work: dict[str, int] | None = None
        self._work_before: dict[str, int] | None = None
        self._first_admission: dict[str, float] = {}
        self._cached_tokens: dict[str, int] = {}  # at the first admission
        self._held_tokens: dict[str, int] = {}  # of preempted requests, computed by then
        self._watcher = self._start_settings(vllm_config.additional_config)

    def begin_anew(self, clock: Callable[[], float]) -> None:
        """Forget all that was measured of steps and requests; for an engine that is idle.

        Args:
            clock: shows seconds; all times come from it from now on.
        """
        self._clock = clock
        self._now = clock()
        self._step = 0
        self._last_work = self._work_before = None
        self._planner = Planner(self, self._live, self._by_priority)
        self._choose_order()

    # Settings -------------------------------------------------------------------------------

    def _start_settings(self, additional_config: Any) -> SettingsWatcher | None:
        ours = (additional_config or {}).get("lengthwise")
        if not isinstance(ours, dict) or "settings" not in ours:
            raise InputError(
                "the Lengthwise scheduler needs --additional-config "
                '\'{"lengthwise": {"settings": "FILE"}}\''
            )
        settings = ours["settings"]
        watcher = None
        if isinstance(settings, str):
            watcher = SettingsWatcher(Path(settings), self._apply, self.counters, self._state)
        else:
            self._apply(parse_settings(settings))
        self._take_up()
        return watcher

    def _apply(self, settings: Settings) -> None:
        """Make settings ready; called at start-up and then from the watcher's thread."""
        arguments = settings.discipline_arguments(self.max_num_active_reqs)
        discipline = make_discipline(**arguments)
        fcfs = make_discipline(**{**arguments, "blend": 0.0})
        for each in (discipline, fcfs):
            warm_up(each)
        spec = discipline.policy.predictor or settings.predictor
        if not discipline.needs_predictions or spec == NO_PREDICTOR:
            spec = None
        if settings.metrics_port not in (None, self._metrics_port):
            serve_metrics(settings.metrics_port, self.counters, self._gauges)
            self._metrics_port = settings.metrics_port
        self._open_length_log(settings.length_log)
        source = self._open_source(spec, settings.stand_in) if spec is not None else None
        if self._source is not None and self._source is not source:
            # What a step still asks of it is asked again of the new one, with everything else.
            self._source.close()
        self._source = source
        self._prepared = Prepared(settings, discipline, fcfs, spec, source)

    def _open_source(self, spec: str, stand_in: str | None) -> Source:
        def load(name: str) -> Predictor:
            return load_predictor(name, tokenizer=self._tokenizer)

        def count_restart() -> None:
            self.counters.worker_restarts += 1

        return open_source(spec, stand_in, load, self._source, count_restart)

    def _open_length_log(self, wanted: LengthLogSettings | None) -> None:
        """Begin, change or end the length log; may wait for the disk, which no step does."""
        present = self._length_log
        if present is not None and present.settings == wanted:
            return
        log = None
        if wanted is not None:
            if self._token_text is None:
                self._token_text = token_text_of(load_tokenizer(self._tokenizer))
            log = LengthLog(wanted, self._token_text, self._model, self.counters)
        self._length_log = log
        if present is not None:
            present.close()

    def _take_up(self) -> None:
        """Exchange the settings, between two steps."""
        prepared, self._prepared = self._prepared, None
        if prepared is None:
            return
        self.counters.settings_changes += 1
        self._disciplines = prepared.discipline, prepared.fcfs
        self._predicts = prepared.discipline.needs_predictions
        self._predictor_spec = prepared.spec
        self._predictor_name = Path(prepared.spec or "").name
        if self._predictions.use(prepared.source):
            self._tau.restart(self._live.arrivals)
        decides = prepared.source is not None and prepared.discipline.policy.predicts
        self._tau.set_floor(prepared.settings.tau_floor if decides else None)
        self._choose_order()
        record = prepared.settings.record
        if self._recorder is not None and str(self._recorder.folder) != record:
            self._recorder.close()
            self._recorder = None
        if record is not None and self._recorder is None:
            self._recorder = Recorder(Path(record), compat.engine_limits(self))
            self._last_work = None  # the step before was not measured for this record

    def apply_now(self, settings: Settings) -> None:
        """Take settings up at once; for a scheduler that no other thread steps."""
        self._apply(settings)
        self._take_up()

    def _choose_order(self) -> None:
        """The policy's order; that of fcfs while its predictions are below the floor."""
        self._planner.discipline = self._disciplines[self._tau.below_floor]

    def _state(self) -> dict[str, Any]:
        """What the status file says beside the settings in force and the counters."""
        tau = self._tau.tau
        return {
            "predictor": self._predictor_spec,
            "rolling_tau": None if tau is None else round(tau, 3),
            "below_tau_floor": self._tau.below_floor,
        }

    def _gauges(self) -> dict[str, float]:
        return {
            "rolling_tau": math.nan if self._tau.tau is None else self._tau.tau,
            "below_tau_floor": float(self._tau.below_floor),
            "running_requests": float(len(self.running)),
            "waiting_requests": float(len(self.waiting)),
            "step_decode_seconds": self._planner.step_time.decode_s(max(len(self.running), 1)),
            "prefill_token_seconds": self._planner.step_time.prefill_s_per_token,
        }

    # Requests -------------------------------------------------------------------------------

    def add_request(self, request: Any) -> None:
        """Give a new request its row before the parent queues it."""
        if request.request_id not in self.requests:
            if self._prepared is not None:
                self._take_up()
            row = self._live.add(request.request_id, request)  # may replace the table
            if self._refinement is not None:
                self._refinement.forget(row)
            columns = self._live.table[row]
            columns["priority"] = request.priority
            columns["arrival_s"] = self._clock()
            columns["last_step"] = self._step
            columns["ahead"] = len(self.waiting)
            columns["prompt_tokens"] = request.num_prompt_tokens
            self._planner.classes_matter |= request.priority != 0
            if self._predicts:
                self._predictions.expect(request.request_id)
        super().add_request(request)  # type: ignore[misc]

    def _update_request_as_session(self, session: Any, update: Any) -> None:
        """A session goes on: the same row, a longer prompt, a new prediction."""
        super()._update_request_as_session(session, update)  # type: ignore[misc]
        row = self._live.row(session.request_id)
        if self._refinement is not None:
            self._refinement.forget(row)
        columns = self._live.table[row]
        columns["prompt_tokens"] = session.num_prompt_tokens
        columns["age"] = 0
        if self._predicts:
            self._predictions.expect(session.request_id)

    def _preempt_request(self, request: Any, timestamp: float, *args: Any, **kwargs: Any) -> None:
        """Note a preemption, whoever decided on it."""
        self._held_tokens[request.request_id] = request.num_computed_tokens
        super()._preempt_request(request, timestamp, *args, **kwargs)  # type: ignore[misc]
        columns = self._live.table[self._live.row(request.request_id)]
        columns["age"] = request.num_output_tokens
        columns["computed_tokens"] = 0
        columns["last_step"] = self._step
        if self._planner.preempting:
            columns["preemptions"] += 1
            self.counters.preemptions += 1
        else:
            self.counters.memory_preemptions += 1
            self._planner.left(thrown_out=True)

    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """A request ended, one way or another: its row is free."""
        columns = self._live.table[self._live.row(request.request_id)]
        predicted = self._predictions.forget(request.request_id)
        self._held_tokens.pop(request.request_id, None)
        self._planner.left(thrown_out=False)
        self.counters.finished += 1
        self.counters.overtakes += int(columns["overtaken"])
        ended = request.get_finished_reason()
        finished = None if ended is None else str(ended)
        self._tau.ended(
            int(columns["arrival_index"]),
            float(columns["score"]) if columns["predicted"] else None,
            request.num_output_tokens if finished == FULL else None,
        )
        admitted_s = self._first_admission.pop(request.request_id, None)
        cached_tokens = self._cached_tokens.pop(request.request_id, None)
        if self._writes:
            arrival_s = float(columns["arrival_s"])
            values = {
                "queue_s": None if admitted_s is None else admitted_s - arrival_s,
                **predicted,
                "output_tokens": request.num_output_tokens,
                "prompt_tokens": request.num_prompt_tokens,
                "cached_tokens": cached_tokens,
                "finished": finished,
            }
            if self._recorder is not None:
                self._recorder.request(
                    id=str(prompt_of(request).hints.get("lengthwise_id", request.request_id)),
                    arrival_s=arrival_s,
                    preemptions=request.num_preemptions,
                    overtaken=int(columns["overtaken"]),
                    **values,
                )
            log = self._length_log
            if log is not None:
                values["predictor"] = self._predictor_name if columns["predicted"] else None
                log.answer(prompt_of(request), arrival_s, values)
        self._live.release(request.request_id)
        return super()._free_request(request, *args, **kwargs)  # type: ignore[misc]

    @property
    def _writes(self) -> bool:
        """Whether anything is written of finished requests."""
        return self._recorder is not None or self._length_log is not None

    def shutdown(self) -> None:
        """The engine ends: what is still to be logged is written, the predictor's worker stops."""
        self._open_length_log(None)
        if self._recorder is not None:
            self._recorder.close()
            self._recorder = None
        if self._source is not None:
            self._source.close()
        super().shutdown()  # type: ignore[misc]

    # Steps ----------------------------------------------------------------------------------

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """One step of the parent, in the policy's order."""
        throttled = bool(kwargs.get("throttle_prefills", args[0] if args else False))
        self._begin_step(self._clock())
        in_order, front = self._planner.plan(self._now, self._step, throttled)
        self.waiting.open_step(in_order, front)
        output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        self.waiting.close_step()
        self._end_step(output)
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Take up what the probe says of the step, then let the parent take up its tokens."""
        if self._refinement is not None and self._planner.discipline.refines:
            self._refinement.take(attached(model_runner_output))
        return super().update_from_output(  # type: ignore[misc]
            scheduler_output, model_runner_output
        )

    def _begin_step(self, now: float) -> None:
        if self._prepared is not None:
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
                self._planner.step_time.observe(
                    ran["prefill_tokens"], ran["decode_tokens"], duration_s
                )
            if self._recorder is not None:
                self._recorder.step(t=self._now, duration_s=duration_s, **self._last_work)
        self._now = now
        self._step += 1
        self.counters.steps += 1
        if self._predicts:
            self._predictions.work()

    def _end_step(self, output: Any) -> None:
        for request in self.waiting.taken:
            if compat.is_running(request):
                self.counters.admissions += 1
                promoted = self._planner.admitted(self._live.row(request.request_id))
                self.counters.promotions += promoted
                self._note_return(request, output)
                if self._writes:
                    self._first_admission.setdefault(request.request_id, self._now)
        if self._writes:
            for new in output.scheduled_new_reqs:
                self._cached_tokens.setdefault(new.req_id, new.num_computed_tokens)
        scheduled = output.num_scheduled_tokens
        self._planner.ran(scheduled)
        self._work_before = self._last_work
        if not scheduled:
            self._last_work = None
            return
        prefills = prefilling(output)
        self._last_work = step_tokens(output, prefills)
        if self._recorder is not None:
            self._last_work.update(
                step_reads(output, prefills, self.requests),
                running=len(self.running),
                waiting=len(self.waiting),
                free_blocks=compat.free_blocks(self),
                preempted=len(output.preempted_req_ids or ()),
            )

    def _note_return(self, request: Any, output: Any) -> None:
        """Count what a preempted request that runs again has to compute a second time."""
        held = self._held_tokens.pop(request.request_id, None)
        if held is None:
            return
        scheduled = output.num_scheduled_tokens.get(request.request_id, 0)
        lost = max(held - (request.num_computed_tokens - scheduled), 0)
        self.counters.recomputed_tokens += lost
        self._planner.came_back(held, lost)


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
