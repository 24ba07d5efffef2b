"""Requests as a simulator wants them: when each arrived, and how long it was. No text.

`load_trace.py` reads one from a table on disk, or from a folder that Lengthwise recorded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lengthwise.errors import InputError
from lengthwise.workload.rejections import Rejection, refuse_rejected
from lengthwise.workload.trace_rows import offsets_of


@dataclass(frozen=True)
class Trace:
    """n requests with arrival times and lengths, in the order in which they arrived.

    The prompt of request i starts with the blocks
    `block_hashes[block_offsets[i] : block_offsets[i + 1]]`, of `hash_tokens` tokens each, the last
    one perhaps only begun; two blocks with one number have the same content and the same content
    before them. Prompt tokens beyond its blocks are shared with nobody.

    Raises:
        InputError: the columns differ in length, times decrease or are negative or not finite, or a
            length is below 1.
    """

    name: str  # the file's or the folder's
    arrival_s: NDArray[np.float64]  # shape (n,), s from the start of the trace, non-decreasing
    prompt_tokens: NDArray[np.int64]  # shape (n,), at least 1
    output_tokens: NDArray[np.int64]  # shape (n,), at least 1
    rejected: list[Rejection]  # malformed rows that were left out
    layout: str  # "azure", "plain" and so on (see layouts.py), or "synthetic"
    block_hashes: NDArray[np.int64] | None = None  # block numbers from 0, of all prompts in turn
    block_offsets: NDArray[np.int64] | None = None  # shape (n + 1,), where prompts begin in it
    hash_tokens: int = 0  # tokens of a block
    after: NDArray[np.int64] | None = None  # shape (n,), whose end it waits for, -1: nobody's
    delay_s: NDArray[np.float64] | None = None  # shape (n,), from that end to its arrival, s
    left_out: Mapping[str, int] = field(default_factory=dict)  # sound, but no requests: by reason
    notes: tuple[str, ...] = ()  # what was done to the times

    def __post_init__(self) -> None:
        """Refuse columns that are no trace."""
        if not len(self.arrival_s) == len(self.prompt_tokens) == len(self.output_tokens):
            raise InputError(
                f"{self.name}: {len(self.arrival_s)} arrival times, {len(self.prompt_tokens)} "
                f"prompt lengths and {len(self.output_tokens)} answer lengths: give as many of each"
            )
        gaps = np.diff(self.arrival_s, prepend=0.0)
        if not (np.isfinite(self.arrival_s).all() and (gaps >= 0).all()):
            raise InputError(f"{self.name}: arrival times must be finite, from 0, never decreasing")
        if len(self) and min(self.prompt_tokens.min(), self.output_tokens.min()) < 1:
            raise InputError(f"{self.name}: prompts and answers must have at least one token")
        self._check_sessions()

    def _check_sessions(self) -> None:
        """Refuse turns that wait for a later one, or that several others share."""
        if self.after is None or self.delay_s is None:
            return
        waits = self.after >= 0
        if not len(self.after) == len(self.delay_s) == len(self):
            raise InputError(f"{self.name}: give what each of its {len(self)} requests waits for")
        if (self.after >= np.arange(len(self))).any() or not (self.delay_s[waits] >= 0).all():
            raise InputError(f"{self.name}: a turn may wait for an earlier one, no time below 0")
        if len(np.unique(self.after[waits])) < waits.sum():
            raise InputError(f"{self.name}: two turns of sessions wait for the same one")

    def __len__(self) -> int:
        """The number of requests, n."""
        return len(self.arrival_s)

    @property
    def rate(self) -> float:
        """Mean arrivals per second; inf where all requests arrive at once."""
        span = float(self.arrival_s[-1] - self.arrival_s[0]) if len(self) else 0.0
        return (len(self) - 1) / span if span > 0 else math.inf

    def refuse_rejected(self) -> None:
        """Raise an InputError if any row was malformed, naming the first."""
        refuse_rejected(self.name, self.rejected, "trace")

    def first(self, count: int) -> Trace:
        """The first `count` requests.

        Raises:
            InputError: the trace has fewer, or `count` is below 1.
        """
        if not 1 <= count <= len(self):
            raise InputError(
                f"{self.name}: {count:,} requests were asked for, the trace has {len(self):,}: "
                f"ask for 1 to {len(self):,}, or give a longer trace"
            )
        return self._of(np.arange(count))

    def between(self, start_s: float, end_s: float) -> Trace:
        """The requests that arrive from `start_s` (s) on and before `end_s`, the first at 0 s.

        Raises:
            InputError: no request arrives then.
        """
        start, end = np.searchsorted(self.arrival_s, [start_s, end_s])
        if start >= end:
            last = self.arrival_s[-1] if len(self) else 0.0
            raise InputError(
                f"{self.name}: no request arrives between {start_s:g} s and {end_s:g} s: the last "
                f"one arrives at {last:g} s"
            )
        part = self._of(np.arange(start, end))
        return replace(part, arrival_s=part.arrival_s - part.arrival_s[0])

    def scaled(self, factor: float) -> Trace:
        """The same requests, arriving `factor` times as fast.

        Raises:
            InputError: the factor is no number above 0.
        """
        if not (math.isfinite(factor) and factor > 0):
            raise InputError(f"the speed of a trace must be a number above 0, got {factor}")
        return replace(self, arrival_s=self.arrival_s / factor)

    def with_arrivals(self, times_s: ArrayLike) -> Trace:
        """The same requests at other times.

        Args:
            times_s: shape (n,), s from the start of the trace, non-decreasing.

        Raises:
            InputError: they are no such times.
        """
        return replace(self, arrival_s=np.array(times_s, dtype=np.float64))

    def _of(self, rows: NDArray[np.int64]) -> Trace:
        """Some of the requests, blocks numbered from 0 again."""
        part = {
            name: getattr(self, name)[rows]
            for name in ("arrival_s", "prompt_tokens", "output_tokens")
        }
        if self.after is not None and self.delay_s is not None:
            places = np.full(len(self) + 1, -1)  # the last is nobody's
            places[rows] = np.arange(len(rows))
            part |= {"after": places[self.after[rows]], "delay_s": self.delay_s[rows]}
        if self.block_hashes is None or self.block_offsets is None:
            return replace(self, **part)
        counts = np.diff(self.block_offsets)[rows]
        offsets = offsets_of(counts)
        places = np.repeat(self.block_offsets[rows] - offsets[:-1], counts) + np.arange(offsets[-1])
        _, hashes = np.unique(self.block_hashes[places], return_inverse=True)
        return replace(self, **part, block_hashes=hashes, block_offsets=offsets)
