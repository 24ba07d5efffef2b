"""vLLM without its forward pass: everything else of it, on a clock of our own."""

from typing import Any

__all__ = ["Executor"]


def __getattr__(name: str) -> Any:
    """`Executor`, loaded only when it is asked for: it needs vLLM."""
    if name == "Executor":
        from lengthwise.emulate.executor import Executor

        return Executor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
