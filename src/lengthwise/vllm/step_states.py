"""The hidden states of a step, in vLLM's worker: whose rows they are, and what the probe reads.

Prompts are pooled, and of each decode there is one row. All that is needed stands in vLLM's
`SchedulerOutput`, which is the same for every model runner. Positions count tokens of prompt and
answer from 0. The state at position p of a request with P prompt tokens is a prompt state where
p < P, and otherwise that of output token p − P + 1, its age.

Chunked prefill spreads a prompt over steps, so its sum is kept between them. A preempted request
computes its prompt and its answer again: neither is read twice. Prompt tokens found in the prefix
cache have no states; the pool says what share of the prompt it holds.

`ProbeReader` runs the probe on the states of a step, on the model's own device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lengthwise.probe.fit import ProbeNetwork
from lengthwise.probe.probe_folder import Probe
from lengthwise.vllm.hidden_states import Pending, ProbeOutput


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
