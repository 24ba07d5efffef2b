"""Which replica has seen how much of a prompt's beginning, by hashes of its text."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import numpy as np
from numpy.typing import NDArray

_BLOCK: Final = 256  #: characters that are compared at once
_MOST: Final = 64  #: blocks of one prompt that are looked at
_CHARACTERS: Final = 4.0  #: of a token, roughly


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
