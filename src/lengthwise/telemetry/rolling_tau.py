"""How well predictions order the answers that are being served: a rolling Kendall tau.

Under shortest-first those that finish first are the short ones, and among them the order is harder
to tell: the last requests that finished are a biased sample. So requests are grouped by when they
arrived, `GROUP` in a row, and a group counts once nine in ten of it have ended, late ones added as
they come. An answer that was cut, at a limit or by its client, says nothing of its whole length: it
counts as ended, and not in tau.
"""

from __future__ import annotations

import logging
from typing import Final

from lengthwise.counters import Counters
from lengthwise.predict.kendall import kendall_tau

logger = logging.getLogger("vllm.lengthwise")

GROUP: Final = 64  #: requests that arrived one after the other
GROUPS: Final = 4  #: that tau is computed of
LEAST: Final = 128  #: answers without which there is no tau

_MOST_GROUPS: Final = 1024  # remembered, where requests are put off so long that no group settles
_SETTLED: Final = 0.9 * GROUP
_EVERY: Final = 64  # finished requests between two looks
_RISE: Final = 0.05  # above the floor, so that noise does not switch to and fro


class _Group:
    def __init__(self) -> None:
        self.ended = 0
        self.scores: list[float] = []
        self.lengths: list[int] = []


class RollingTau:
    """Watches finished requests, and says when predictions are not worth following.

    Args:
        counters: crossings of the floor are counted there.

    Attributes:
        tau: of the newest groups that count; None while there are too few answers.
        below_floor: whether tau fell below the floor and has not recovered since.
        floor: the lowest tau with which predictions may decide; None for any.
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        kendall_tau((1, 2), (1, 2))  # compiles
        self.floor: float | None = None
        self.tau: float | None = None
        self.below_floor = False
        self._groups: dict[int, _Group] = {}
        self._first = 0  # older groups do not count
        self._since = 0

    def restart(self, arrivals: int) -> None:
        """Forget what was seen: from now on another predictor's scores count.

        The floor's verdict stands until the new predictor has been measured.

        Args:
            arrivals: requests that have arrived so far; they do not count.
        """
        self._groups.clear()
        self._first = -(-arrivals // GROUP)
        self._since = 0
        self.tau = None

    def set_floor(self, floor: float | None) -> None:
        """Change the floor; the verdict follows when tau is next computed, without one at once."""
        self.floor = floor
        self.below_floor &= floor is not None

    def ended(self, arrival_index: int, score: float | None, length: int | None) -> None:
        """Take in a request that ended; every so often, tau is computed anew (0.2 ms).

        Args:
            arrival_index: its place in the order of first arrival.
            score: what was predicted; None where nothing was.
            length: the whole answer's, in tokens; None where it was cut.
        """
        number = arrival_index // GROUP
        if number < self._first:
            return
        group = self._groups.setdefault(number, _Group())
        group.ended += 1
        if score is not None and length is not None:
            group.scores.append(score)
            group.lengths.append(length)
        self._since += 1
        if self._since >= _EVERY:
            self._since = 0
            self._measure()
            self._judge()

    def _measure(self) -> None:
        for number in sorted(self._groups)[:-_MOST_GROUPS]:
            del self._groups[number]
        settled = sorted(n for n, group in self._groups.items() if group.ended >= _SETTLED)
        counted = settled[-GROUPS:]
        if not counted:
            return
        if len(counted) == GROUPS:
            self._first = counted[0]
            self._groups = {n: group for n, group in self._groups.items() if n >= self._first}
        groups = [self._groups[number] for number in counted]
        scores = [score for group in groups for score in group.scores]
        lengths = [length for group in groups for length in group.lengths]
        self.tau = kendall_tau(lengths, scores) if len(scores) >= LEAST else None

    def _judge(self) -> None:
        if self.floor is None or self.tau is None:
            return
        if not self.below_floor and self.tau < self.floor:
            self.below_floor = True
            self._counters.floor_falls += 1
            logger.warning(
                "Lengthwise: predictions order answers with a tau of %.2f only, below tau_floor "
                "%.2f: the order is fcfs",
                self.tau,
                self.floor,
            )
        elif self.below_floor and self.tau >= self.floor + _RISE:
            self.below_floor = False
            self._counters.floor_rises += 1
            logger.warning("Lengthwise: tau is %.2f again: predictions decide", self.tau)
