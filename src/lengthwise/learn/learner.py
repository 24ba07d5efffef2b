"""When to train, what to accept, and when to take it back.

What learning has come to is in two files. learner.json, beside the log, says what was decided last,
for whoever looks and so that a learner that was killed goes on where it was. The settings file
belongs to the user: it is read, its key `predictor` is exchanged and it is written whole, unless it
has changed in between or the key no longer says what learning put there: whoever changes that key
by hand wins, and the learner then leaves it alone. The scheduler watches the file.

Whether a new predictor orders answers better than the present one, and how sure that is: both score
the same held-out answers, the newest ones, that neither was trained on. The answers are drawn with
replacement again and again, and the difference of the two taus is taken of each draw (a paired
bootstrap: Efron and Tibshirani, 1993, chapter 16). The new one is better if that difference is
above 0 in all but the lowest 2.5 % of the draws.

`Learner.step` is called again and again. It reads what was logged since and does at most one thing:

roll back   what the learner placed orders live answers clearly worse than it promised, and the one
            before orders the same answers no worse: that one is placed again
retrain     enough new answers came, or fewer but the present predictor's tau on them is clearly
            below what it promised (drift). The newest answers are held out; the new predictor is
            placed only if it is better on them

"Clearly" means that the 95 % bootstrap intervals do not overlap. The live sample is of answers that
have finished, as the held-out one was when the promise was made.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from lengthwise.errors import InputError
from lengthwise.files import parse_json, read_bounded, replace_file, replaced
from lengthwise.intervals import draws
from lengthwise.predict.kendall import kendall_tau, tau_with_interval
from lengthwise.predict.kinds import Recipe
from lengthwise.predict.lexical import LexicalPredictor
from lengthwise.predict.load import NO_PREDICTOR, load_predictor
from lengthwise.predict.train import (
    features_of,
    is_full,
    lengths_of,
    of_one_kind,
    train_on_features,
    training_rows,
)
from lengthwise.workload.length_log import Answer, LengthLogReader

logger = logging.getLogger("lengthwise.learn")

STATE_FILE: Final = "learner.json"
SCHEMA: Final = "lengthwise.learner/1"
PREDICTORS: Final = "predictors"  #: folder below the log's
SERVERS: Final = ".servers"  #: folder below the log's: whose settings may name one of them
MOST_BYTES: Final = 1 << 20  #: of a settings file, as the scheduler has it
_ATTEMPTS: Final = 5  # at changing it, where somebody else writes it too

_RESAMPLES: Final = 400  # of the held-out answers, to compare two predictors
_LOWEST: Final = 0.025  # share of them in which a better predictor may be worse

_MOST_ANSWERS: Final = 11_000  # remembered: the newest, held-out ones included
_HELD_OUT: Final = 1_000  # at most
_LEAST_HELD_OUT: Final = 50
_LIVE: Final = 200  # answers that show drift or a broken promise
_LOOK_EVERY: Final = 50  # new answers between two looks at them

Promise = tuple[float, float, float]  #: a tau when it was measured, and its 95 % interval
Scores = NDArray[np.float64]


@dataclass
class State:
    """The fields of learner.json."""

    schema: str = SCHEMA  # with its version
    settings: str | None = None  # the file whose key `predictor` this is about
    said: str = "nothing learnt yet"  # the last decision, in one line
    placed: str | None = None  # what the key `predictor` says, as far as the learner knows
    is_mine: bool = False  # whether the learner placed it
    promise: Promise | None = None  # its tau when it was accepted
    live_tau: float | None = None  # of the newest answers that it predicted
    before: str = NO_PREDICTOR  # the last good one: what is placed again if it fails
    promise_before: Promise | None = None  # of that one
    trained_until: dict[str, int] = field(default_factory=dict)  # bytes of each segment of the log
    answers: int = 0  # remembered
    trained: int = 0  # predictors trained
    accepted: int = 0  # of them, found better and placed
    refused: int = 0  # trainings of which nothing was placed
    rolled_back: int = 0  # placed, and taken back
    restarts: int = 0  # times that the learner had to be started again
    damaged: int = 0  # lines of the log that were left out
    comparison: dict[str, float] = field(default_factory=dict)  # the last one's figures
    ahead: State | None = None  # what is so once its predictor is placed, which is under way


_STATE: Final = TypeAdapter(State)


class _ChangedMeanwhileError(Exception):
    """Somebody else has written the settings file."""


def read_state(log: Path) -> State:
    """What a learner left in a log's folder; the beginning where there is none or it is damaged."""
    try:
        state = _STATE.validate_json((log / STATE_FILE).read_bytes())
    except (OSError, ValueError):
        return State()
    return state if state.schema == SCHEMA else State()


def write_state(log: Path, state: State) -> None:
    """Write the file, at once or not at all.

    Raises:
        OSError: it cannot be written.
    """
    with replaced(log / STATE_FILE) as part:
        part.write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")


def note_server(log: Path, settings: Path) -> None:
    """Note the settings file of a server that learns from a log: the predictor that it names stays,
    also while another server's learner places others.

    Raises:
        OSError: it cannot be written.
    """
    path = os.fsencode(settings.resolve())
    replace_file(log / SERVERS / hashlib.sha256(path).hexdigest()[:16], path)


def read_predictor(settings: Path) -> str:
    """What the file says; an artifact's folder is made absolute, as the scheduler does.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no settings file; the user may be in the middle of writing it.
    """
    return _predictor(settings, _values(read_bounded(settings, MOST_BYTES)))


def place_predictor(settings: Path, expected: str, wanted: str) -> bool:
    """Change the key, if it still says what is expected.

    Returns:
        Whether the file now says what is wanted. False: the user has changed it.

    Raises:
        OSError: it cannot be read or written.
        ValueError: it is no settings file.
    """
    for _ in range(_ATTEMPTS):
        data = read_bounded(settings, MOST_BYTES)
        values = _values(data)
        if _predictor(settings, values) != expected:
            return False
        values["predictor"] = wanted
        with contextlib.suppress(_ChangedMeanwhileError):
            with replaced(settings) as part:
                part.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
                # As late as can be: what the user saved in the meantime is not overwritten.
                if read_bounded(settings, MOST_BYTES) != data:
                    raise _ChangedMeanwhileError
            return True
    return False


def _values(data: bytes) -> dict[str, Any]:
    values = parse_json(data)
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    return values


def _predictor(settings: Path, values: dict[str, Any]) -> str:
    predictor = str(values.get("predictor") or NO_PREDICTOR)
    folder = settings.parent / predictor
    return str(folder.resolve()) if folder.is_dir() else predictor


@dataclass(frozen=True)
class Comparison:
    """What held-out answers say of two predictors. A tau that is undefined counts as 0."""

    rows: int
    tau: float  # of the new predictor
    tau_low: float  # ends of its 95 % bootstrap interval
    tau_high: float
    present_tau: float
    difference_low: float  # what the difference is above in 97.5 % of the draws

    @property
    def is_better(self) -> bool:
        """Whether the new predictor is to be taken."""
        return self.difference_low > 0.0


def compare(
    lengths: NDArray[np.int64], new: Scores, present: Scores, seed: int = 0, tried: int = 1
) -> Comparison:
    """Compare two predictors' scores of the same answers.

    Args:
        lengths: shape (n,), whole lengths in tokens.
        new: shape (n,), the new predictor's scores.
        present: shape (n,), the present one's; all equal where there is none.
        seed: of the draws.
        tried: how many new predictors are compared on these answers to take the best one; each
            must then be better in so many times more of the draws (Bonferroni).
    """
    differences = [
        tau_or_0(lengths[rows], new[rows]) - tau_or_0(lengths[rows], present[rows])
        for rows in draws(lengths.size, _RESAMPLES, seed)
    ]
    tau, low, high = tau_or_0_with_interval(lengths, new, seed)
    return Comparison(
        rows=lengths.size,
        tau=tau,
        tau_low=low,
        tau_high=high,
        present_tau=tau_or_0(lengths, present),
        difference_low=float(np.quantile(differences, _LOWEST / tried)),
    )


def tau_or_0(lengths: NDArray[np.int64], scores: Scores) -> float:
    """Kendall's tau-b; 0 where it is undefined, as all requests then look alike."""
    return kendall_tau(lengths, scores) or 0.0


def tau_or_0_with_interval(
    lengths: NDArray[np.int64], scores: Scores, seed: int = 0
) -> tuple[float, float, float]:
    """Tau and the ends of its 95 % bootstrap interval; all 0 where it is undefined."""
    tau, low, high = tau_with_interval(lengths, scores, seed)
    if tau is None or low is None or high is None:
        return 0.0, 0.0, 0.0
    return tau, low, high


def scores_of(predictor: str, answers: Sequence[Answer]) -> Scores:
    """The scores of a predictor as the settings name it, shape (n,).

    An artifact of hashed features is asked now, about all answers. What others said is known of
    those answers that they predicted when these were served.
    """
    artifact = _artifact(predictor)
    return logged_scores(predictor, answers) if artifact is None else scores_now(artifact, answers)


def scores_now(predictor: LexicalPredictor, answers: Sequence[Answer]) -> Scores:
    """The scores that a predictor gives to the answers' hashed features, shape (n,)."""
    return predictor.score_rows(features_of(answers))


def logged_scores(predictor: str, answers: Sequence[Answer]) -> Scores:
    """A predictor's scores as they were when the answers finished, shape (n,).

    Where it had none the median stands in, as in the scheduler.
    """
    name = Path(predictor).name
    said = [
        answer.values["score"] if answer.values["predictor"] == name else None for answer in answers
    ]
    scores = np.array([np.nan if score is None else score for score in said], dtype=np.float64)
    known = np.isfinite(scores)
    return np.where(known, scores, np.median(scores[known]) if known.any() else 0.0)


def own_promise(predictor: str) -> Promise | None:
    """What an artifact says of itself; None where there is none."""
    artifact = _artifact(predictor)
    tau = None if artifact is None else artifact.metadata.held_out.tau
    return None if tau is None else (tau, tau, tau)


def _artifact(predictor: str) -> LexicalPredictor | None:
    """The predictor of words that the settings name; None if it is none, gone or damaged."""
    if not Path(predictor).is_dir():
        return None
    try:
        loaded = load_predictor(predictor)
    except InputError:
        return None
    return loaded if isinstance(loaded, LexicalPredictor) else None


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
        self._restarts = restarts
        mine = str(settings.resolve())
        left = read_state(log) if goes_on or restarts else State()
        # What another server's learner has placed is in another settings file than ours.
        self.state = replace(left if left.settings in (None, mine) else State(), settings=mine)
        self._written: State | None = None

    def step(self) -> None:
        """Read what is new, and do what is due.

        Raises:
            OSError: the log's folder cannot be written.
        """
        for answer in self._reader.read_new():
            self._answers.append(answer)
            self._unseen += 1
        if self._may_place() and self._unseen >= min(_LOOK_EVERY, self._every):
            self._unseen = 0
            if not self._roll_back():
                self._retrain_if_due()
        self.state.answers = len(self._answers)
        self.state.damaged = self._reader.damaged
        self.state.restarts = self._restarts
        if self.state != self._written:
            self._write(self.state)

    def _write(self, state: State) -> None:
        write_state(self._log, state)
        self._written = replace(state)

    def _may_place(self) -> bool:
        """Whether the settings file is as the learner left it."""
        try:
            there = read_predictor(self._settings)
        except (OSError, ValueError):
            return False  # being written, or gone: the scheduler keeps its settings too
        if self.state.ahead is not None:
            # A learner was killed while it placed that one: the settings say whether it had.
            came_so_far = there == self.state.ahead.placed
            self.state = replace(self.state.ahead if came_so_far else self.state, ahead=None)
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
        after = replace(
            state,
            placed=state.before,
            is_mine=False,
            promise=state.promise_before,
            before=NO_PREDICTOR,
            promise_before=None,
            trained_until=self._reader.reached(),
            rolled_back=state.rolled_back + 1,
            said=f"rolled back from {name} to {state.before}: tau {tau:.2f} on {len(live)} live "
            f"answers, {state.promise[0]:.2f} was promised; the one before has {before:.2f}",
        )
        return self._place(after)

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
        try:
            folder = self._save(candidate)
        except (OSError, InputError) as error:
            self._say(f"cannot keep a new predictor: {error}")
            return
        taught = candidate.metadata.training.rows
        after = replace(
            state,
            placed=str(folder),
            is_mine=True,
            promise=(found.tau, found.tau_low, found.tau_high),
            live_tau=None,
            before=state.placed,
            promise_before=state.promise,
            accepted=state.accepted + 1,
            said=f"placed {folder.name}, trained on {taught:,} answers: {_in_words(found)}",
        )
        if self._place(after):
            self._tidy_up()
        else:
            shutil.rmtree(folder)

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

    def _place(self, after: State) -> bool:
        """Make the scheduler use another predictor, unless the user has just chosen one.

        What is so afterwards is written first: a learner that is killed in between would take what
        it has placed itself for the user's choice.

        Args:
            after: the state in which that predictor is placed.

        Raises:
            OSError: the log's folder cannot be written, and nothing was placed.
        """
        before = self.state
        assert before.placed is not None
        assert after.placed is not None
        self._write(replace(before, ahead=after))
        try:
            placed = place_predictor(self._settings, before.placed, after.placed)
        except (OSError, ValueError) as error:
            self._say(f"cannot change {self._settings}: {error}")
            return False
        if placed:
            self.state = after
            logger.info("%s", after.said)
        return placed

    def _tidy_up(self) -> None:
        """Keep the predictor that is placed, the one before, and what other servers go by."""
        kept = {self.state.placed, self.state.before}
        try:
            for note in (self._log / SERVERS).glob("*"):
                with contextlib.suppress(FileNotFoundError):  # settings that are there no longer
                    kept.add(read_predictor(Path(os.fsdecode(note.read_bytes()))))
        except (OSError, ValueError):
            return  # somebody may be in the middle of writing: another time
        for path in (self._log / PREDICTORS).glob("p-*"):
            if str(path) not in kept:
                shutil.rmtree(path, ignore_errors=True)

    def _say(self, line: str) -> None:
        self.state.said = line
        logger.info("%s", line)


def latest_predictor(log: Path) -> str | None:
    """The predictor that was placed when learning from a log last ended, if it is still there."""
    state = read_state(log)
    placed = (state.ahead or state).placed
    return placed if placed is not None and Path(placed).is_dir() else None


def _in_words(found: Comparison) -> str:
    better = f"better by at least {found.difference_low:.2f}" if found.is_better else "not better"
    return (
        f"tau {found.tau:.2f} ({found.tau_low:.2f} to {found.tau_high:.2f}) on the newest "
        f"{found.rows} answers, the present one {found.present_tau:.2f}: {better}"
    )
