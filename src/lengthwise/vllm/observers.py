"""Those who are told what becomes of requests and steps, and decide nothing.

The rolling tau, the record, the length log, the journal, shadow mode and the queue times. One that
raises is counted, said once in the log, and asked no more until the settings change: requests are
served on without it. So is whatever else may be a user's own code.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from lengthwise.counters import Counters, QueueTimes
from lengthwise.errors import one_line
from lengthwise.request import BY_PROBE, LiveTable
from lengthwise.telemetry.journal import Journal
from lengthwise.telemetry.rolling_tau import RollingTau
from lengthwise.vllm.active import Active, stock_order
from lengthwise.vllm.compat import requests
from lengthwise.vllm.journal_notes import JournalNotes, Place
from lengthwise.vllm.queue import PolicyQueue
from lengthwise.workload.length_log import FULL

logger = logging.getLogger("vllm.lengthwise")

POLICY: Final = "policy"  #: the part whose rank function may raise


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
