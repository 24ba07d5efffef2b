"""What it takes to run vLLM's worker in this process, between other people's code."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


def engine_in_process() -> None:
    """Have vLLM's next engine run in this process, and log errors alone."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


@contextlib.contextmanager
def llvmlite_unseen() -> Iterator[None]:
    """Keep llvmlite, on which numba stands, out of sight while an engine starts in this process.

    vLLM's CPU platform looks through the attributes of all modules that are imported, and fails on
    an object of llvmlite's that answers every question with a foreign function.
    """
    name = "llvmlite.binding.ffi"
    module = sys.modules.pop(name, None)
    try:
        yield
    finally:
        if module is not None:
            sys.modules[name] = module


@contextlib.contextmanager
def stdout_on_stderr() -> Iterator[None]:
    """What anything writes to stdout, compiled code included, goes to stderr instead."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
