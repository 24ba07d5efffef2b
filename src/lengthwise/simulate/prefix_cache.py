"""What a request finds of its KV before it starts or resumes."""

from __future__ import annotations

from lengthwise.compiled import compiled_here
from lengthwise.simulate.kv_runs import left_of_run
from lengthwise.simulate.replica import Replica


@compiled_here
def find_cached(replica: Replica, i: int) -> tuple[int, int]:
    """Leading blocks of a waiting request that are cached, and how many of them are free.

    At least one of its tokens has to be computed.
    """
    limits, requests, memory = replica.limits, replica.requests, replica.memory
    known = requests[i].prompt_tokens + requests[i].age
    hits, free = 0, 0
    if not limits.shares:
        if requests[i].memory >= 0:
            left = left_of_run(replica.engine, memory.runs, requests[i].memory)
            hits = min(left, (known - 1) // limits.block_size)
        return hits, hits
    while (hits + 1) * limits.block_size < known:
        block = cached_block(replica, i, hits)
        if block < 0:
            break
        free += memory.blocks[block].users == 0
        hits += 1
    return hits, free


@compiled_here
def cached_block(replica: Replica, i: int, place: int) -> int:
    """The first block that holds the request's `place`-th block of tokens, -1 for none."""
    content = content_of(replica, i, place)
    if content >= 0:
        return int(replica.memory.shared[content])
    row = replica.requests[i].memory
    return int(replica.memory.remembered[row, place]) if row >= 0 else -1


@compiled_here
def content_of(replica: Replica, i: int, place: int) -> int:
    """What the request's `place`-th block holds where that is shared between prompts, else -1."""
    size, shared = replica.limits.block_size, replica.shared
    if (place + 1) * size > replica.requests[i].prompt_tokens:
        return -1
    which = shared.offsets[i] + place * size // shared.tokens
    if which >= shared.offsets[i + 1]:
        return -1
    per_content = shared.tokens // size
    return int(shared.contents[which] * per_content + place % per_content)
