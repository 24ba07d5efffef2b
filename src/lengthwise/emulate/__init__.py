"""vLLM without its forward pass: everything else of it, on a clock of our own.

executor        in the place of vLLM's, which would compute a model
pace            the clock, and when each step ends by it
link            KV that leaves the engine and comes back
model_folder    what vLLM takes for a model
driver          an engine in virtual time, in this process
forward_engine  the same with a model that computes
"""

from typing import Any

__all__ = ["Executor"]


def __getattr__(name: str) -> Any:
    """`Executor`, loaded only when it is asked for: it needs vLLM."""
    if name == "Executor":
        from lengthwise.emulate.executor import Executor

        return Executor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
