"""Seeded random traffic for `SteppedEngine`: arrivals in waves, aborts, resets and pauses.

Several engines can be fed the same events, so that their steps can be compared. KV is scarce if the
engine was built with few blocks: prompts and answers are up to about 10 blocks of 16 tokens.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from bench.support.engine_harness import Ask, SteppedEngine

_SHARED_PREFIXES = ([5] * 32, [6] * 48, list(range(10, 90)), [])


class RandomTraffic:
    """Events for one or several engines, decided from a seed and the first engine's state.

    Args:
        seed: of everything.
        most_live: arrivals stop while so many requests are unfinished.
        classes: priorities are drawn from 0 … classes - 1.
        disturbances: also reset the prefix cache, preempt everything, and pause.
    """

    def __init__(
        self, seed: int, most_live: int = 40, classes: int = 1, disturbances: bool = True
    ) -> None:
        self._rng = random.Random(seed)
        self._most_live = most_live
        self._classes = classes
        self._disturbances = disturbances
        self._arrivals = 0
        self._rate = 0.2
        self._paused = False

    def ask(self) -> Ask:
        """The next request."""
        rng = self._rng
        self._arrivals += 1
        tail = [rng.randrange(100, 1000) for _ in range(rng.randint(1, 60))]
        answer = min(1 + int(rng.expovariate(1 / 35)), 160)
        return Ask(
            request_id=f"r{self._arrivals}",
            prompt=rng.choice(_SHARED_PREFIXES) + tail,
            answer=answer,
            max_tokens=rng.choice((None, None, 1, 30)),
            priority=rng.randrange(self._classes),
            arrival_time=float(self._arrivals),
            hints={"lengthwise_true_tokens": answer},
        )

    def act(self, engines: Sequence[SteppedEngine]) -> None:
        """Let happen to every engine what happens before the next step."""
        rng = self._rng
        if rng.random() < 0.005:
            self._rate = rng.choice((0.02, 0.1, 0.2, 0.4))
        live = engines[0].live()
        wave = rng.randint(5, 20) if rng.random() < 0.01 else int(rng.random() < self._rate)
        for _ in range(min(wave, self._most_live - len(live))):
            ask = self.ask()
            for engine in engines:
                engine.add(ask)
        if live and rng.random() < 0.02:
            # Also one that is unknown, as when an abort comes too late.
            aborted = [*rng.sample(live, min(len(live), rng.choice((1, 1, 1, 4)))), "unknown"]
            for engine in engines:
                engine.abort(aborted)
        if self._disturbances:
            self._disturb(engines)

    def _disturb(self, engines: Sequence[SteppedEngine]) -> None:
        from vllm.v1.core.sched.interface import PauseState

        rng = self._rng
        if rng.random() < 0.003:
            preempt_all = rng.random() < 0.5
            for engine in engines:
                engine.scheduler.reset_prefix_cache(reset_running_requests=preempt_all)
        if self._paused and rng.random() < 0.2:
            self._paused = False
            for engine in engines:
                engine.scheduler.set_pause_state(PauseState.UNPAUSED)
        elif not self._paused and rng.random() < 0.002:
            self._paused = True
            state = rng.choice((PauseState.PAUSED_NEW, PauseState.PAUSED_ALL))
            for engine in engines:
                engine.scheduler.set_pause_state(state)

    def settle(self, engines: Sequence[SteppedEngine]) -> None:
        """Undo a pause, so that the engines can be drained."""
        from vllm.v1.core.sched.interface import PauseState

        self._paused = False
        for engine in engines:
            engine.scheduler.set_pause_state(PauseState.UNPAUSED)
