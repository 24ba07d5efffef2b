"""The engine of a replica that emulates a GPU.

Ray Serve LLM sets the executor itself. Its own variable RAYLLM_VLLM_ENGINE_CLS names this class
instead of its own one, which differs in the executor and in having nothing to download.
"""

from __future__ import annotations

from typing import Any

from ray.llm._internal.serve.engines.vllm.vllm_engine import (
    FrontendArgs,
    VLLMEngine,
    _normalize_vllm_engine_kwargs,
)
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.usage.usage_lib import UsageContext

from lengthwise.emulate.model_folder import cached_model_folder
from lengthwise.emulate.pace import EMULATE
from lengthwise.serve.command import EXECUTOR
from lengthwise.simulate.presets import parse_preset


class EmulatedEngine(VLLMEngine):  # type: ignore[misc]
    """Ray's engine with the executor that keeps a GPU's pace and computes nothing."""

    def __init__(self, llm_config: Any) -> None:
        super().__init__(llm_config)
        self.llm_config.get_or_create_callback().ctx.run_init_node = False

    def _prepare_engine_config(self, callback_ctx: Any) -> tuple[Any, Any, Any]:
        config = self.llm_config.get_engine_config()
        kwargs = _normalize_vllm_engine_kwargs(config.get_initialization_kwargs())
        emulated = kwargs["additional_config"]["lengthwise"][EMULATE]
        # This may be another machine than the one whose command named a folder.
        kwargs["model"] = str(cached_model_folder(parse_preset(emulated["preset"])))
        kwargs["distributed_executor_backend"] = EXECUTOR
        arguments = AsyncEngineArgs(**kwargs)
        engine = arguments.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
        return arguments, FrontendArgs(**config.frontend_kwargs), engine
