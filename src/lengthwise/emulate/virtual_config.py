"""vLLM's configuration of an engine in virtual time."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from lengthwise.emulate.emulation_settings import EMULATE
from lengthwise.simulate.engine_settings import EngineSettings
from lengthwise.simulate.step_cost import StepCost
from lengthwise.vllm.compat.workers import engine_in_process

OURS: Final = "lengthwise.vllm.Scheduler"
END_OF_ANSWER: Final = 1  #: the token that ends an answer

#: A model that is never loaded: what vLLM reads of it is its shape.
_SHAPE: Final[Mapping[str, object]] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 128,
    "vocab_size": 1024,
    "eos_token_id": END_OF_ANSWER,
    "bos_token_id": None,
    "dtype": "bfloat16",
}


def limits_of(engine: EngineSettings, longest: int) -> dict[str, Any]:
    """An engine's limits as vLLM's arguments, and what all engines in virtual time have alike.

    Args:
        engine: the limits.
        longest: tokens of the longest request: whole blocks.
    """
    return {
        "skip_tokenizer_init": True,
        "max_model_len": longest,
        "block_size": engine.block_size,
        "max_num_seqs": engine.places,
        "max_num_active_seqs": engine.slots if engine.places > engine.slots else None,
        "max_num_batched_tokens": engine.token_budget,
        "long_prefill_token_threshold": engine.long_prefill_tokens,
        "enable_prefix_caching": engine.prefix_caching,
        "disable_log_stats": True,
        "enforce_eager": True,
    }


def emulation_of(cost: StepCost, engine: EngineSettings, longest: int) -> dict[str, object]:
    """What the executor is told: steps take what `cost` says."""
    return {
        "cost": asdict(cost),
        "kv_blocks": engine.blocks(longest),
        "clock": "virtual",
        "asynchronous": engine.lag > 0,
    }


def whole_blocks(tokens: int, engine: EngineSettings) -> int:
    """The least tokens above these that fill their KV blocks."""
    return -(-(tokens + 1) // engine.block_size) * engine.block_size


@contextlib.contextmanager
def virtual_config(
    cost: StepCost,
    engine: EngineSettings,
    *,
    longest: int,
    scheduler: str | None = OURS,
    settings: Mapping[str, object] | None = None,
    connector: Mapping[str, object] | None = None,
) -> Iterator[Any]:
    """vLLM's configuration of an engine whose steps take what `cost` says.

    Args:
        cost: of its steps.
        engine: its limits.
        longest: tokens of the longest request, prompt and answer.
        scheduler: class by name; None for the one that vLLM chooses itself.
        settings: of our scheduler; None for fcfs.
        connector: vLLM's `--kv-transfer-config`.
    """
    engine_in_process()
    from vllm.config import KVTransferConfig
    from vllm.engine.arg_utils import EngineArgs

    from lengthwise.emulate.executor import Executor
    from lengthwise.reference import model_path

    longest = whole_blocks(longest, engine)
    ours: dict[str, object] = {EMULATE: emulation_of(cost, engine, longest)}
    if scheduler == OURS:
        ours["settings"] = dict(settings or {})
    with tempfile.TemporaryDirectory(prefix="lengthwise-model-") as folder:
        shape = {**_SHAPE, "max_position_embeddings": longest}
        (Path(folder) / "config.json").write_text(json.dumps(shape), encoding="utf-8")
        arguments = EngineArgs(
            model=folder,
            tokenizer=str(model_path()),
            dtype="bfloat16",
            **limits_of(engine, longest),
            scheduler_cls=scheduler,
            distributed_executor_backend=Executor,
            additional_config={"lengthwise": ours},
            kv_transfer_config=None if connector is None else KVTransferConfig(**connector),
        )
        config = arguments.create_engine_config()
        config.scheduler_config.watermark = engine.watermark
        yield config
