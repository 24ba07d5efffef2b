"""Those who are told what becomes of requests and steps, and decide nothing; and what is said.

Told are the rolling tau, the record, the length log, the journal, shadow mode and the queue times.
One that raises is counted, said once in the log, and asked no more until the settings change:
requests are served on without it. So is whatever else may be a user's own code.

`JournalNotes` is what the journal is told of requests. `Report` is what the scheduler says of
itself: in the status file, in metrics, in its engine's file.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

from lengthwise.counters import Counters, QueueTimes
from lengthwise.errors import one_line
from lengthwise.policy.prices import batch_s
from lengthwise.request import BY_PROBE, LOOKING, LiveTable
from lengthwise.telemetry.journal import Journal
from lengthwise.telemetry.prometheus import EngineFile, EngineState, engines_folder
from lengthwise.telemetry.rolling_tau import RollingTau
from lengthwise.vllm.compat import requests
from lengthwise.vllm.live_settings import Active, stock_order
from lengthwise.vllm.queue import PolicyQueue
from lengthwise.workload.length_log import FULL

logger = logging.getLogger("vllm.lengthwise")

POLICY: Final = "policy"  #: the part whose rank function may raise

Place = tuple[float | None, int | None]  #: rank and tier

_EVERY_S: Final = 1.0  # between two looks at the queue
_LOOKED_AT: Final = 256  # of those that wait


class Containment:
    """Calls parts by name, and keeps those out that have raised.

    Attributes:
        off: why parts are switched off, by their names.
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self.off: dict[str, str] = {}

    def call(self, part: str, function: Callable[..., object], *args: Any, **values: Any) -> None:
        """Call a part's function unless the part is switched off. Never raises."""
        if part in self.off:
            return
        try:
            function(*args, **values)
        except Exception as error:  # whatever it is, requests are served
            self.switch_off(part, error)

    def switch_off(self, part: str, error: Exception) -> None:
        """Note that a part has raised."""
        self.off[part] = f"{type(error).__name__}: {one_line(error)}"
        self._counters.switched_off += 1
        logger.error(
            "Lengthwise: the %s is switched off until the settings change: %s",
            part,
            self.off[part],
            exc_info=error,
        )

    def restart(self) -> None:
        """The settings have changed: every part gets another chance."""
        self.off = {}


class Observers:
    """Tells them, in the order of a request's life.

    Args:
        live: the scheduler's table.
        waiting: its queue.
        counters: what is counted there.
        place_of: the rank and the tier of a row in the step that is planned.

    Attributes:
        contained: keeps what goes wrong here from ending the engine.
        tau: how well predictions order the answers.
        queue_times: how long requests waited for their first step.
    """

    def __init__(
        self,
        live: LiveTable,
        waiting: PolicyQueue,
        counters: Counters,
        place_of: Callable[[int], Place],
    ) -> None:
        self.contained = Containment(counters)
        self.tau = RollingTau(counters)
        self.queue_times = QueueTimes()
        self._live = live
        self._waiting = waiting
        self._place_of = place_of
        self._active = stock_order()
        self._notes: JournalNotes | None = None
        self._predictor = ""
        self._first_step: dict[str, tuple[float, int]] = {}  # when, and its cached tokens then

    @property
    def doubts_policy(self) -> bool:
        """Whether the order is that of fcfs: predictions are below the floor, or it has raised."""
        return self.tau.below_floor or POLICY in self.contained.off

    def use(self, active: Active, other_predictor: bool) -> None:
        """The settings have changed: from now on these are told."""
        if active.journal is not self._active.journal:
            self._notes = self._new_notes(active.journal)
        self._active = active
        self._predictor = Path(active.predictor or "").name
        self.contained.restart()
        if other_predictor:
            self.tau.restart(self._live.arrivals)
        decides = active.source is not None and active.discipline.policy.predicts
        self.tau.set_floor(active.settings.tau_floor if decides else None)

    def arrived(self, request: Any) -> None:
        """A request, which has its row, is about to be queued."""
        if self._notes is not None:
            self.contained.call("journal", self._notes.arrived, request)

    def turn_ended(self, request: Any) -> None:
        """A session goes on: its last turn has ended, at a length of which nothing is known."""
        index = int(self._live.table["arrival_index"][self._live.row(request.request_id)])
        self.contained.call("rolling tau", self.tau.ended, index, None, None)
        self._first_step.pop(request.request_id, None)

    def ran(self, request: Any, computed: int, now: float) -> None:
        """A request runs from this step on, for the first time or again.

        Args:
            request: vLLM's.
            computed: its tokens that need not be computed now.
            now: s, when the step is planned.
        """
        if self._notes is not None:
            self.contained.call("journal", self._notes.ran, request, now)
        if request.request_id not in self._first_step:
            self._first_step[request.request_id] = now, computed
            self.contained.call("queue times", self._note_wait, request, now)

    def preempted(self, request: Any, now: float, why: str) -> None:
        """A request lost its slot: `policy`, `memory` or `reset`."""
        if self._notes is not None:
            self.contained.call("journal", self._notes.preempted, request, now, why)

    def planned(self, paused: Sequence[Any], now: float) -> None:
        """A step has been planned, in which these are paused."""
        if self._notes is not None:
            self.contained.call("journal", self._notes.planned, paused, now)

    def stepped(self, began_s: float, duration_s: float | None, work: Mapping[str, int]) -> None:
        """A step has run.

        Args:
            began_s: when it was planned.
            duration_s: None where it is not known.
            work: what it did.
        """
        active = self._active
        if active.recorder is not None:
            self.contained.call(
                "record", active.recorder.step, t=began_s, duration_s=duration_s, **work
            )
        if active.shadow is not None:
            self.contained.call("shadow", active.shadow.step, duration_s, work)

    def ended(self, request: Any, predicted: Mapping[str, float | None], now: float) -> None:
        """A request has ended, and still has its row.

        Args:
            request: vLLM's.
            predicted: what was predicted from its prompt, under the names of the record.
            now: s.
        """
        row = self._live.row(request.request_id)
        columns = self._live.table[row]
        ended = request.get_finished_reason()
        finished = None if ended is None else str(ended)
        self._tell_tau(request, columns, predicted["high_tokens"], finished)
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
            self._record(request, columns, arrival_s, values)
            self._log_length(request, columns, arrival_s, values)
        if active.shadow is not None:
            self.contained.call("shadow", active.shadow.request, request, columns, now)
        if self._notes is not None:
            self.contained.call("journal", self._notes.ended, request, now, finished)

    def _new_notes(self, journal: Journal | None) -> JournalNotes | None:
        if journal is None:
            return None
        return JournalNotes(journal, self._live, self._waiting, self._place_of)

    def _note_wait(self, request: Any, now: float) -> None:
        """Count how long a request waited for its first step."""
        columns = self._live.table[self._live.row(request.request_id)]
        self.queue_times.observe(
            now - float(columns["arrival_s"]),
            requests.priority_class(request),
            float(columns["expected"]) if columns["predicted"] else None,
        )

    def _tell_tau(
        self, request: Any, columns: Any, high: float | None, finished: str | None
    ) -> None:
        # Whether a caller's own limit leaves room for the answer is asked before it is known which
        # came out: among those that fit, all answers would look short.
        # As it was said of the whole answer: what ranks is cut at the caller's limit.
        whole = finished == FULL and (high is None or request.max_tokens >= high)
        self.contained.call(
            "rolling tau",
            self.tau.ended,
            int(columns["arrival_index"]),
            float(columns["score"]) if columns["predicted"] else None,
            request.num_output_tokens if whole else None,
        )

    def _record(
        self, request: Any, columns: Any, arrival_s: float, values: Mapping[str, object]
    ) -> None:
        recorder = self._active.recorder
        if recorder is None:
            return
        by_probe = columns["predicted"] == BY_PROBE
        self.contained.call(
            "record",
            recorder.request,
            id=requests.name_of(request),
            arrival_s=arrival_s,
            preemptions=request.num_preemptions,
            overtaken=int(columns["overtaken"]),
            probe_tokens=float(columns["initial"]) if by_probe else None,
            **values,
        )

    def _log_length(
        self, request: Any, columns: Any, arrival_s: float, values: Mapping[str, object]
    ) -> None:
        log = self._active.length_log
        # A prompt that came as embeddings has no words to learn from.
        if log is None or request.prompt_token_ids is None:
            return
        predictor = self._predictor if columns["predicted"] else None
        prompt = requests.prompt_of(request, int(columns["most_tokens"]))
        line = {**values, "predictor": predictor}
        self.contained.call("length log", log.answer, prompt, arrival_s, line)


class JournalNotes:
    """Notes events of requests in a journal.

    Args:
        journal: where to.
        live: the scheduler's table.
        waiting: its queue.
        place_of: the rank and the tier of a row in the step that is planned.
    """

    def __init__(
        self,
        journal: Journal,
        live: LiveTable,
        waiting: PolicyQueue,
        place_of: Callable[[int], Place],
    ) -> None:
        self._journal = journal
        self._live = live
        self._waiting = waiting
        self._place_of = place_of
        self._looked_s = -_EVERY_S
        self._paused: dict[str, Any] = {}

    def arrived(self, request: Any) -> None:
        """A request, which has its row, is about to be queued."""
        columns = self._live.table[self._live.row(request.request_id)]
        self._put(
            "arrived",
            request,
            float(columns["arrival_s"]),
            id=requests.name_of(request),
            index=int(columns["arrival_index"]),
            priority=requests.priority_class(request),
            prompt_tokens=request.num_prompt_tokens,
            waiting=len(self._waiting),
        )

    def ran(self, request: Any, now: float) -> None:
        """A request got a slot in the step that is planned."""
        row = self._live.row(request.request_id)
        index = int(self._live.table["arrival_index"][row])
        rank, tier, expected = self._place_and_prediction(row)
        facts = {"index": index, "rank": rank, "tier": tier, "expected": expected}
        if self._live.table["look"][row] == LOOKING:
            facts["look"] = True
        self._put("ran", request, now, **facts)

    def preempted(self, request: Any, now: float, why: str) -> None:
        """A request lost its slot: `policy`, `memory` or `reset`."""
        tokens = request.num_output_tokens
        self._put("preempted", request, now, why=why, output_tokens=tokens)

    def ended(self, request: Any, now: float, finished: str | None) -> None:
        """A request has ended, for a reason in vLLM's words."""
        tokens = request.num_output_tokens
        self._put("ended", request, now, finished=finished, output_tokens=tokens)

    def planned(self, paused: Sequence[Any], now: float) -> None:
        """Once a second, the first of those that wait; and who is paused, and who runs again."""
        if not 0.0 <= now - self._looked_s < _EVERY_S:
            self._looked_s = now
            self._look_at_queue(now)
        if paused or self._paused:
            self._look_at_paused(paused, now)

    def _put(self, event: str, request: Any, t: float, **facts: Any) -> None:
        self._journal.put(t=t, event=event, request=request.request_id, **facts)

    def _look_at_queue(self, now: float) -> None:
        """As far as they have been ranked."""
        rows = {
            request.request_id: self._place_and_prediction(self._live.row(request.request_id))
            for request in islice(self._waiting.queued(), _LOOKED_AT)
        }
        if rows:
            self._journal.put(t=now, event="queue", requests=rows)

    def _look_at_paused(self, paused: Sequence[Any], now: float) -> None:
        before, self._paused = self._paused, {each.request_id: each for each in paused}
        for name, request in self._paused.items():
            if name not in before:
                self._put("paused", request, now, output_tokens=request.num_output_tokens)
        for name, request in before.items():
            # Whoever has ended or lost its memory since has an event of its own.
            if name not in self._paused and requests.is_running(request):
                self._put("resumed", request, now)

    def _place_and_prediction(self, row: int) -> tuple[float | None, int | None, float | None]:
        columns = self._live.table[row]
        expected = float(columns["expected"]) if columns["predicted"] else None
        return *self._place_of(row), expected


class Report:
    """Reads a scheduler, in threads of its own; changes nothing.

    Args:
        scheduler: with all its parts.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler

    def status(self) -> dict[str, Any]:
        """What the status file says beside the settings in force and the counters."""
        here = self._scheduler
        settings, tau = here._settings, here._observers.tau
        # What is offered to an idle engine is taken up with its next request.
        same = settings.offered.source is settings.active.source
        shown = tau.tau if same else None
        shadow = settings.offered.shadow
        return {
            **(settings.offered.says() if settings.off else {}),
            "off": settings.off,
            "rolling_tau": None if shown is None else round(shown, 3),
            "below_tau_floor": tau.below_floor,
            "switched_off": dict(here._observers.contained.off),
            "shadow_estimate": None if shadow is None else shadow.estimate,
        }

    def numbers(self) -> EngineState:
        """The numbers of now, for metrics."""
        here = self._scheduler
        engine = here._settings.engine
        return EngineState(
            engine=engine.index,
            model_name=engine.model,
            policy=here._settings.active.settings.policy,
            counters=here.counters.snapshot(),
            gauges=self.gauges(),
            queue_times=here._observers.queue_times.snapshot(),
        )

    def gauges(self) -> dict[str, float]:
        """Present values, by name."""
        here = self._scheduler
        planner, tau = here._planner, here._observers.tau
        prices, shadow = planner.facts.step_time.counted, here._settings.offered.shadow
        paused = planner.paused_now
        # While a step is planned, vLLM's running requests are without the paused ones.
        running = len(here.running) + planner.left_out - paused
        return {
            "off": float(here._settings.off),
            "shadow": float(shadow is not None),
            "rolling_tau": math.nan if tau.tau is None else tau.tau,
            "below_tau_floor": float(tau.below_floor),
            "running_requests": float(running),
            "paused_requests": float(paused),
            "waiting_requests": float(len(here.waiting)),
            "step_decode_seconds": batch_s(prices, max(running, 1)),
            "prefill_token_seconds": float(prices["prefill_s"]),
            **({} if shadow is None else shadow.gauges()),
        }

    def in_file(self) -> EngineFile | None:
        """Keep the numbers in the file that an API server's /metrics reads, where it wants one."""
        folder = engines_folder()
        index = self._scheduler._settings.engine.index
        return None if folder is None else EngineFile(folder, self.numbers, index)
