"""How many tokens a block of `hash_ids` has, told from the requests themselves.

Mooncake's own traces have 512, Dynamo exports 64, vLLM's tools 16, and none of them writes it down.
A prompt of n tokens has ⌈n/size⌉ blocks, or ⌊n/size⌋ where a last one that is not full is left out.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

SIZES: Final = (512, 64, 16, 32, 128, 256, 1024, 2048, 4096, 8, 4)  #: tokens
_AGREE: Final = 0.95  # share of requests that have to have as many blocks as a size says


def told_block_size(
    prompt_tokens: NDArray[np.float64], blocks: NDArray[np.int64], usual: int
) -> int:
    """Tokens of a block.

    Args:
        prompt_tokens: shape (n,), NaN where it is not known.
        blocks: shape (n,), how many each prompt has, 0 where it has none.
        usual: what the layout's authors have; it is taken where it fits, and where nothing does.
    """
    known = (blocks > 0) & (prompt_tokens >= 1)
    tokens, counts = prompt_tokens[known], blocks[known]
    if not counts.size:
        return usual
    for size in (usual, *(size for size in SIZES if size != usual)):
        whole, begun = np.floor(tokens / size), np.ceil(tokens / size)
        # Of blocks that are all begun the last one tells the size; of full ones, none does.
        if ((counts == begun) | ((counts == whole) & (whole > 1))).mean() >= _AGREE:
            return size
    return usual
