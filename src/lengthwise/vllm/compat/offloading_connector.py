"""vLLM's own connector that offloads KV to host memory, as far as preemption hangs on it.

With `--kv-offloading-size GIB` every full block is copied to host memory as soon as it is computed.
A preempted request that comes back finds its whole blocks there: they are loaded beside the steps,
and the rest is computed again. So preempting costs the victim a load, and the others next to
nothing. By default vLLM copies prompts alone; with `offload_prompt_only` false answers, too.

Read in vLLM's source and run without a GPU, its worker's side emulated: see `emulate/link.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from lengthwise.errors import InputError

CONNECTOR: Final = "OffloadingConnector"
_IN_HOST_MEMORY: Final = "CPUOffloadingSpec"

#: What a token's KV takes to load until a load has been measured: 128 KiB over 20 GB/s.
LOAD_S: Final = 131072 / 20e9


def offloads(scheduler: Any) -> bool:
    """Whether the scheduler's connector is the one that offloads to host memory."""
    return type(scheduler.connector).__name__ == CONNECTOR


def refuse_without_memory(connector: str | None, extra: Mapping[str, Any]) -> None:
    """Refuse the connector without host memory, which vLLM would do with a traceback.

    Args:
        connector: `kv_connector` of vLLM's KVTransferConfig.
        extra: its `kv_connector_extra_config`.

    Raises:
        InputError: no memory is named.
    """
    if connector != CONNECTOR or extra.get("spec_name", _IN_HOST_MEMORY) != _IN_HOST_MEMORY:
        return  # what keeps KV elsewhere says itself what it needs
    memory = extra.get("cpu_bytes_to_use")
    if isinstance(memory, bool) or not isinstance(memory, int | float) or memory <= 0:
        raise InputError(
            f"{CONNECTOR} has no host memory to offload to: name its size in GiB with "
            "--kv-offloading-size, or in bytes with cpu_bytes_to_use in kv_connector_extra_config"
        )


def limits(scheduler: Any) -> dict[str, Any]:
    """What is offloaded, under the names of `policy.facts`."""
    if not offloads(scheduler) or not scheduler.cache_config.enable_prefix_caching:
        return {}
    side = scheduler.connector.connector_scheduler
    # What a store of another kind, or of another version, does not say is not counted on.
    chunks = int(getattr(side.manager, "_num_chunks", 0))
    return {
        "host_blocks": chunks * int(getattr(side.config, "blocks_per_chunk", 1)),
        "offloads_answers": not getattr(side.config, "offload_prompt_only", True),
        "load_s": LOAD_S,
    }


def loaded(output: Any) -> tuple[float, float]:
    """Bytes that a step's output says were loaded, by all workers, and the seconds they took."""
    connector = getattr(output, "kv_connector_output", None)
    stats = getattr(getattr(connector, "kv_connector_worker_meta", None), "transfer_stats", None)
    return (0.0, 0.0) if stats is None else (float(stats.load.bytes), float(stats.load.time))


def token_bytes(scheduler: Any) -> float:
    """Bytes of a token's KV in one worker; 0 where nothing is offloaded."""
    if not offloads(scheduler):
        return 0.0
    config = scheduler.kv_cache_config
    return float(config.kv_cache_tensors[0].size / config.num_blocks / scheduler.block_size)
