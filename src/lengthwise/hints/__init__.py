"""Predicted lengths for other stacks: a service that predicts, and hints in requests' bodies.

`Middleware` goes into any ASGI application; `lengthwise predict-server` serves predictions over
HTTP. Neither needs our scheduler, nor vLLM.
"""

from lengthwise.hints.middleware import Middleware
from lengthwise.hints.question import TARGETS, write_hints

__all__ = ["TARGETS", "Middleware", "write_hints"]
