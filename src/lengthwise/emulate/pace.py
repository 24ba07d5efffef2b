"""What a step of vLLM's plan does, and when it ends, by the engine's clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

from lengthwise.emulate.virtual_clock import Clock, MeasuredClock, VirtualClock
from lengthwise.errors import LengthwiseError
from lengthwise.simulate.step_cost import StepCost, step_seconds


class Pace(Protocol):
    """Says when steps end.

    Attributes:
        clock: what shows the time.
    """

    clock: Clock

    def restart(self, durations: Sequence[float] | None = None) -> None:
        """Let it be 0 s; for an engine that is idle.

        Args:
            durations: what each step takes from now on, in s, whatever its work is.
        """

    def end_of(self, work: Work) -> float:
        """When the step that has just been planned will be over, in s."""

    @property
    def start_s(self) -> float:
        """When that step can start, in s."""

    def start_no_sooner(self, time_s: float) -> None:
        """Let it not start before `time_s`."""


class ModelledPace:
    """Steps take what a model of their cost says, or what was recorded of others.

    A step starts when it is planned, or as soon as the one before it is over, as on a stream.
    """

    def __init__(self, cost: StepCost, clock: Clock) -> None:
        self.clock = clock
        self._terms = cost.terms
        self._busy_until_s = 0.0
        self._recorded: Iterator[float] | None = None

    def restart(self, durations: Sequence[float] | None = None) -> None:
        """See `Pace`."""
        assert isinstance(self.clock, VirtualClock)
        self.clock.now_s = self._busy_until_s = 0.0
        self._recorded = None if durations is None else iter(durations)

    def end_of(self, work: Work) -> float:
        """See `Pace`.

        Raises:
            LengthwiseError: fewer steps were recorded.
        """
        if self._recorded is None:
            seconds = float(step_seconds(self._terms, *work))
        else:
            recorded = next(self._recorded, None)
            if recorded is None:
                raise LengthwiseError("the engine takes more steps than were recorded")
            seconds = recorded
        self._busy_until_s = self.start_s + seconds
        return self._busy_until_s

    @property
    def start_s(self) -> float:
        """See `Pace`."""
        return max(self.clock.now(), self._busy_until_s)

    def start_no_sooner(self, time_s: float) -> None:
        """See `Pace`."""
        self._busy_until_s = max(self._busy_until_s, time_s)


class MeasuredPace:
    """Steps take as long as this machine needs for them, which is kept.

    For an engine that plans a step when the one before is over. A step then lasts from one end to
    the next: all that vLLM does in between is part of it.

    Attributes:
        durations: of the steps since the start, in s.
    """

    def __init__(self, read: Callable[[], float]) -> None:
        """Take a clock of the machine, such as `time.monotonic` or `time.process_time`."""
        self.clock = MeasuredClock(read)
        self.durations: list[float] = []

    def restart(self, durations: Sequence[float] | None = None) -> None:
        """See `Pace`; no durations can be given."""
        assert durations is None
        self.clock.restart()
        self.durations = []

    def end_of(self, work: Work) -> float:
        """See `Pace`; the step has just been computed."""
        start_s = self.clock.now()
        end_s = self.clock.read()
        self.durations.append(end_s - start_s)
        return end_s

    @property
    def start_s(self) -> float:
        """See `Pace`."""
        return self.clock.now()

    def start_no_sooner(self, time_s: float) -> None:
        """See `Pace`; what is computed is computed at once."""


class Later(Future):  # type: ignore[type-arg]
    """A result that is there once the clock shows the end of its step."""

    def __init__(self, output: Any, clock: Clock, end_s: float) -> None:
        super().__init__()
        self._clock = clock
        self._end_s = end_s
        self.set_result(output)

    def result(self, timeout: float | None = None) -> Any:
        """Let the step come to its end."""
        self._clock.wait_until(self._end_s)
        return super().result(timeout)


class Work(NamedTuple):
    """The work of one step, in the terms of `simulate.step_cost.WORK`."""

    prefill_tokens: int
    decode_tokens: int
    kv_tokens: int
    requests: int
    attention_tokens: float


class Batch:
    """The requests that a worker knows: how long their prompts are.

    A worker is told a prompt once, when its request first runs.
    """

    def __init__(self) -> None:
        self._prompt_tokens: dict[str, int] = {}

    def take(self, output: Any) -> tuple[Work, list[str], list[bool], list[int]]:
        """Take a plan up.

        Args:
            output: vLLM's SchedulerOutput.

        Returns:
            Its work; its requests in order; of each whether it gets its next token (all that is
            known of it is computed), and how many of its tokens are computed in the end.
        """
        for request_id in output.finished_req_ids:
            self._prompt_tokens.pop(request_id, None)
        scheduled = output.num_scheduled_tokens
        new, cached = output.scheduled_new_reqs, output.scheduled_cached_reqs
        started = {request.req_id for request in new}
        started.update(cached.resumed_req_ids)
        names: list[str] = []
        ends: list[int] = []
        complete: list[bool] = []
        for request in new:
            # The second model runner gets a resumed request as a new one, with its whole text.
            tokens = getattr(request, "prefill_token_ids", None) or request.prompt_token_ids
            self._prompt_tokens[request.req_id] = len(request.prompt_token_ids)
            end = request.num_computed_tokens + scheduled[request.req_id]
            names.append(request.req_id)
            ends.append(end)
            complete.append(end >= len(tokens))
        for name, computed, answered in zip(
            cached.req_ids, cached.num_computed_tokens, cached.num_output_tokens, strict=True
        ):
            end = computed + scheduled[name]
            names.append(name)
            ends.append(end)
            complete.append(end >= self._prompt_tokens[name] + answered)
        prefill = decode = 0
        attention = 0.0
        for name, end in zip(names, ends, strict=True):
            tokens = scheduled[name]
            if tokens > 1 or name in started:
                prefill += tokens
                attention += tokens * (end - 0.5 * (tokens - 1))
            else:
                decode += 1
        return Work(prefill, decode, sum(ends), len(names), attention), names, complete, ends
