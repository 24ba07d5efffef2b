"""numba's `njit`, with its type kept and its cache made safe.

numba keeps compiled code on disk and compiles anew when the file of the function has changed, but
does not notice a change in another file whose functions it has inlined. Here the sources of all
rooms that compiled code comes from are part of the key, so that a stale schedule is impossible.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import CellType, FunctionType
from typing import Any, Final, TypeVar, cast

from numba import config, njit
from numba.core.caching import CompileResultCacheImpl, FunctionCache, UserProvidedCacheLocator

# vLLM shows what is logged below its own name, and nothing else.
logger = logging.getLogger("vllm.lengthwise")

Function = TypeVar("Function", bound=Callable[..., object])

_ROOMS: Final = (".", "policy", "simulate")  # whose functions call one another's
# Of what compiled code is made from.
_TRACES: Final = (b"compiled", b"intrinsic", b"np.dtype(", b"@register(")


def compiled(function: Function) -> Function:
    """Compile, and keep the machine code for the next process where there is a place for it."""
    return cast(Function, _kept(_with_sources(function)))


def compiled_by_name(function: Function, name: str) -> Function:
    """Compile a closure over compiled functions of ours, and keep the machine code likewise.

    Args:
        function: the closure; its `__qualname__` is changed, so that it has files of its own.
        name: tells what the closure is over from all else that it is ever over. numba's key cannot:
            a compiled function is another one in every process.
    """
    function.__qualname__ += f".{name}"
    return cast(Function, _kept(function, name))


def _kept(function: Any, name: str | None = None) -> Any:
    dispatcher = njit(function)
    if config.CACHE_DIR and not os.access(config.CACHE_DIR, os.W_OK):
        with contextlib.suppress(RuntimeError):  # nothing there of this room
            dispatcher._cache = _CompiledAhead(function, name)
            return dispatcher
    try:
        dispatcher._cache = _KeptCode(function, name)
    except RuntimeError:  # a read-only container, or a home that is not one's own
        _say_that_nothing_is_kept()
    return dispatcher


class _KeptCode(FunctionCache):  # type: ignore[misc]
    """Code on disk, which never keeps the program from running: what cannot be read is compiled
    anew, and what cannot be written is not kept."""

    def __init__(self, function: object, name: str | None) -> None:
        super().__init__(function)
        self._name = name

    def _index_key(self, sig: object, codegen: Any) -> object:
        if self._name is None:
            return super()._index_key(sig, codegen)
        return sig, codegen.magic_tuple(), _sources().cell_contents, self._name

    def load_overload(self, sig: object, target_context: object) -> object:
        try:
            return super().load_overload(sig, target_context)
        except Exception:
            # An index names the types of arguments: another version's may be gone from where they
            # were, and numba reads all of it before it sees that it is of another version.
            with contextlib.suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: object, data: object) -> None:
        with contextlib.suppress(OSError):  # the disk is full
            super().save_overload(sig, data)


class _ReadOnlyFolder(UserProvidedCacheLocator):  # type: ignore[misc]
    """The folder that NUMBA_CACHE_DIR names, where it can be read; numba wants to write as well."""

    def ensure_cache_path(self) -> None:
        os.listdir(self.get_cache_path())


class _ReadOnlyCode(CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes = (_ReadOnlyFolder,)


class _CompiledAhead(_KeptCode):
    """Code that `lengthwise compile` has left; what is not there is compiled and not kept."""

    _impl_class = _ReadOnlyCode

    def save_overload(self, sig: object, data: object) -> None:
        pass


@cache
def _say_that_nothing_is_kept() -> None:
    """Say once what every start of the program will cost."""
    logger.warning(
        "Lengthwise: no folder can be written to keep compiled code in, so that every start "
        "compiles anew: set NUMBA_CACHE_DIR to a folder that can be written, or to one that "
        "lengthwise compile has filled"
    )


def compiled_here(function: Function) -> Function:
    """Compile for this process only: for functions that take or are a user's policy."""
    return cast(Function, njit(function))


def _with_sources(function: Any) -> Any:
    """The function with the digest of the sources as a closure variable.

    It reads none, but numba's key contains the values of closure variables.
    """
    if function.__closure__:
        return function
    code = function.__code__.replace(co_freevars=("sources",))
    copy = FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, (_sources(),)
    )
    copy.__doc__, copy.__module__ = function.__doc__, function.__module__
    copy.__qualname__, copy.__annotations__ = function.__qualname__, function.__annotations__
    return copy


@cache
def _sources() -> CellType:
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for room in _ROOMS:
        for path in sorted((here / room).glob("*.py")):
            source = path.read_bytes()
            if any(trace in source for trace in _TRACES):
                digest.update(source)
    return CellType(digest.hexdigest())
