"""What one router has sent where, and the work that each request is predicted to be.

The work is predicted from a request of OpenAI's API.

The books know replicas by name, requests by id, prompts by how they begin. The rule that chooses,
and the copy of the replicas that it looks at, are those of `policy.replicas`; the simulator runs
both, too. Here are only names, and the ways in which a booking ends: its request does, its replica
goes, or it is too old to be true. Nothing here knows Ray.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import LengthwiseError, one_line
from lengthwise.hints.estimate import Estimator, estimator_of
from lengthwise.hints.question import READ, answers_of
from lengthwise.policy.replicas import (
    BOOKING,
    COMPANY,
    NOBODY,
    POWER_OF_TWO,
    PREDICTED_WAIT,
    REPLICA,
    WAIT_OF_TWO,
    Fleet,
    book,
    choose,
    hear,
    mean_expected,
    new_replicas,
    new_routers,
    release,
)

# vLLM shows what is logged below its own name, and nothing else.
logger = logging.getLogger("vllm.lengthwise")

_PATIENCE_S: Final = 0.25  #: with a prediction
_LOOK_S: Final = 5.0  #: between two looks at a predictor's folder
_ANSWERS: Final = "n"  #: what a request's body calls the number of its answers
_BELIEVED_S: Final = 10.0  #: of what was heard of other routers' requests
_NOTHING: Final = np.empty(0)
_BLOCK: Final = 256  #: characters that are compared at once
_MOST: Final = 64  #: blocks of one prompt that are looked at
_CHARACTERS: Final = 4.0  #: of a token, roughly


def body_of(request: object) -> dict[str, Any]:
    """What a request says, of that which a prediction depends on; {} where it is none."""
    said = request if isinstance(request, Mapping) else getattr(request, "__dict__", {})
    found = {name: said[name] for name in (*READ, _ANSWERS) if said.get(name) is not None}
    messages = found.get("messages")
    if isinstance(messages, list):
        found["messages"] = [_plain(message) for message in messages]
    return found if "messages" in found or "prompt" in found else {}


def text_of(body: Mapping[str, Any]) -> str:
    """The text by which one prompt's beginning is known from another's."""
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return prompt
    return repr(prompt if prompt is not None else body.get("messages", ""))


def _plain(value: object) -> object:
    """A message of whatever class as a plain object."""
    dump = getattr(value, "model_dump", None)
    return dump(exclude_unset=True) if dump is not None else value


class WorkPredictor:
    """One predictor for all routers; each has a copy of its own, exchanged when the folder changes.

    Args:
        predictor: folder of an artifact, `declared` or another name of a predictor, or the URL of
            `lengthwise predict-server`.
        tokenizer: name or folder of the served model's; None: as the artifact says.
    """

    def __init__(self, predictor: str, tokenizer: str | None) -> None:
        self._predictor, self._tokenizer = predictor, tokenizer
        self._estimator: Estimator | None = None
        self._version: object = None
        self._looked_s = float("-inf")
        self._opening: asyncio.Task[None] | None = None
        self._complained = False

    async def work(self, body: Mapping[str, Any]) -> float | None:
        """Predicted output tokens of a request, cut by its `max_tokens`; None: not known."""
        self._look()
        if self._estimator is None or not body:
            return None
        try:
            async with asyncio.timeout(_PATIENCE_S):
                expected = await self._estimator.expected(body)
        except LengthwiseError as error:
            self._complain(error)
            return None
        except TimeoutError:
            self._complain(f"no prediction within {_PATIENCE_S:g} s")
            return None
        except Exception as error:  # a user's predictor may raise anything: the request has to go
            self._complain(f"{type(error).__name__}: {one_line(error)}")
            return None
        return expected * answers_of(body)

    def _look(self) -> None:
        """Load what is there in the background, if it has not been loaded."""
        now = asyncio.get_running_loop().time()
        if now - self._looked_s < _LOOK_S or (self._opening and not self._opening.done()):
            return
        self._looked_s = now
        version = _version(self._predictor)
        if self._estimator is None or version != self._version:
            self._opening = asyncio.get_running_loop().create_task(self._open(version))

    async def _open(self, version: object) -> None:
        estimator = estimator_of(self._predictor, self._tokenizer)
        try:
            await estimator.open()
        except LengthwiseError as error:
            self._complain(error)
            return
        except Exception as error:  # a folder that is half written may hold anything
            self._complain(f"{type(error).__name__}: {one_line(error)}")
            return
        before, self._estimator = self._estimator, estimator
        self._version, self._complained = version, False
        if before is not None:
            # Whoever asks it now has an answer by then, or asks no longer.
            await asyncio.sleep(2 * _PATIENCE_S)
            await before.close()

    def _complain(self, reason: object) -> None:
        """Say once for each predictor why requests go by the number that each replica has."""
        if not self._complained:
            self._complained = True
            logger.warning("lengthwise: routing without predictions: %s", one_line(reason))


def _version(predictor: str) -> object:
    """What tells an artifact from the one that was there before; None where it is no folder."""
    try:
        return (Path(predictor) / "config.json").stat().st_mtime_ns
    except OSError:
        return None


class Prefixes:
    """What was sent where lately.

    Args:
        blocks: how many blocks of text are remembered, those that were met last.
    """

    def __init__(self, blocks: int = 65_536) -> None:
        self._blocks = blocks
        self._seen: OrderedDict[int, int] = OrderedDict()  # a bit for each replica's row

    def seen_tokens(self, text: str, rows: int) -> NDArray[np.float64]:
        """Tokens of a prompt's beginning that each replica has seen, by row."""
        seen = np.zeros(rows)
        alive = -1
        for block, name in enumerate(_names(text), 1):
            alive &= self._seen.get(name, 0)
            if not alive:
                break
            rest = alive
            while rest:
                row = (rest & -rest).bit_length() - 1
                seen[row] = block
                rest &= rest - 1
        return seen * (_BLOCK / _CHARACTERS)

    def add(self, text: str, row: int) -> None:
        """A prompt was sent to a replica."""
        for name in _names(text):
            self._seen[name] = self._seen.pop(name, 0) | (1 << row)
        while len(self._seen) > self._blocks:
            self._seen.popitem(last=False)

    def forget(self, row: int) -> None:
        """A replica has gone; another may have its row."""
        for name in self._seen:
            self._seen[name] &= ~(1 << row)


def _names(text: str) -> list[int]:
    """A name for each whole block of a text, which stands for all that comes before it, too."""
    names: list[int] = []
    name = 0
    for start in range(0, min(len(text), _MOST * _BLOCK) - _BLOCK + 1, _BLOCK):
        name = hash((name, text[start : start + _BLOCK]))
        names.append(name)
    return names


class _Booked(NamedTuple):
    row: int  # in the fleet's bookings
    replica: int  # its row
    since_s: float


class Bookings:
    """One router's books. Times are s of any clock that does not jump.

    Args:
        slots: requests that run at once on a replica (vLLM: --max-num-seqs).
        shortest_first: whether replicas serve short requests first, or in the order of arrival.
        company: of its own length, what a long request may wait longer to be among others.
        expires_s: a booking that nobody has released is dropped after so long.
        draws: look at two replicas only, drawn at random: where many routers know little of each
            other, none of them runs where all run. Prefixes and company then count for nothing.
    """

    def __init__(
        self,
        slots: int,
        *,
        shortest_first: bool = True,
        company: float = COMPANY,
        expires_s: float = 1800.0,
        draws: bool = False,
    ) -> None:
        self._draws = draws
        self.expires_s = expires_s
        self._fleet = Fleet(
            np.zeros(64, BOOKING),
            new_replicas(4),
            new_routers(1, slots=slots, shortest_first=shortest_first, company=company),
        )
        self._most = np.zeros(4, np.int64)  # requests that each takes; 0 where there is none
        self._free = list(range(64))
        self._rows: dict[Hashable, int] = {}  # of replicas
        self._names: dict[int, Hashable] = {}
        self._heard_s = np.full(4, np.inf)
        self._booked: dict[str, _Booked] = {}  # the oldest first

    def __len__(self) -> int:
        return len(self._booked)

    @property
    def replicas(self) -> Collection[Hashable]:
        """Those that are there."""
        return self._rows.keys()

    @property
    def rows(self) -> int:
        """One more than the largest row that a replica can have now."""
        return len(self._fleet.replicas)

    def row(self, replica: Hashable) -> int:
        """Where a replica is among the seconds that `choose` is told."""
        return self._rows[replica]

    def outstanding(self, replica: Hashable) -> int:
        """Requests that a replica has, as far as is known."""
        known = self._fleet.replicas[self._rows[replica]]
        return int(known["count"] + known["elsewhere"])

    def work(self, replica: Hashable) -> float:
        """Predicted tokens that are booked with a replica."""
        return float(self._fleet.replicas["work"][self._rows[replica]])

    def use(self, most: Mapping[Hashable, int], now: float) -> None:
        """These are the replicas from now on; what is booked with others is dropped.

        Args:
            most: for each replica, the requests that it takes at once.
            now: s.
        """
        for replica in [name for name in self._rows if name not in most]:
            self.drop(replica, now)
        for replica in most:
            if replica not in self._rows:
                row = next(k for k in range(self.rows + 1) if k not in self._names)
                if row == self.rows:
                    self._grow_replicas()
                self._rows[replica], self._names[row] = row, replica
                self._fleet.replicas[row] = new_replicas(1)[0]
            self._most[self._rows[replica]] = most[replica]

    def drop(self, replica: Hashable, now: float) -> None:
        """A replica has gone, and with it all that it had."""
        row = self._rows.pop(replica, None)
        if row is None:
            return
        del self._names[row]
        for request in [name for name, each in self._booked.items() if each.replica == row]:
            self._release(request, now)
        self._fleet.replicas["elsewhere"][row] = self._most[row] = 0

    def choose(
        self,
        expected: float | None,
        now: float,
        *,
        saved_s: NDArray[np.float64] = _NOTHING,
        among: Iterable[Hashable] | None = None,
    ) -> Hashable | None:
        """The replica for a request; None where none takes it.

        Args:
            expected: predicted output tokens; None: not known, so the less loaded of two that are
                drawn takes it.
            now: s.
            saved_s: by rows, what each replica saves because it has seen the prompt's beginning.
            among: the replicas that may be chosen; None for all.
        """
        self._sweep(now)
        replicas = self._fleet.replicas
        takes = replicas["count"] + replicas["elsewhere"] < self._most
        if among is not None:
            rows = [self._rows[name] for name in among if name in self._rows]
            takes &= np.isin(np.arange(len(takes)), rows)
        replicas["open"] = takes
        rule, one, other = PREDICTED_WAIT, 0, 0
        if expected is None or self._draws:
            there = np.flatnonzero(takes).tolist()
            if not there:
                return None
            one, other = random.sample(there, 2) if len(there) > 1 else there * 2
            rule = POWER_OF_TWO if expected is None else WAIT_OF_TWO
        chosen = choose(self._fleet, rule, expected or 0.0, saved_s, 0, one, other, now)
        return None if chosen == NOBODY else self._names[chosen]

    def book(self, request: str, replica: Hashable, expected: float | None, now: float) -> None:
        """A request goes to a replica; what was booked for it before is released.

        Args:
            request: its id.
            replica: where it goes. One that is not there any more is not booked with.
            expected: predicted output tokens; None counts as the mean of all.
            now: s.
        """
        before = self._booked.get(request)
        row = self._rows.get(replica, NOBODY)
        if before is not None:
            if before.replica == row:
                return
            self._release(request, now)
        if row == NOBODY:
            return
        if not self._free:
            self._grow_bookings()
        booking = self._free.pop()
        work = mean_expected(self._fleet) if expected is None else expected
        book(self._fleet, booking, row, work, now)
        self._booked[request] = _Booked(booking, row, now)

    def release(self, request: str, now: float, replica: Hashable | None = None) -> None:
        """A request has ended; at one replica, where that is named, and perhaps not at another."""
        booked = self._booked.get(request)
        if booked is None or (replica is not None and self._rows.get(replica) != booked.replica):
            return
        self._release(request, now)

    def hear(self, replica: Hashable, requests: int, now: float) -> None:
        """A replica says how many requests it has; what is not ours is others'."""
        row = self._rows.get(replica)
        if row is not None:
            others = max(requests - int(self._fleet.replicas["count"][row]), 0)
            hear(self._fleet, row, others, others * mean_expected(self._fleet), now)
            self._heard_s[row] = now if others else np.inf

    def _release(self, request: str, now: float) -> None:
        booked = self._booked.pop(request)
        release(self._fleet, booked.row, now)
        self._free.append(booked.row)

    def _sweep(self, now: float) -> None:
        """Forget what is too old to be true."""
        while self._booked:
            oldest = next(iter(self._booked))
            if now - self._booked[oldest].since_s < self.expires_s:
                break
            self._release(oldest, now)
        for row in np.flatnonzero(now - self._heard_s > _BELIEVED_S):
            hear(self._fleet, row, 0, 0.0, now)
            self._heard_s[row] = np.inf

    def _grow_bookings(self) -> None:
        before = self._fleet.bookings
        more = np.concatenate([before, np.zeros(len(before), BOOKING)])
        self._fleet = self._fleet._replace(bookings=more)
        self._free.extend(range(len(before), len(more)))

    def _grow_replicas(self) -> None:
        before = self._fleet.replicas
        more = new_replicas(2 * len(before))
        more[: len(before)] = before
        self._fleet = self._fleet._replace(replicas=more.astype(REPLICA, copy=False))
        self._heard_s = np.concatenate([self._heard_s, np.full(len(before), np.inf)])
        self._most = np.concatenate([self._most, np.zeros(len(before), np.int64)])
