"""What is asked of vLLM's workers: hidden states of model runners, the executors in whose place an
emulation stands, and what it takes to run one in this process, between other people's code."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from lengthwise.errors import InputError
from lengthwise.vllm.compat.version import cannot
from lengthwise.vllm.hidden_states import ProbeOutput, attach

# The same of the model runner, where hidden states are read.
_RUNNER: Final = (
    "execute_model",
    "execute_model_state",
    "get_model",
    "load_model",
    "sample_tokens",
    "use_aux_hidden_state_outputs",
)

# What the executor that emulates one overrides, and what the engine core then calls.
_EXECUTOR: Final = (
    "_init_executor",
    "check_health",
    "collective_rpc",
    "determine_available_memory",
    "execute_model",
    "get_kv_cache_specs",
    "get_kv_connector_handshake_metadata",
    "get_supported_kv_cache_layouts",
    "sample_tokens",
    "shutdown",
    "supports_async_scheduling",
    "take_draft_token_ids",
)


def check_runner(runner: Any) -> None:
    """Refuse a model runner that lacks a name the adapter relies on.

    Raises:
        InputError: names what is missing and the version of vLLM.
    """
    missing = [name for name in _RUNNER if not hasattr(runner, name)]
    if missing:
        raise cannot(f"no model runner {', '.join(missing)}", "cannot show hidden states")


def refuse_without_hidden_states(vllm_config: Any, layers: Sequence[int]) -> None:
    """Refuse an engine that cannot show the hidden states of these layers.

    Raises:
        InputError: names the feature or the layer.
    """
    parallel, model = vllm_config.parallel_config, vllm_config.model_config
    if vllm_config.speculative_config is not None:
        raise InputError(
            "the probe does not work with speculative decoding: leave --speculative-config out, "
            "or serve without --probe"
        )
    if parallel.pipeline_parallel_size > 1:
        raise InputError("the probe does not work with pipeline parallelism: serve without --probe")
    if getattr(parallel, "prefill_context_parallel_size", 1) > 1:
        raise InputError(
            "the probe does not work with context parallelism of prefills: serve without --probe"
        )
    if model.runner_type != "generate":
        raise InputError(f"the probe needs a model that generates, not one for {model.runner_type}")
    total = model.get_total_num_hidden_layers()
    if max(layers) > total:
        raise InputError(
            f"there is no layer {max(layers)}: {model.model} has {total} layers "
            "(0 is the embedding)"
        )


def return_hidden_states(runner: Any, layers: Sequence[int]) -> None:
    """Make a loaded model return the outputs of some layers from now on.

    Raises:
        InputError: the model cannot.
    """
    from vllm.model_executor.models.interfaces import supports_eagle3

    model = runner.get_model()
    if not supports_eagle3(model):
        raise InputError(
            f"{type(model).__name__} cannot return hidden states (vLLM's EAGLE-3 interface): "
            "serve it without --probe; policies then use the prompt predictor alone"
        )
    model.set_aux_hidden_state_layers(tuple(layers))
    runner.use_aux_hidden_state_outputs = True


def speaks_for_engine() -> bool:
    """Whether this rank's output is the one that the scheduler gets."""
    from vllm.distributed import get_tensor_model_parallel_rank

    return bool(get_tensor_model_parallel_rank() == 0)


def hidden_states(runner: Any) -> list[Any] | None:
    """The wanted layers' outputs in the step that just ran, [tokens, hidden] each; None without."""
    state = runner.execute_model_state
    return None if state is None else state.aux_hidden_states


def batch_rows(runner: Any) -> tuple[Sequence[str], list[int]]:
    """The batch of the step that just ran, in the order of its rows.

    Returns:
        The requests, and the first row of each followed by the end, shape [n + 1].
    """
    batch = getattr(runner.execute_model_state, "input_batch", None)
    if batch is not None:  # the second model runner
        request_ids, starts = batch.req_ids, batch.query_start_loc_np
    else:
        request_ids, starts = runner.input_batch.req_ids, runner.query_start_loc.np
    return request_ids, starts[: len(request_ids) + 1].tolist()


def send_along(output: Any, predictions: Callable[[], list[ProbeOutput]]) -> Any:
    """A model runner's output with predictions attached, which may still be computed.

    Returns:
        The output to return in its stead; the same where nothing can be attached.
    """
    from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput

    if isinstance(output, ModelRunnerOutput):
        attach(output, predictions())
        return output
    if not isinstance(output, AsyncModelRunnerOutput):
        return output

    class WithPredictions(AsyncModelRunnerOutput):  # type: ignore[misc]
        """Waits for both, in the thread that waits for the tokens."""

        def get_output(self) -> ModelRunnerOutput:
            whole = output.get_output()
            attach(whole, predictions())
            return whole

    return WithPredictions()


def check_executor(base: Any) -> None:
    """Refuse a class of executors whose interface is another one than the emulation's.

    Raises:
        InputError: names what differs and the version of vLLM.
    """
    missing = [name for name in _EXECUTOR if not hasattr(base, name)]
    unknown = sorted(set(getattr(base, "__abstractmethods__", ())) - set(_EXECUTOR))
    if missing or unknown:
        differs = [*(f"no {name}" for name in missing), *(f"a new {name}" for name in unknown)]
        raise cannot(f"{', '.join(differs)} in its executors", "cannot be emulated")


def refuse_without_worker(vllm_config: Any) -> None:
    """Refuse what needs a worker, where there is none.

    Raises:
        InputError: names the feature.
    """
    parallel, model = vllm_config.parallel_config, vllm_config.model_config
    if parallel.world_size > 1:
        raise InputError(
            "an emulated server runs no tensor or pipeline parallelism: "
            "the number of GPUs is part of the name, as in 2xa100:llama-3-8b"
        )
    if vllm_config.speculative_config is not None:
        raise InputError("an emulated server proposes no tokens: leave --speculative-config out")
    if model.runner_type != "generate" or model.is_multimodal_model or model.enable_prompt_embeds:
        raise InputError("only models that generate text from text can be emulated")


def engine_in_process() -> None:
    """Have vLLM's next engine run in this process, and log errors alone."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


@contextlib.contextmanager
def llvmlite_unseen() -> Iterator[None]:
    """Keep llvmlite, on which numba stands, out of sight while an engine starts in this process.

    vLLM's CPU platform looks through the attributes of all modules that are imported, and fails on
    an object of llvmlite's that answers every question with a foreign function.
    """
    name = "llvmlite.binding.ffi"
    module = sys.modules.pop(name, None)
    try:
        yield
    finally:
        if module is not None:
            sys.modules[name] = module


@contextlib.contextmanager
def stdout_on_stderr() -> Iterator[None]:
    """What anything writes to stdout, compiled code included, goes to stderr instead."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
