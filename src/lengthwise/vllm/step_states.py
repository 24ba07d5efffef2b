"""The hidden states of a step, in vLLM's worker: whose rows they are, read by the probe, or kept.

Prompts are pooled, and of each decode there is one row. All that is needed stands in vLLM's
`SchedulerOutput`, which is the same for every model runner. Positions count tokens of prompt and
answer from 0. The state at position p of a request with P prompt tokens is a prompt state where
p < P, and otherwise that of output token p − P + 1, its age.

Chunked prefill spreads a prompt over steps, so its sum is kept between them. A preempted request
computes its prompt and its answer again: neither is read twice. Prompt tokens found in the prefix
cache have no states; the pool says what share of the prompt it holds.

`ProbeReader` runs the probe on the states of a step, on the model's own device. `StateCollector`
keeps them for training while a model answers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lengthwise.probe.fit import ProbeNetwork
from lengthwise.probe.probe_folder import Probe
from lengthwise.vllm.hidden_states import STATES_ID, STATES_KEPT, Pending, ProbeOutput


class PromptStates(NamedTuple):
    """A prompt whose last token has been computed."""

    request_id: str
    mean: torch.Tensor  #: [layers, hidden] float32, over the tokens that were computed here
    last: torch.Tensor  #: [layers, hidden], of the last token
    share: float  #: of the prompt's tokens that were computed here and not found in the cache


class DecodeStates(NamedTuple):
    """One row for each request that computed an output token; shape [n, layers, hidden]."""

    request_ids: list[str]
    ages: list[int]
    states: torch.Tensor


@dataclass(slots=True)
class _Prompt:
    """How far a request has been read."""

    tokens: int
    pooled_to: int = 0  # positions below were pooled, or were in the cache when passed
    pooled: int = 0
    sums: torch.Tensor | None = None
    age: int = 0  # of the last decode state that was read


class StepStates:
    """Follows the requests of an engine from step to step.

    `begin` has to see every step; `prompts` and `decodes` then read the step's states.
    """

    def __init__(self) -> None:
        self._prompts: dict[str, _Prompt] = {}
        self._incomplete: set[str] = set()  # prompts of which some tokens are still to come
        self._scheduled: Any = None
        self._computed: dict[str, int] | None = None  # tokens computed before this step

    def begin(self, scheduled: Any) -> bool:
        """Take note of a step's plan.

        Args:
            scheduled: vLLM's SchedulerOutput.

        Returns:
            Whether `prompts` may find something; it has to be asked then.
        """
        for request_id in scheduled.finished_req_ids:
            self._prompts.pop(request_id, None)
            self._incomplete.discard(request_id)
        for new in scheduled.scheduled_new_reqs:
            known = self._prompts.get(new.req_id)
            # The second model runner is told of a resumed request as of a new one.
            if known is None or known.tokens != new.prompt_len:
                self._prompts[new.req_id] = _Prompt(new.prompt_len)
                self._incomplete.add(new.req_id)
        self._scheduled, self._computed = scheduled, None
        return bool(self._incomplete)

    def prompts(
        self, request_ids: Sequence[str], starts: Sequence[int], states: Sequence[torch.Tensor]
    ) -> list[PromptStates]:
        """Pool the prompt rows of this step.

        Args:
            request_ids: the batch, in the order of its rows.
            starts: shape [n + 1], the first row of each request and the end.
            states: one tensor [tokens, hidden] for each layer.

        Returns:
            The prompts that are complete with this step.
        """
        complete: list[PromptStates] = []
        if not self._incomplete:
            return complete
        computed = self._computed_before()
        for place, request_id in enumerate(request_ids):
            if request_id not in self._incomplete:
                continue
            prompt = self._prompts[request_id]
            first = computed[request_id]
            end = first + starts[place + 1] - starts[place]
            low, high = max(first, prompt.pooled_to), min(end, prompt.tokens)
            if low >= high:
                continue
            row = starts[place] - first  # plus a position: its row
            rows = slice(row + low, row + high)
            sums = torch.stack([layer[rows].sum(0, dtype=torch.float32) for layer in states])
            prompt.sums = sums if prompt.sums is None else prompt.sums + sums
            prompt.pooled += high - low
            prompt.pooled_to = high
            if high == prompt.tokens:
                last = torch.stack([layer[row + high - 1] for layer in states])
                share = prompt.pooled / prompt.tokens
                complete.append(PromptStates(request_id, prompt.sums / prompt.pooled, last, share))
                prompt.sums = None
                self._incomplete.remove(request_id)
        return complete

    def decodes(
        self, request_ids: Sequence[str], starts: Sequence[int], states: Sequence[torch.Tensor]
    ) -> DecodeStates | None:
        """The states of the newest output tokens; None where there are none.

        Arguments as for `prompts`.
        """
        ids: list[str] = []
        ages: list[int] = []
        rows: list[int] = []
        computed = self._computed_before()
        for place, request_id in enumerate(request_ids):
            prompt = self._prompts.get(request_id)
            if prompt is None:
                continue
            row = starts[place + 1] - 1
            position = computed[request_id] + row - starts[place]
            age = position - prompt.tokens + 1
            # After a preemption the answer is computed again, in several steps perhaps.
            if age <= prompt.age:
                continue
            prompt.age = age
            ids.append(request_id)
            ages.append(age)
            rows.append(row)
        if not ids:
            return None
        if rows[-1] == len(rows) - 1:  # one row each from the first on: no copy
            chosen = [layer[: len(rows)] for layer in states]
        else:
            index = torch.tensor(rows, device=states[0].device)
            chosen = [layer.index_select(0, index) for layer in states]
        return DecodeStates(ids, ages, torch.stack(chosen, dim=1))

    def _computed_before(self) -> dict[str, int]:
        """Tokens that each scheduled request had computed before this step."""
        if self._computed is None:
            cached = self._scheduled.scheduled_cached_reqs
            self._computed = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
            for new in self._scheduled.scheduled_new_reqs:
                self._computed[new.req_id] = new.num_computed_tokens
        return self._computed


#: A prompt of which less than this was computed here is too far from the means trained on.
LEAST_SHARE: Final = 0.5

_Host = Callable[[], NDArray[np.float32]]


@dataclass
class _Pending:
    """Predictions whose numbers may still be on their way."""

    output: ProbeOutput
    prompt: _Host | None
    decode: _Host | None
    future: Future[tuple[_Host | None, _Host | None]] | None = None

    @property
    def ready(self) -> bool:
        """Whether `result` would not wait for a thread."""
        return self.future is None or self.future.done()

    def result(self) -> ProbeOutput:
        """Wait for the numbers, which a device may still be copying."""
        if self.future is not None:
            try:
                self.prompt, self.decode = self.future.result()
            except Exception as error:  # the engine must outlive the probe
                return ProbeOutput(failed=f"{type(error).__name__}: {error}")
        if self.prompt is not None:
            self.output.prompt = self.prompt()
        if self.decode is not None:
            self.output.decode = self.decode()
        return self.output


class ProbeReader:
    """Predicts prompts as soon as they are computed, and decoding requests every few steps.

    Args:
        probe: the trained probe.
        device: the model's.
        interval: steps from one prediction to the next.
        asynchronous: predict in a thread of its own; each prediction is then sent with a later
            step. It is dated by the token it was made at, so lateness does no harm.
    """

    def __init__(
        self, probe: Probe, device: torch.device, interval: int, asynchronous: bool = False
    ) -> None:
        self._pool_mean = probe.metadata.pooling == "mean"
        self._decode = ProbeNetwork(probe.decode).to(device).eval()
        self._prompt = ProbeNetwork(probe.prompt).to(device).eval()
        self._interval = interval
        self._follower = StepStates()
        self._step = 0
        self._pending: deque[_Pending] = deque()
        self._thread = ThreadPoolExecutor(1, "lengthwise-probe") if asynchronous else None

    def begin(self, scheduled: Any) -> bool:
        """Take note of a step's plan (vLLM's SchedulerOutput), and say whether to read it."""
        self._step += 1
        return self._follower.begin(scheduled) or self._step % self._interval == 0

    def read(
        self, request_ids: Sequence[str], starts: Sequence[int], states: Sequence[torch.Tensor]
    ) -> None:
        """Predict from a step's states; arguments as for `StepStates.prompts`."""
        output = ProbeOutput()
        prompts = self._follower.prompts(request_ids, starts, states)
        pooled = self._pooled(prompts, output)
        decoding = None
        if self._step % self._interval == 0:
            decodes = self._follower.decodes(request_ids, starts, states)
            if decodes is not None:
                output.decode_ids = decodes.request_ids
                output.ages = np.array(decodes.ages, np.int64)
                decoding = decodes.states
        if pooled is None and decoding is None and not output.partial:
            return
        if self._thread is None:
            self._pending.append(_Pending(output, *self._predict(pooled, decoding)))
        else:
            # Both are copies: the engine may go on and reuse its buffers.
            future = self._thread.submit(self._predict, pooled, decoding)
            self._pending.append(_Pending(output, None, None, future))

    def ready(self) -> list[Pending]:
        """The predictions that can be sent with this step, oldest first."""
        taken: list[Pending] = []
        while self._pending and self._pending[0].ready:
            taken.append(self._pending.popleft())
        return taken

    def _pooled(self, prompts: list[PromptStates], output: ProbeOutput) -> torch.Tensor | None:
        """The prompts to predict as one tensor [n, layers, hidden]."""
        usable = [
            prompt for prompt in prompts if not self._pool_mean or prompt.share >= LEAST_SHARE
        ]
        output.partial = len(prompts) - len(usable)
        output.prompt_ids = [prompt.request_id for prompt in usable]
        if not usable:
            return None
        return torch.stack([prompt.mean if self._pool_mean else prompt.last for prompt in usable])

    def _predict(
        self, prompts: torch.Tensor | None, decodes: torch.Tensor | None
    ) -> tuple[_Host | None, _Host | None]:
        with torch.inference_mode():
            return (
                None if prompts is None else _to_host(self._prompt(prompts.flatten(1))),
                None if decodes is None else _to_host(self._decode(decodes.flatten(1))),
            )


def _to_host(values: torch.Tensor) -> _Host:
    """Start copying to the host, and return what waits for the copy."""
    if values.device.type == "cpu":
        there: NDArray[np.float32] = values.numpy()
        return lambda: there
    copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    copy.copy_(values, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def wait() -> NDArray[np.float32]:
        copied.synchronize()
        numbers: NDArray[np.float32] = copy.numpy()
        return numbers

    return wait


Halves = NDArray[np.float16]

_LARGEST: Final = 65504.0  # of float16


@dataclass
class CollectedStates:
    """What was kept of one request.

    Attributes:
        prompt_mean: shape [layers, hidden].
        prompt_last: shape [layers, hidden].
        ages: output tokens at each kept decode state, in no order.
        states: as many of shape [layers, hidden].
        dropped: states that were not finite.
    """

    prompt_mean: Halves | None = None
    prompt_last: Halves | None = None
    ages: list[int] = field(default_factory=list)
    states: list[Halves] = field(default_factory=list)
    dropped: int = 0


class _Kept:
    """A request's states while it runs: all, or a sample in which each is equally likely."""

    def __init__(self, name: str, most: int | None, seed: int) -> None:
        self.name = name
        self.collected = CollectedStates()
        self._most = most
        self._seen = 0
        # Of the request alone: the same states are kept whatever else is running.
        self._random = np.random.default_rng([seed, *name.encode()])

    def add(self, age: int, state: Halves) -> None:
        """Algorithm R: the t-th state takes a place among `most` with probability most / t."""
        kept = self.collected
        self._seen += 1
        if self._most is None or len(kept.states) < self._most:
            kept.ages.append(age)
            kept.states.append(state.copy())  # not a view that keeps the whole batch alive
            return
        place = int(self._random.integers(self._seen))
        if place < self._most:
            kept.ages[place] = age
            kept.states[place] = state.copy()


class StateCollector:
    """Collects the states of requests that carry the hint `lengthwise_id`.

    Args:
        seed: of the choice of states.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._follower = StepStates()
        self._kept: dict[str, _Kept] = {}  # by vLLM's own id
        self._by_name: dict[str, _Kept] = {}

    def begin(self, scheduled: Any) -> bool:
        """Take note of a step's plan (vLLM's SchedulerOutput). Every step is to be read."""
        self._follower.begin(scheduled)
        for request_id in scheduled.finished_req_ids:
            self._kept.pop(request_id, None)
        for new in scheduled.scheduled_new_reqs:
            hints = (new.sampling_params.extra_args if new.sampling_params else None) or {}
            if STATES_ID in hints and new.req_id not in self._kept:
                most = hints.get(STATES_KEPT)
                name = str(hints[STATES_ID])
                kept = _Kept(name, None if most is None else int(most), self._seed)
                self._kept[new.req_id] = self._by_name[name] = kept
        return True

    def read(
        self, request_ids: Sequence[str], starts: Sequence[int], states: Sequence[torch.Tensor]
    ) -> None:
        """Keep a step's states; arguments as for `StepStates.prompts`."""
        for prompt in self._follower.prompts(request_ids, starts, states):
            kept = self._kept.get(prompt.request_id)
            if kept is not None:
                kept.collected.prompt_mean = _halves(prompt.mean)
                kept.collected.prompt_last = _halves(prompt.last)
        decodes = self._follower.decodes(request_ids, starts, states)
        if decodes is None:
            return
        rows = _halves(decodes.states)
        finite = [bool(np.isfinite(row).all()) for row in rows]
        for place, request_id in enumerate(decodes.request_ids):
            kept = self._kept.get(request_id)
            if kept is None:
                continue
            if finite[place]:
                kept.add(decodes.ages[place], rows[place])
            else:
                kept.collected.dropped += 1

    def ready(self) -> list[Pending]:
        """Nothing is sent along with a step's output."""
        return []

    def take(self, names: Sequence[str]) -> list[CollectedStates]:
        """Hand over, and forget, what was kept of requests that have finished."""
        return [self._by_name.pop(name).collected for name in names]


def _halves(states: torch.Tensor) -> Halves:
    """As float16 on the host; what is too large for it is cut, NaN stays."""
    halves: Halves = states.float().clamp(-_LARGEST, _LARGEST).half().cpu().numpy()
    return halves
