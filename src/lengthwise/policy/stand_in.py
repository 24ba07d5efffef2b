"""What stands in for a prediction that is not there: the running median of recent ones.

A request is predicted once, soon after it arrives, at most `PER_STEP` in one step, and fewer where
prompts are long, so that a burst never holds a step up. The bound is on what is read and not on
time, so that the same requests give the same schedule. Until then, and for good where nothing can
be predicted, it ranks as the median; when nothing was ever predicted all requests look alike,
which is exactly fcfs.
"""

from __future__ import annotations

from typing import Final

from lengthwise.compiled import compiled
from lengthwise.request import FREE, RequestTable

PER_STEP: Final = 128  #: requests that are predicted in a step at most
READ: Final = 1024  #: prompt tokens that count of one request: predictors read no more of it
READ_PER_STEP: Final = 16 * READ  #: once so many were read in a step, the others wait: about 2 ms
RECENT: Final = 512  #: predictions that the median is of
MEDIAN_EVERY: Final = 32  #: new predictions after which it is computed anew

#: Score, expected, low, median and high before anything was predicted.
UNKNOWN: Final = (0.0, 128.0, 128.0, 128.0, 128.0)


@compiled
def stand_in(
    table: RequestTable,
    count: int,
    score: float,
    expected: float,
    low: float,
    median: float,
    high: float,
) -> None:
    """Give every request in rows 0 … count-1 that has no prediction of its own this one."""
    for i in range(count):
        request = table[i]
        if request.state == FREE or request.predicted:
            continue
        request.score = score
        request.expected = expected
        request.low = low
        request.median = median
        request.high = high
        request.initial = expected
        request.predicted_age = 0
        request.remaining = expected
