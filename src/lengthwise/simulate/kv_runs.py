"""Free KV blocks where no two prompts share anything: as in `kv_blocks.py`, at a fraction of it.

What a free block still holds is then of use to one request only: to the one that was preempted and
finds it when it resumes. So blocks need no names of their own. Free ones without content are
counted; behind them wait, in the order in which they were freed, runs of blocks, each of a
preempted request or of nobody. New blocks come from the oldest run, and of a run its last block
comes first: what is left of a request's run is always the beginning of its context.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled_here

NOBODY: Final = -1

RUN: Final = np.dtype(
    [
        ("owner", np.int64),  # the preempted request that would find it, or NOBODY
        ("blocks", np.int64),
    ],
    align=True,
)


def new_runs(engines: int, blocks: int) -> NDArray[np.void]:
    """Rings for the runs of several engines, shape [engines, places].

    A run that counts has a block at least, and one of nobody follows another's: so twice as many
    places as there are blocks are enough, once those in between are taken out (`_compact`).
    """
    return np.zeros((engines, 2 * blocks + 2), RUN)


@compiled_here
def take_from_runs(engine: Any, runs: NDArray[np.void], count: int) -> None:
    """Hand out free blocks; there must be as many. What they held is gone."""
    blank = min(count, engine.blank)
    engine.blank -= blank
    count -= blank
    while count > 0:
        run = runs[engine.oldest_run % len(runs)]
        taken = min(count, run.blocks)
        run.blocks -= taken
        count -= taken
        if run.blocks == 0:
            engine.oldest_run += 1


@compiled_here
def give_to_runs(
    engine: Any, runs: NDArray[np.void], requests: Any, owner: int, full: int, count: int
) -> None:
    """Free the blocks of a request.

    Args:
        engine: an ENGINE record.
        runs: of the engine.
        requests: array of SERVED.
        owner: the request, if it was preempted and may find them again, else NOBODY.
        full: how many of its blocks are full; only those can be found.
        count: how many there are.
    """
    engine.blank += count - full
    if full == 0:
        return
    newest = runs[(engine.next_run - 1) % len(runs)]
    if owner == NOBODY and engine.next_run > engine.oldest_run and newest.owner == NOBODY:
        newest.blocks += full
        return
    if engine.next_run - engine.oldest_run == len(runs):
        _compact(engine, runs, requests)
    run = runs[engine.next_run % len(runs)]
    run.owner = owner
    run.blocks = full
    if owner != NOBODY:
        requests[owner].memory = engine.next_run
    engine.next_run += 1


@compiled_here
def left_of_run(engine: Any, runs: NDArray[np.void], number: int) -> int:
    """How many blocks are left of a run, by its number; -1 is none."""
    return int(runs[number % len(runs)].blocks) if number >= engine.oldest_run else 0


@compiled_here
def take_run_back(engine: Any, runs: NDArray[np.void], number: int, hits: int) -> None:
    """The owner of a run resumes and uses its first `hits` blocks again."""
    if number >= engine.oldest_run:
        run = runs[number % len(runs)]
        run.blocks -= hits
        run.owner = NOBODY


@compiled_here
def _compact(engine: Any, runs: NDArray[np.void], requests: Any) -> None:
    """Take empty runs out and join neighbours that are nobody's."""
    end = engine.oldest_run
    for number in range(engine.oldest_run, engine.next_run):
        owner = runs[number % len(runs)].owner
        blocks = runs[number % len(runs)].blocks
        if blocks == 0:
            continue
        before = runs[(end - 1) % len(runs)]
        if owner == NOBODY and end > engine.oldest_run and before.owner == NOBODY:
            before.blocks += blocks
            continue
        run = runs[end % len(runs)]
        run.owner = owner
        run.blocks = blocks
        if owner != NOBODY:
            requests[owner].memory = end
        end += 1
    engine.next_run = end
