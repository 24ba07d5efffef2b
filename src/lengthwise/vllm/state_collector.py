"""Keeps hidden states for training while a model answers: in vLLM's worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from lengthwise.vllm.hidden_states import STATES_ID, STATES_KEPT, Pending
from lengthwise.vllm.step_states import StepStates

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
