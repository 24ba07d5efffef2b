"""Live results beside their exact twins: the same burst over HTTP and in virtual time.

A run that has them keeps each side in a folder below its own, as a run that started when it did.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lengthwise.measure.comparison import PolicyResult, compare
from lengthwise.measure.results import RUN_FILE, Results, read_results

LIVE_FOLDER: Final = "live"
TWIN_FOLDER: Final = "twin"


@dataclass(frozen=True)
class Twin:
    """A policy's figures, live and in virtual time."""

    live: PolicyResult
    exact: PolicyResult

    @property
    def remarks(self) -> tuple[str, ...]:
        """What explains the difference, one line each."""
        return self.live.rounds[0].info.remarks

    def difference(self, figure: str) -> float | None:
        """live / virtual - 1; None where a side has no such figure, or 0."""
        live, exact = (side.rounds[0].figure(figure) for side in (self.live, self.exact))
        ratio = live / exact if exact else math.nan
        return ratio - 1.0 if math.isfinite(ratio) else None


def read_twins(folder: Path, results: Results) -> list[Twin]:
    """The twins of a run, one for each policy; none where the run has none.

    Args:
        folder: the run's.
        results: what was read from it.

    Raises:
        InputError: a newer Lengthwise wrote them.
    """
    sides = []
    for name in (LIVE_FOLDER, TWIN_FOLDER):
        if not (folder / name / RUN_FILE).exists() or not any((folder / name).glob("*.parquet")):
            return []  # the server did not come up
        side = read_results(folder / name)
        if side.run.started != results.run.started:
            return []  # an earlier run left it
        sides.append({result.policy: result for result in compare(side).results})
    live, exact = sides
    return [Twin(live[policy], exact[policy]) for policy in exact if policy in live]
