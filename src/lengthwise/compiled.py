"""numba's `njit`, with its type kept.

`compiled` functions are cached on disk between processes. numba notices a change of the file that
a function stands in, but not of functions that it calls from other files: one that does so is
`compiled_here`, compiled anew in each process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Compile, and keep the machine code for the next process."""
    return cast(Function, njit(cache=True)(function))


def compiled_here(function: Function) -> Function:
    """Compile for this process only."""
    return cast(Function, njit(function))
