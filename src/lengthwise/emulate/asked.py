"""Requests to come to an engine in virtual time, and what became of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush


@dataclass(frozen=True)
class Asked:
    """One request to come.

    Attributes:
        prompt_ids: the prompt's tokens.
        output_tokens: the answer's length; None where a model that computes ends it itself.
        arrival_s: when it is sent, s from the start; in a closed loop as soon as a client is free.
            Of a later turn of a session: s from the end of the turn before it.
        after: of a later turn of a session, the place of the turn before it.
        priority: vLLM's, lower runs sooner.
        hints: what the client tells of it (`vllm_xargs`).
        abort_s: when its client goes away, s from the start; the engine hears of it between two
            steps. Who goes before sending sends nothing.
        ends_itself: the answer ends with an end token that the scheduler cannot foresee, as real
            answers do; else it is cut at its length.
    """

    prompt_ids: Sequence[int]
    output_tokens: int | None
    arrival_s: float = 0.0
    after: int | None = None
    priority: int = 0
    hints: Mapping[str, object] = field(default_factory=dict)
    abort_s: float = math.inf
    ends_itself: bool = True
    seed: int = 0
    most_tokens: int | None = None


@dataclass
class Served:
    """What became of a request; times in s from the start.

    Attributes:
        sent_s: when it was sent.
        token_s: when each token came.
        preemptions: how often it lost its place in the batch.
        cached_tokens: prompt tokens that the prefix cache held at its first step.
        finished: why it ended, in vLLM's words; None where it did not.
    """

    sent_s: float = math.nan
    token_s: list[float] = field(default_factory=list)
    preemptions: int = 0
    cached_tokens: int = 0
    finished: str | None = None

    @property
    def first_token_s(self) -> float:
        """When its first token came; NaN without one."""
        return self.token_s[0] if self.token_s else math.nan

    @property
    def finish_s(self) -> float:
        """When its last token came; NaN without one."""
        return self.token_s[-1] if self.token_s else math.nan


class Coming:
    """Requests that were not sent yet: they arrive at their times, or after a turn has ended."""

    def __init__(self, asked: Sequence[Asked], served: Sequence[Served]) -> None:
        self._asked, self._served = asked, served
        self._left = len(asked)
        self._next: dict[int, int] = {
            each.after: place for place, each in enumerate(asked) if each.after is not None
        }
        self._open: list[int] = []  # places of those that were sent and that others wait for
        self._known = [
            (each.arrival_s, place) for place, each in enumerate(asked) if each.after is None
        ]
        heapify(self._known)

    def __bool__(self) -> bool:
        """Whether any is left."""
        return self._left > 0

    @property
    def is_known(self) -> bool:
        """Whether it is known when the next one arrives."""
        return bool(self._known)

    @property
    def next_s(self) -> float:
        """When that is."""
        return self._known[0][0]

    def pop(self) -> tuple[float, int]:
        """Take the next one: when it arrives, and its place."""
        self._left -= 1
        return heappop(self._known)

    def sent(self, place: int) -> None:
        """Note that it is on its way, if another waits for its end."""
        if place in self._next:
            self._open.append(place)

    def end(self, place: int, ended_s: float) -> None:
        """Let the turn after it come, its delay after the end."""
        if place in self._next:
            after = self._next[place]
            heappush(self._known, (ended_s + self._asked[after].arrival_s, after))

    def look(self, now_s: float) -> None:
        """Let those come whose last turns have ended by now."""
        ended = [place for place in self._open if self._served[place].finished is not None]
        if ended:
            self._open = [place for place in self._open if self._served[place].finished is None]
        for place in ended:
            finish_s = self._served[place].finish_s
            self.end(place, now_s if math.isnan(finish_s) else finish_s)
