"""What is read of vLLM's scheduler, and the little that is set."""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import Any, Final

from lengthwise.errors import InputError
from lengthwise.vllm.compat import offloading_connector
from lengthwise.vllm.compat.requests import may_pause
from lengthwise.vllm.compat.version import cannot

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

_ATTRIBUTES: Final = (
    "block_size",
    "cache_config",
    "connector",
    "encoder_cache_manager",
    "kv_cache_config",
    "kv_cache_manager",
    "kv_holding_waiting",
    "lora_config",
    "max_num_active_reqs",
    "max_num_encoder_input_tokens",
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


def check_scheduler(scheduler: Any) -> None:
    """Refuse a scheduler that lacks a name the adapter relies on.

    Raises:
        InputError: names what is missing and the version of vLLM.
    """
    missing = [name for name in (*_METHODS, *_ATTRIBUTES) if not hasattr(scheduler, name)]
    if not hasattr(getattr(scheduler, "kv_cache_manager", None), "block_pool"):
        missing.append("kv_cache_manager.block_pool")
    if missing:
        raise cannot(f"no scheduler {', '.join(missing)}", "is not supported")


def refuse_unsupported(vllm_config: Any) -> None:
    """Refuse configurations in which length order has no meaning.

    Raises:
        InputError: names the feature.
    """
    if (wanted := vllm_config.kv_transfer_config) is not None:
        offloading_connector.refuse_without_memory(
            wanted.kv_connector, wanted.kv_connector_extra_config
        )
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


def has_places_to_pause(config: Any) -> bool:
    """Whether vLLM's scheduler configuration has more places in the worker than requests may run,
    which is where a paused one stays."""
    most = config.max_num_active_seqs
    return most is not None and most < config.max_num_seqs


def refusal_to_pause(scheduler: Any, config: Any) -> str | None:
    """Why no request can be paused in this engine, and what to do about it; None where they can.

    Args:
        scheduler: vLLM's.
        config: vLLM's configuration.
    """
    if not has_places_to_pause(config.scheduler_config):
        most = int(scheduler.max_num_running_reqs)
        return (
            f"a paused request keeps its place in the worker, and all {most} may run at once: "
            f"start with, for example, --max-num-seqs {2 * most} --max-num-active-seqs {most}"
        )
    if config.speculative_config is not None:
        return "not with speculative decoding: leave --speculative-config out"
    if scheduler.connector is not None and not offloading_connector.offloads(scheduler):
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


def engine_index(vllm_config: Any) -> int:
    """This engine's number among those of a data-parallel server, from 0."""
    return int(getattr(vllm_config.parallel_config, "data_parallel_index", 0) or 0)


def engine_limits(scheduler: Any, pauses: bool) -> dict[str, float]:
    """What bounds this engine's steps, under the names of `simulate.EngineSettings`.

    Args:
        scheduler: vLLM's.
        pauses: requests can be paused; else no place beside those that run is of use.
    """
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    config = scheduler.scheduler_config
    return {
        "slots": int(scheduler.max_num_active_reqs),
        "max_seqs": int(
            scheduler.max_num_running_reqs if pauses else scheduler.max_num_active_reqs
        ),
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


def step_limits(scheduler: Any) -> dict[str, Any]:
    """What bounds a step, under the names of `policy.facts`."""
    return {
        "token_budget": int(scheduler.max_num_scheduled_tokens),
        "block_size": int(scheduler.block_size),
        "watermark_blocks": int(getattr(scheduler.kv_cache_manager, "watermark_blocks", 0)),
        "lookahead_tokens": int(scheduler.num_lookahead_tokens),
        "caching": bool(scheduler.cache_config.enable_prefix_caching),
        "max_adapters": 0 if scheduler.lora_config is None else scheduler.lora_config.max_loras,
        **offloading_connector.limits(scheduler),
    }


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


def free_slots(scheduler: Any) -> int:
    """How many more requests may run now."""
    taken = len(scheduler.running) + scheduler.num_waiting_for_streaming_input
    return int(scheduler.max_num_active_reqs - taken)


def free_places(scheduler: Any) -> int:
    """How many more requests the worker can hold now; sessions between two turns keep theirs."""
    held = max(len(scheduler.kv_holding_waiting), scheduler.num_waiting_for_streaming_input)
    return int(scheduler.max_num_running_reqs - len(scheduler.running) - held)


def ready_holders(scheduler: Any) -> int:
    """Waiting requests that hold KV and could run now, or as soon as it is loaded from host memory:
    the parent admits them before all others."""
    if offloading_connector.offloads(scheduler):
        return len(scheduler.kv_holding_waiting) - int(scheduler.num_waiting_for_streaming_input)
    return sum(
        request.status.name in ("WAITING", "PREEMPTED") for request in scheduler.kv_holding_waiting
    )


def free_blocks(scheduler: Any) -> int:
    """KV blocks free now, those that still hold reusable content included."""
    return int(scheduler.kv_cache_manager.block_pool.get_num_free_blocks())


def kv_groups(scheduler: Any) -> int:
    """Groups of layers with KV blocks of their own, of which hybrid models have several."""
    return max(len(scheduler.kv_cache_config.kv_cache_groups), 1)


def blocks_freed(scheduler: Any, request: Any) -> int:
    """KV blocks that preempting a request frees: those that no other request shares with it."""
    blocks = scheduler.kv_cache_manager.coordinator.get_blocks(request.request_id)[0]
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
    connects, holders = scheduler.connector is not None, scheduler.kv_holding_waiting
    if connects and not offloading_connector.offloads(scheduler):
        return False
    return bool(
        not throttled
        and (not holders or (connects and ready_holders(scheduler) <= free_slots(scheduler)))
        and scheduler.pause_state.name == "UNPAUSED"
        and scheduler.scheduler_config.enable_chunked_prefill
        and not scheduler.use_pp
        and len(scheduler.kv_cache_config.kv_cache_groups) == 1
    )


def may_make_way(scheduler: Any, request: Any) -> bool:
    """Whether a running request may be preempted now.

    Not a session with a token on its way: if that ends its turn, vLLM takes the session out of all
    its queues, where it would wait for ever.
    """
    ends_unseen = request.resumable and request.num_output_placeholders > 0
    freed = scheduler._request_blocks_can_be_freed(request)
    return may_pause(request) and bool(freed and not ends_unseen)


def admitted(output: Any) -> list[tuple[str, int]]:
    """The requests that a step's plan lets run from now on, new or again, and their tokens that
    need not be computed now."""
    started, cached = output.scheduled_new_reqs, output.scheduled_cached_reqs
    found = [(new.req_id, new.num_computed_tokens) for new in started] if started else []
    if cached.resumed_req_ids:
        every = zip(cached.req_ids, cached.num_computed_tokens, strict=True)
        found += [(name, tokens) for name, tokens in every if name in cached.resumed_req_ids]
    return found


class Room:
    """What a step has besides slots and memory: LoRA adapters that the batch may still hold, and
    what the encoder may still compute and keep, of images and the like, in embeddings.

    Args:
        scheduler: vLLM's.
        adapters: whether adapters count.
    """

    def __init__(self, scheduler: Any, adapters: bool) -> None:
        self._scheduler = scheduler
        config = scheduler.lora_config if adapters else None
        self._most_adapters = math.inf if config is None else int(config.max_loras)
        running = () if config is None else scheduler.running  # a walk through the batch, each look
        self._adapters = {r.lora_request.lora_int_id for r in running if r.lora_request}
        self._encoder: int | None = None  # counted when the first asks
        # Models of another kind (speech to text) keep nothing from one step to the next.
        self._kept = getattr(scheduler.encoder_cache_manager, "cached", {})

    def take(self, request: Any) -> bool:
        """Whether a waiting request finds all that it needs to begin: its adapter, and the encoder
        for the first of its inputs that is not there. Then its adapter is taken, and of the encoder
        as much as all of its inputs need."""
        adapter = request.lora_request and request.lora_request.lora_int_id
        if adapter and adapter not in self._adapters and len(self._adapters) >= self._most_adapters:
            return False
        missing: list[int] = []
        if request.has_encoder_inputs:
            if self._encoder is None:
                self._encoder = self._encoder_room()
            missing = self._missing(request)
            if missing and missing[0] > self._encoder:
                return False
            self._encoder -= sum(missing)
        if adapter:
            self._adapters.add(adapter)
        return True

    def _encoder_room(self) -> int:
        """What those that run leave."""
        scheduler, manager = self._scheduler, self._scheduler.encoder_cache_manager
        free = getattr(manager, "num_freeable_slots", manager.num_free_slots)
        wanted = sum(
            sum(self._missing(request))
            for request in scheduler.running
            if request.is_prefill_chunk and request.has_encoder_inputs
        )
        return min(int(scheduler.max_num_encoder_input_tokens), int(free)) - wanted

    def _missing(self, request: Any) -> list[int]:
        """What each input has that is still to be computed, in order."""
        return [
            int(request.get_num_encoder_embeds(place))
            for place, feature in enumerate(request.mm_features)
            if feature.identifier not in self._kept
            and feature.mm_position.offset + feature.mm_position.length
            > request.num_computed_tokens
        ]
