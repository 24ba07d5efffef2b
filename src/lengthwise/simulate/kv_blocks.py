"""The KV blocks of an engine, as vLLM V1's block pool keeps them.

With prefix caching a freed block keeps its content until it is handed out again. Free blocks wait
in a list: those without reusable content at its head, the others at its tail, the last block of a
request first; new blocks are taken from the head (vLLM v1/core/block_pool.py). So what a preempted
request finds again when it resumes is decided here. Without prefix caching free blocks are only
counted.

Where no two prompts share anything, what a free block still holds is of use to one request only: to
the one that was preempted and finds it when it resumes. So blocks need no names of their own, and
the list comes at a fraction of its cost. Free ones without content are counted; behind them wait,
in the order in which they were freed, runs of blocks, each of a preempted request or of nobody. New
blocks come from the oldest run, and of a run its last block comes first: what is left of a
request's run is always the beginning of its context.

Where prompts share some, what a block holds is named by `owner`: a request, whose `place`-th block
it is, or a block of prompt that several requests share. Several blocks may hold the same: two
requests compute one prefix at once, or a request computes anew what is left of its old blocks
behind a gap. They form a chain, and the oldest is found.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

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


NOTHING: Final = -1  #: owner of a block without reusable content; -2 - h: the shared content h

BLOCK: Final = np.dtype(
    [
        ("next", np.int32),  # in the list of free blocks
        ("previous", np.int32),
        ("users", np.int32),  # requests that hold it
        ("place", np.int32),  # its number among its owner's blocks
        ("copy", np.int32),  # the next block that holds the same, -1 for none
        ("owner", np.int64),
    ],
    align=True,
)


class Memory(NamedTuple):
    """An engine's KV memory. Arrays of several engines have one more axis, the first.

    The last of `blocks` is none: its links are head and tail of the list of free blocks.
    """

    blocks: NDArray[np.void]  # [blocks + 1], BLOCK
    shared: NDArray[np.int32]  # [shared contents], the first block that holds it, or -1
    of_slot: NDArray[np.int32]  # [slots, blocks of the longest request]
    remembered: NDArray[np.int32]  # [preempted, blocks], as `shared`, of requests once preempted
    free_remembered: NDArray[np.int64]  # [preempted], a stack of free rows of `remembered`
    runs: NDArray[np.void]  # [places], RUN: instead of all that, where nothing is shared


def new_memory(
    engines: int, slots: int, blocks: int, shared: int, longest: int, block_size: int, caching: bool
) -> Memory:
    """The memories of several engines, all free and empty.

    Args:
        engines: how many.
        slots: of each.
        blocks: KV blocks of each.
        shared: how many different contents prompts share.
        longest: tokens of the longest request.
        block_size: tokens a block.
        caching: whether there is prefix caching.
    """
    runs = new_runs(engines, blocks if caching and not shared else 0)
    if not caching or not shared:
        blocks, shared, longest = 1, 1, 1
    ring = np.arange(blocks + 1, dtype=np.int32)
    pool = np.zeros((engines, blocks + 1), BLOCK)
    pool["next"], pool["previous"] = np.roll(ring, -1), np.roll(ring, 1)
    pool["owner"] = NOTHING
    places = -(-(longest + 1) // block_size)
    preempted = slots + 16  # to start with
    return Memory(
        blocks=pool,
        shared=np.full((engines, shared), -1, np.int32),
        of_slot=np.zeros((engines, slots, places), np.int32),
        remembered=np.zeros((engines, preempted, places), np.int32),
        free_remembered=np.tile(np.arange(preempted)[::-1], (engines, 1)),
        runs=runs,
    )


@compiled_here
def take_block(memory: Memory, requests: Any) -> int:
    """The first free block, its old content forgotten. There must be one.

    Args:
        memory: written.
        requests: array of SERVED.
    """
    blocks, shared, remembered = memory.blocks, memory.shared, memory.remembered
    block = int(blocks[len(blocks) - 1].next)
    _unlink(blocks, block)
    owner = blocks[block].owner
    if owner < NOTHING:
        shared[-2 - owner] = _without(blocks, shared[-2 - owner], block)
    elif owner != NOTHING and requests[owner].memory >= 0:
        row, place = requests[owner].memory, blocks[block].place
        remembered[row, place] = _without(blocks, remembered[row, place], block)
    blocks[block].owner = NOTHING
    blocks[block].users = 1
    return block


@compiled_here
def share_block(blocks: Any, block: int) -> bool:
    """One more request uses a block with its content. Returns whether it was free."""
    was_free = blocks[block].users == 0
    if was_free:
        _unlink(blocks, block)
    blocks[block].users += 1
    return bool(was_free)


@compiled_here
def free_block(blocks: Any, block: int) -> bool:
    """A request lets go of a block. Returns whether it is free now."""
    blocks[block].users -= 1
    if blocks[block].users > 0:
        return False
    end = len(blocks) - 1
    after = end if blocks[block].owner != NOTHING else blocks[end].next
    before = blocks[after].previous
    blocks[before].next = block
    blocks[block].previous = before
    blocks[block].next = after
    blocks[after].previous = block
    return True


@compiled_here
def name_block(
    memory: Memory, requests: Any, block: int, request: int, place: int, content: int
) -> None:
    """A block is full: from now on its content can be found.

    Args:
        memory: written.
        requests: array of SERVED.
        block: the block.
        request: whose it is.
        place: its number among the request's blocks.
        content: the number of its content where that is shared, else -1.
    """
    blocks, shared, remembered = memory.blocks, memory.shared, memory.remembered
    blocks[block].copy = -1
    if content >= 0:
        blocks[block].owner = -2 - content
        shared[content] = _with(blocks, shared[content], block)
        return
    blocks[block].owner = request
    blocks[block].place = place
    row = requests[request].memory
    if row >= 0:
        remembered[row, place] = _with(blocks, remembered[row, place], block)


@compiled_here
def _with(blocks: Any, first: int, block: int) -> int:
    """A chain of copies with one more at its end. Returns its first."""
    if first < 0:
        return block
    last = first
    while blocks[last].copy >= 0:
        last = blocks[last].copy
    blocks[last].copy = block
    return first


@compiled_here
def _without(blocks: Any, first: int, block: int) -> int:
    """A chain of copies without one of them. Returns its first, -1 where none is left."""
    if first == block:
        return int(blocks[block].copy)
    before = first
    while blocks[before].copy != block:
        before = blocks[before].copy
    blocks[before].copy = blocks[block].copy
    return first


@compiled_here
def _unlink(blocks: Any, block: int) -> None:
    before, after = blocks[block].previous, blocks[block].next
    blocks[before].next = after
    blocks[after].previous = before
