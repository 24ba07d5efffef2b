"""The engine of a replica that emulates a GPU.

Ray Serve LLM sets the executor itself. Its own variable RAYLLM_VLLM_ENGINE_CLS names this class
instead of its own one, which differs in that line alone.
"""

from __future__ import annotations

from typing import Any

from ray.llm._internal.serve.engines.vllm.vllm_engine import (
    FrontendArgs,
    VLLMEngine,
    _normalize_vllm_engine_kwargs,
)


class EmulatedEngine(VLLMEngine):  # type: ignore[misc]
    """Ray's engine with the executor that keeps a GPU's pace and computes nothing."""

    def _prepare_engine_config(self, callback_ctx: Any) -> tuple[Any, Any, Any]:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext

        from lengthwise.serve.command import EXECUTOR

        config = self.llm_config.get_engine_config()
        kwargs = _normalize_vllm_engine_kwargs(config.get_initialization_kwargs())
        arguments = AsyncEngineArgs(**{**kwargs, "distributed_executor_backend": EXECUTOR})
        engine = arguments.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
        return arguments, FrontendArgs(**config.frontend_kwargs), engine
