"""Which of vLLM's KV connectors an emulated engine has, and over what link."""

from __future__ import annotations

from typing import Any, Final

from lengthwise.emulate import offload, transfers
from lengthwise.emulate.offload import Offload
from lengthwise.emulate.transfers import Transfers
from lengthwise.errors import InputError
from lengthwise.vllm.compat import offloading

BANDWIDTH: Final = "emulated_gbit_per_s"  #: in the connector's `kv_connector_extra_config`


def link_of(vllm_config: Any, block_bytes: int, virtual: bool) -> Transfers | Offload | None:
    """The worker's side of an engine's connector; None for an engine that has none.

    Args:
        vllm_config: vLLM's configuration.
        block_bytes: bytes of a KV block, all layers.
        virtual: the engine's time is virtual.

    Raises:
        InputError: another connector than those that are emulated, or a wrong bandwidth.
    """
    wanted = vllm_config.kv_transfer_config
    if wanted is None or wanted.kv_connector is None:
        return None
    if wanted.kv_connector not in (transfers.CONNECTOR, offloading.CONNECTOR):
        raise InputError(
            f"an emulated server moves KV as {transfers.CONNECTOR} or {offloading.CONNECTOR} does, "
            f"not as {wanted.kv_connector}"
        )
    offloads = wanted.kv_connector == offloading.CONNECTOR
    if virtual and not offloads:
        raise InputError("KV is sent to other engines in real time only: leave the connector out")
    default = offload.DEFAULT_GBIT_PER_S if offloads else transfers.DEFAULT_GBIT_PER_S
    stated = wanted.get_from_extra_config(BANDWIDTH, default)
    if not (isinstance(stated, int | float) and stated > 0):
        raise InputError(f"{BANDWIDTH} must be a number above 0, got {stated!r}")
    bytes_per_s = stated * 1e9 / 8
    return (Offload if offloads else Transfers)(bytes_per_s, block_bytes)
