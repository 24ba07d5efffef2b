"""Runs the probe on the states of a step: in vLLM's worker, on the model's own device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from lengthwise.probe.probe_folder import Probe
from lengthwise.probe.torch_network import ProbeNetwork
from lengthwise.vllm.probe_output import Pending, ProbeOutput
from lengthwise.vllm.step_states import PromptStates, StepStates

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
