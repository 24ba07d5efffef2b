"""When to train, what to accept, and when to take it back.

`Learner.step` is called again and again. It reads what was logged since and does at most one thing:

roll back   what the learner placed orders live answers clearly worse than it promised, and the one
            before orders the same answers no worse: that one is placed again
retrain     enough new answers came, or fewer but the present predictor's tau on them is clearly
            below what it promised (drift). The newest answers are held out; the new predictor is
            placed only if it is better on them (`acceptance`)

"Clearly" means that the 95 % bootstrap intervals do not overlap. The live sample is of answers that
have finished, as the held-out one was when the promise was made.

Placing is a change of one key in the settings file, which the scheduler watches. Whoever changes
that key by hand wins: the learner then leaves it alone. What it decided last is kept in
`learner.json` beside the log, so that a learner that was killed goes on where it was.
"""

from __future__ import annotations

import logging
import shutil
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import takewhile
from pathlib import Path
from typing import Final

import numpy as np

from lengthwise.errors import InputError
from lengthwise.learn.acceptance import (
    Comparison,
    compare,
    logged_scores,
    own_promise,
    scores_now,
    scores_of,
    tau_or_0,
    tau_or_0_with_interval,
)
from lengthwise.learn.learner_state import (
    State,
    place_predictor,
    read_predictor,
    read_state,
    write_state,
)
from lengthwise.learn.training_rows import is_full, lengths_of, of_one_kind, training_rows
from lengthwise.predict.kinds import Recipe
from lengthwise.predict.lexical import LexicalPredictor
from lengthwise.predict.load import NO_PREDICTOR
from lengthwise.predict.train import train_on_features
from lengthwise.workload.length_log import Answer, LengthLogReader

logger = logging.getLogger("lengthwise.learn")

PREDICTORS: Final = "predictors"  #: folder below the log's

_MOST_ANSWERS: Final = 11_000  # remembered: the newest, held-out ones included
_HELD_OUT: Final = 1_000  # at most
_LEAST_HELD_OUT: Final = 50
_LIVE: Final = 200  # answers that show drift or a broken promise
_LOOK_EVERY: Final = 50  # new answers between two looks at them


class Learner:
    """Learns from one log for one settings file.

    Args:
        log: the folder of the length log.
        settings: the settings file of the server.
        every: new answers that call for another training.
        restarts: how often a learner of this server had to be started again.
        goes_on: begin where the last learner of this log has stopped.
    """

    def __init__(
        self,
        log: Path,
        settings: Path,
        *,
        every: int = 1_000,
        restarts: int = 0,
        goes_on: bool = False,
    ) -> None:
        self._log = log.resolve()
        self._settings = settings
        self._every = every
        self._reader = LengthLogReader(log)
        self._answers: deque[Answer] = deque(maxlen=_MOST_ANSWERS)
        self._unseen = 0
        self._yielded = False
        self.state = read_state(log) if goes_on or restarts else State()
        self.state.restarts = restarts
        self._written: State | None = None

    def step(self) -> None:
        """Read what is new, and do what is due.

        Raises:
            OSError: the log's folder cannot be written.
        """
        for answer in self._reader.read_new():
            self._answers.append(answer)
            self._unseen += 1
        self.state.answers = len(self._answers)
        self.state.damaged = self._reader.damaged
        if self._may_place() and self._unseen >= min(_LOOK_EVERY, self._every):
            self._unseen = 0
            if not self._roll_back():
                self._retrain_if_due()
        if self.state != self._written:
            write_state(self._log, self.state)
            self._written = replace(self.state)

    def _may_place(self) -> bool:
        """Whether the settings file is as the learner left it."""
        try:
            there = read_predictor(self._settings)
        except (OSError, ValueError):
            return False  # being written, or gone: the scheduler keeps its settings too
        if self.state.placed is None:
            self.state.placed = there
            self.state.promise = own_promise(there)
            self.state.trained_until = self._start_of_the_new()
        if there == self.state.placed:
            self._yielded = False
            return True
        if not self._yielded:
            self._yielded = True
            self._say(f"the settings now say predictor {there}: it stays, learning is off")
        return False

    def _start_of_the_new(self) -> dict[str, int]:
        """Where the answers begin that the first predictor has not been trained with."""
        # An artifact that is served already knows the log's older answers, none knows nothing.
        known = self.state.promise is not None and len(self._answers) > 0
        return self._reader.reached() if known else {}

    def _is_new(self, answer: Answer) -> bool:
        """Whether an answer was logged since the last training."""
        return answer.position.offset > self.state.trained_until.get(answer.segment, 0)

    # Rolling back -----------------------------------------------------------------------------

    def _roll_back(self) -> bool:
        state = self.state
        if state.placed is None or state.promise is None:
            return False
        name = Path(state.placed).name
        live = [a for a in self._full() if a.values["predictor"] == name][-_LIVE:]
        if len(live) < _LIVE:
            return False
        lengths = lengths_of(live)
        tau, _, high = tau_or_0_with_interval(lengths, logged_scores(state.placed, live))
        state.live_tau = round(tau, 4)
        if not state.is_mine or high >= state.promise[1]:
            return False
        before = tau_or_0(lengths, scores_of(state.before, live))
        if before < tau:
            return False  # drift: neither is good, and the one before is worse
        promised = state.promise[0]
        if not self._place(state.before):
            return False
        state.rolled_back += 1
        state.promise, state.is_mine = state.promise_before, False
        state.before, state.promise_before = NO_PREDICTOR, None
        state.trained_until = self._reader.reached()
        self._say(
            f"rolled back from {name} to {state.placed}: tau {tau:.2f} on {len(live)} live "
            f"answers, {promised:.2f} was promised; the one before has {before:.2f}"
        )
        return True

    # Training ---------------------------------------------------------------------------------

    def _retrain_if_due(self) -> None:
        full = self._full()
        new = sum(map(self._is_new, full))
        if new < min(_LIVE, self._every):
            return
        drifted = self._has_drifted(full)
        if new >= self._every or drifted:
            self._retrain(full, new, drifted)

    def _has_drifted(self, full: Sequence[Answer]) -> bool:
        """Whether the present predictor is clearly worse on the newest answers than promised."""
        placed, promise = self.state.placed, self.state.promise
        if placed is None or promise is None:
            return False
        newest = full[-_LIVE:]
        _, _, high = tau_or_0_with_interval(lengths_of(newest), scores_of(placed, newest))
        return high < promise[1]

    def _retrain(self, full: Sequence[Answer], new: int, drifted: bool) -> None:
        state = self.state
        assert state.placed is not None
        # Half of what is new: the present predictor may have been trained with what is not.
        held_out = full[-int(np.clip(new // 2, _LEAST_HELD_OUT, _HELD_OUT)) :]
        older = list(takewhile(lambda a: a is not held_out[0], of_one_kind(self._answers)))
        windows = [older]
        if drifted:
            # What was learnt before may be wrong now, and there is more of it.
            windows.append(list(filter(self._is_new, older)))
        state.trained_until = self._reader.reached()
        lengths, present = lengths_of(held_out), scores_of(state.placed, held_out)
        tried: list[tuple[Comparison, LexicalPredictor]] = []
        for answers in windows:
            try:
                rows = training_rows(self._log, answers, self._reader.damaged)
                candidate = train_on_features(*rows, Recipe())
            except InputError as error:
                self._say(f"not trained: {error}")
                continue
            state.trained += 1
            scores = scores_now(candidate, held_out)
            tried.append((compare(lengths, scores, present, tried=len(windows)), candidate))
        if not tried:
            state.refused += 1
            return
        found, candidate = max(tried, key=lambda each: each[0].tau)
        state.comparison = {name: round(value, 4) for name, value in asdict(found).items()}
        if not found.is_better:
            state.refused += 1
            self._say(f"refused a new predictor: {_in_words(found)}")
            return
        before = state.placed
        try:
            folder = self._save(candidate)
        except (OSError, InputError) as error:
            self._say(f"cannot keep a new predictor: {error}")
            return
        if not self._place(str(folder)):
            shutil.rmtree(folder)
            return
        state.accepted += 1
        state.before, state.promise_before = before, state.promise
        state.promise, state.is_mine = (found.tau, found.tau_low, found.tau_high), True
        state.live_tau = None
        self._tidy_up()
        taught = candidate.metadata.training.rows
        self._say(f"placed {folder.name}, trained on {taught:,} answers: {_in_words(found)}")

    def _full(self) -> list[Answer]:
        """The remembered answers whose whole length is known."""
        return [answer for answer in of_one_kind(self._answers) if is_full(answer)]

    # Placing ----------------------------------------------------------------------------------

    def _save(self, predictor: LexicalPredictor) -> Path:
        folder = self._log / PREDICTORS
        folder.mkdir(exist_ok=True)
        numbers = [int(path.name[2:]) for path in folder.glob("p-*") if path.name[2:].isdecimal()]
        path = folder / f"p-{max(numbers, default=0) + 1:06d}"
        predictor.save(path)
        return path

    def _place(self, predictor: str) -> bool:
        """Make the scheduler use a predictor, unless the user has just chosen one."""
        assert self.state.placed is not None
        try:
            placed = place_predictor(self._settings, self.state.placed, predictor)
        except (OSError, ValueError) as error:
            self._say(f"cannot change {self._settings}: {error}")
            return False
        if placed:
            self.state.placed = predictor
        return placed

    def _tidy_up(self) -> None:
        """Keep the predictor that is placed and the one before."""
        kept = {self.state.placed, self.state.before}
        for path in (self._log / PREDICTORS).glob("p-*"):
            if str(path) not in kept:
                shutil.rmtree(path, ignore_errors=True)

    def _say(self, line: str) -> None:
        self.state.said = line
        logger.info("%s", line)


def latest_predictor(log: Path) -> str | None:
    """The predictor that was placed when learning from a log last ended, if it is still there."""
    placed = read_state(log).placed
    return placed if placed is not None and Path(placed).is_dir() else None


def _in_words(found: Comparison) -> str:
    better = f"better by at least {found.difference_low:.2f}" if found.is_better else "not better"
    return (
        f"tau {found.tau:.2f} ({found.tau_low:.2f} to {found.tau_high:.2f}) on the newest "
        f"{found.rows} answers, the present one {found.present_tau:.2f}: {better}"
    )
