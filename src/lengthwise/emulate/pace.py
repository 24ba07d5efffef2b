"""The time of an emulated engine: its clock, what it is told, and when each step ends.

A clock is moved by hand, or is the machine's own. What the engine is told is its part of
`additional_config`. When a step ends by the clock, a pace says, from what vLLM's plan does in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from lengthwise.errors import InputError, LengthwiseError, unknown_name
from lengthwise.simulate.engine import EngineSettings, StepCost, step_seconds
from lengthwise.simulate.presets import parse_preset


class Clock(Protocol):
    """What shows the time and lets it pass."""

    def now(self) -> float:
        """What it shows, in s."""

    def wait_until(self, time_s: float) -> None:
        """Let it be `time_s`, unless that is past."""


class VirtualClock:
    """Shows seconds since its start and moves only when it is told to.

    Attributes:
        now_s: what it shows.
    """

    def __init__(self) -> None:
        self.now_s = 0.0

    def now(self) -> float:
        """What it shows, in s; in the place of `time.monotonic`."""
        return self.now_s

    def wait_until(self, time_s: float) -> None:
        """Let it be `time_s`, unless that is past."""
        self.now_s = max(self.now_s, time_s)


class RealClock:
    """The machine's own time: waiting is sleeping."""

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def wait_until(self, time_s: float) -> None:
        """Sleep. Some 0.1 ms more than asked, which does not add up: steps end by plan."""
        left_s = time_s - time.monotonic()
        if left_s > 0.0:
            time.sleep(left_s)


class MeasuredClock(VirtualClock):
    """Shows the machine's time as it was when it was last read, in s since its start.

    So all that is decided and noted between two readings has one time, as in virtual time. Time in
    which nothing is done is not waited for.
    """

    def __init__(self, read: Callable[[], float]) -> None:
        """Take a clock of the machine, such as `time.monotonic` or `time.process_time`."""
        super().__init__()
        self._read = read
        self._origin_s = read()

    def restart(self) -> None:
        """Let it be 0 s."""
        self._origin_s = self._read()
        self.now_s = 0.0

    def read(self) -> float:
        """Read the machine's clock, and show that from now on."""
        self.now_s = max(self.now_s, self._read() - self._origin_s)
        return self.now_s

    def wait_until(self, time_s: float) -> None:
        """Let it be `time_s`, unless that is past."""
        if time_s > self.now_s:
            self._origin_s = self._read() - time_s
            self.now_s = time_s


EMULATE: Final = "emulate"  #: the key below "lengthwise"

_CLOCKS: Final[Mapping[str, Callable[[], Clock]]] = {"real": RealClock, "virtual": VirtualClock}
_PRESET: Final = {"preset", "clock", "asynchronous"}
_COSTS: Final = {"cost", "kv_blocks", "clock", "asynchronous"}
_EXAMPLE: Final = '{"lengthwise": {"emulate": {"preset": "a100:llama-3-8b"}}}'


@dataclass(frozen=True)
class EmulationSettings:
    """An emulated engine.

    Attributes:
        cost: what a step takes.
        kv_tokens: tokens that its KV memory holds.
        clock: its time.
        asynchronous: whether steps are planned while the last one runs, as on a GPU.
    """

    cost: StepCost
    kv_tokens: int
    clock: Clock
    asynchronous: bool


def emulation_settings(config: object, block_size: int) -> EmulationSettings:
    """Read the executor's part of `additional_config`.

    Args:
        config: `{"preset": "a100:llama-3-8b"}`, or `cost` (the fields of a StepCost) and
            `kv_blocks`; with either `clock` ("real", the default, or "virtual") and
            `asynchronous` (true).
        block_size: tokens in a block of `kv_blocks`.

    Raises:
        InputError: one line that says what is wrong.
    """
    if not isinstance(config, Mapping) or not config.keys() & {"preset", "cost"}:
        raise InputError(f"what is emulated? add --additional-config '{_EXAMPLE}'")
    known = _PRESET if "preset" in config else _COSTS
    for name in config.keys() - known:
        raise unknown_name("key of the emulation", str(name), known)
    clock = str(config.get("clock", "real"))
    if clock not in _CLOCKS:
        raise unknown_name("clock", clock, _CLOCKS)
    if "preset" in config:
        preset = parse_preset(str(config["preset"]))
        assert preset.engine.kv_blocks is not None
        cost, tokens = preset.cost, preset.engine.kv_blocks * preset.engine.block_size
    else:
        cost = _cost(config["cost"])
        blocks = config.get("kv_blocks")
        if blocks is None:
            raise InputError("the emulation's cost needs kv_blocks beside it: give their number")
        EngineSettings(kv_blocks=blocks)  # says what is wrong with it
        tokens = blocks * block_size
    return EmulationSettings(cost, tokens, _CLOCKS[clock](), bool(config.get("asynchronous", True)))


def _cost(fields: Any) -> StepCost:
    try:
        return StepCost(**fields)
    except TypeError as error:
        raise InputError(f"the emulation's cost is not a step cost: {error}") from None


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
    """The work of one step, in the terms of `simulate.engine.WORK`."""

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
