"""Several vLLM replicas on Ray Serve, each with our scheduler, and a router that knows lengths."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from lengthwise.errors import missing_extra

__all__ = ["PredictedWorkRouter", "build_app"]


def require_ray() -> None:
    """Raise InputError where Ray Serve is not installed, or not with all that it needs."""
    try:
        import_module("ray.serve")
    except ImportError:
        raise missing_extra("ray[serve]", "ray") from None


def __getattr__(name: str) -> Any:
    """What needs Ray, loaded only when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require_ray()
    if name == "build_app":
        from lengthwise.ray.application import build_app

        return build_app
    from lengthwise.ray.router import PredictedWorkRouter

    return PredictedWorkRouter
