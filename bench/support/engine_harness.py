"""vLLM's real scheduler, stepped as vLLM's engine core steps it, without an engine or a model.

    engine = SteppedEngine(build_scheduler(num_blocks=64), lag=0)
    engine.add(Ask("a", prompt=[2, 3, 4], answer=10))
    engine.run()
    engine.answers["a"]            # the ten tokens

`lag=1` steps as the engine core does under asynchronous scheduling: the output of step n is handed
over after step n + 1 has been scheduled. The stand-in model runner is in `stand_in_runner`.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from bench.support.stand_in_runner import END_OF_ANSWER, VOCABULARY, StandInRunner, answer_tokens

MAX_MODEL_LEN = 2048

_TINY_MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": MAX_MODEL_LEN,
    "bos_token_id": 0,
    "eos_token_id": END_OF_ANSWER,
}


@functools.cache
def _model_config() -> Any:
    """The configuration of a model that is never loaded, read from a local folder.

    What reads its token ids as words takes them for those of the built-in model.
    """
    from vllm.config import ModelConfig

    from lengthwise.reference import model_path

    folder = tempfile.TemporaryDirectory(prefix="tiny-model-")
    atexit.register(folder.cleanup)
    (Path(folder.name) / "config.json").write_text(json.dumps(_TINY_MODEL))
    return ModelConfig(
        model=folder.name,
        tokenizer=str(model_path()),
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=MAX_MODEL_LEN,
    )


def build_scheduler(
    scheduler_class: Callable[..., Any] | None = None,
    *,
    num_blocks: int = 10_000,
    block_size: int = 16,
    prefix_caching: bool = True,
    max_num_seqs: int = 16,
    max_num_active_seqs: int | None = None,
    token_budget: int = 512,
    asynchronous: bool = False,
    policy: str = "fcfs",
    watermark: float = 0.0,
    max_loras: int = 0,
    kv_groups: int = 1,
    model_runner: Literal[1, 2] = 1,
    log_stats: bool = False,
    worker: str = "auto",
    encoder_embeddings: int | None = None,
    lengthwise: Mapping[str, object] | None = None,
) -> Any:
    """A scheduler as the engine core builds it.

    Args:
        scheduler_class: the class, or a factory that is called like one; None for the class that
            stock vLLM would choose.
        num_blocks: KV blocks in the pool, one of which vLLM keeps as its null block.
        block_size: tokens a block holds.
        prefix_caching: keep and reuse full blocks.
        max_num_seqs: requests that the worker holds.
        max_num_active_seqs: how many of them may run; None for all.
        token_budget: tokens a step may compute.
        asynchronous: configure asynchronous scheduling; to be stepped with `lag=1`.
        policy: vLLM's own scheduling policy.
        watermark: share of the blocks kept free when admitting.
        max_loras: adapters a batch may hold; 0 for no LoRA.
        kv_groups: groups of layers with KV of their own, as hybrid models have; all but the first
            with a sliding window.
        model_runner: which of vLLM's model runners the output is made for.
        log_stats: gather the statistics that a server logs.
        worker: the class that the workers are told to be; there are none here.
        encoder_embeddings: what the encoder of a multimodal model computes in a step and keeps at
            most; None for a model of text alone.
        lengthwise: our part of vLLM's `additional_config`.
    """
    import torch
    from vllm.config import CacheConfig, LoRAConfig, ParallelConfig, SchedulerConfig, VllmConfig
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import (
        FullAttentionSpec,
        KVCacheConfig,
        KVCacheGroupSpec,
        SlidingWindowSpec,
    )
    from vllm.v1.structured_output import StructuredOutputManager

    config = VllmConfig(
        model_config=_model_config(),
        scheduler_config=SchedulerConfig(
            max_num_seqs=max_num_seqs,
            max_num_active_seqs=max_num_active_seqs,
            max_num_batched_tokens=token_budget,
            max_model_len=MAX_MODEL_LEN,
            is_encoder_decoder=False,
            policy=policy,
            watermark=watermark,
            async_scheduling=False,
        ),
        parallel_config=ParallelConfig(worker_cls=worker),
        cache_config=CacheConfig(block_size=block_size, enable_prefix_caching=prefix_caching),
        lora_config=LoRAConfig(max_loras=max_loras) if max_loras else None,
        additional_config={"lengthwise": dict(lengthwise)} if lengthwise is not None else {},
    )
    config.cache_config.num_gpu_blocks = num_blocks
    # The CPU platform would refuse this while the configuration is made.
    config.scheduler_config.async_scheduling = asynchronous
    shape = {"block_size": block_size, "num_kv_heads": 1, "head_size": 1, "dtype": torch.float32}
    windows = [SlidingWindowSpec(**shape, sliding_window=1024) for _ in range(kv_groups - 1)]
    groups = [FullAttentionSpec(**shape), *windows]
    factory = scheduler_class or (AsyncScheduler if asynchronous else Scheduler)
    scheduler = factory(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=num_blocks,
            kv_cache_tensors=[],
            kv_cache_groups=[
                KVCacheGroupSpec([f"layer{place}"], spec) for place, spec in enumerate(groups)
            ],
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=block_size,
        log_stats=log_stats,
    )
    scheduler.use_v2_model_runner = model_runner == 2
    if encoder_embeddings is not None:
        from vllm.v1.core.encoder_cache_manager import EncoderCacheManager

        # What vLLM asks the processor of a multimodal model, which the built-in model has not.
        scheduler.max_num_encoder_input_tokens = encoder_embeddings
        scheduler.encoder_cache_manager = EncoderCacheManager(encoder_embeddings)
    return scheduler


@functools.cache
def _block_hasher(block_size: int) -> Any:
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash

    init_none_hash(sha256)
    return get_request_block_hasher(block_size, sha256)


@dataclass(frozen=True)
class Ask:
    """A request to come, from which any number of engines can make their own copy.

    `answer` is the length at which the answer ends by itself, in tokens; a smaller `max_tokens`
    cuts it, and `ignore_eos` makes it go on to `max_tokens`. `images` are what the encoder computes
    before their place in the prompt: a name, which stands for the content, where its tokens begin,
    and how many they are.
    """

    request_id: str
    prompt: list[int]
    answer: int
    max_tokens: int | None = None
    ignore_eos: bool = False
    priority: int = 0
    arrival_time: float = 0.0
    hints: Mapping[str, object] = field(default_factory=dict)
    lora: int = 0
    resumable: bool = False
    structured: bool = False
    images: tuple[tuple[str, int, int], ...] = ()

    def request(self, block_size: int | None) -> Any:
        """A vLLM Request; its blocks are hashed for the prefix cache if `block_size` is given."""
        from vllm.lora.request import LoRARequest
        from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
        from vllm.sampling_params import SamplingParams, StructuredOutputsParams
        from vllm.v1.request import Request

        parameters = SamplingParams(
            max_tokens=self.max_tokens or MAX_MODEL_LEN,
            ignore_eos=self.ignore_eos,
            extra_args=dict(self.hints) or None,
            structured_outputs=StructuredOutputsParams(regex=".*") if self.structured else None,
        )
        parameters.update_from_generation_config({}, END_OF_ANSWER)
        adapter = LoRARequest(f"adapter-{self.lora}", self.lora, "/none") if self.lora else None
        return Request(
            self.request_id,
            list(self.prompt),
            parameters,
            None,
            priority=self.priority,
            arrival_time=self.arrival_time,
            lora_request=adapter,
            resumable=self.resumable,
            mm_features=[
                MultiModalFeatureSpec(None, "image", name, PlaceholderRange(offset, length))
                for name, offset, length in self.images
            ],
            block_hasher=_block_hasher(block_size) if block_size else None,
        )

    def whole_answer(self) -> list[int]:
        """The answer that the request gets if nobody aborts it, whatever else is running."""
        room = MAX_MODEL_LEN - len(self.prompt)
        limit = min(self.max_tokens or room, room)
        ends = not self.ignore_eos and self.answer <= limit
        return answer_tokens(
            self.request_id, len(self.prompt), self.answer if ends else limit, ends
        )


@dataclass(frozen=True)
class Step:
    """What one call of `schedule` decided, and what was handed back before the next one.

    Two schedulers that decided alike give equal steps: order in the batch and block ids included.
    """

    number: int
    scheduled: tuple[tuple[str, int], ...]  # (request, tokens), in the order of the batch
    admitted: tuple[str, ...]  # taken from the queue in this step, new or resumed
    preempted: frozenset[str]  # put back since the step before, for any reason
    released: frozenset[str]  # finished or aborted since the step before
    blocks: tuple[tuple[str, tuple[int, ...]], ...]  # (request, KV blocks it was given)
    delivered: tuple[
        tuple[str, tuple[int, ...], str | None], ...
    ]  # (request, tokens, why it ended)


class SteppedEngine:
    """One scheduler, one stand-in model runner, and the engine core's loop around them.

    Args:
        scheduler: from `build_scheduler`.
        lag: steps by which outputs are late; 1 for asynchronous scheduling.
        check_memory: see `StandInRunner`.
    """

    def __init__(self, scheduler: Any, lag: int = 0, check_memory: bool = False) -> None:
        self.scheduler = scheduler
        self.asked: dict[str, Ask] = {}
        self.requests: dict[str, Any] = {}  # every vLLM Request ever submitted
        self.answers: dict[str, list[int]] = {}
        self.finished: dict[str, str] = {}  # request → why it ended, aborted ones included
        self.lag = lag
        self._lengths: dict[str, int] = {}
        self._in_flight: deque[tuple[Any, Any]] = deque()
        self._steps = 0
        cache = scheduler.cache_config
        self._hash_size = scheduler.block_size if cache.enable_prefix_caching else None
        self.runner = StandInRunner(
            self._lengths,
            cache.num_gpu_blocks,
            scheduler.block_size,
            check_memory,
            scheduler.max_num_running_reqs if scheduler.use_v2_model_runner else None,
        )

    def add(self, ask: Ask) -> Any:
        """Submit a request (or, for a known resumable one, its next input) and return it."""
        request = ask.request(self._hash_size)
        self._lengths[ask.request_id] = 0 if ask.ignore_eos else ask.answer
        if ask.request_id not in self.requests:
            self.asked[ask.request_id] = ask
            self.requests[ask.request_id] = request
            self.answers[ask.request_id] = []
        self.scheduler.add_request(request)
        if ask.request_id not in self.scheduler.requests:
            self._finish(ask.request_id, "abort")  # the end of a session that waited for input
        return request

    def abort(self, request_ids: Iterable[str]) -> None:
        """Finish requests from outside, as when their clients have gone."""
        from vllm.v1.request import RequestStatus

        aborted = self.scheduler.finish_requests(list(request_ids), RequestStatus.FINISHED_ABORTED)
        for request in aborted:
            self._finish(request.request_id, "abort")

    def step(self) -> Step:
        """Schedule and run one step, and hand over the output that is due."""
        output = self.scheduler.schedule()
        self._in_flight.append((output, self.runner.execute(output)))
        delivered: list[tuple[str, tuple[int, ...], str | None]] = []
        while len(self._in_flight) > self.lag:
            delivered += self._hand_over(*self._in_flight.popleft())
        self._steps += 1
        return self._record(output, delivered)

    def run(self, limit: int = 100_000) -> list[Step]:
        """Step until every request has finished and every output has been handed over."""
        steps = []
        while self.scheduler.has_requests() or self._in_flight:
            steps.append(self.step())
            if not self.scheduler.has_requests():
                while self._in_flight:
                    self._hand_over(*self._in_flight.popleft())
            assert len(steps) < limit, "the scheduler does not get done"
        return steps

    def live(self) -> list[str]:
        """Requests submitted and not finished, oldest first."""
        return [request_id for request_id in self.requests if request_id not in self.finished]

    def _hand_over(
        self, output: Any, model_output: Any
    ) -> list[tuple[str, tuple[int, ...], str | None]]:
        delivered = []
        for outputs in self.scheduler.update_from_output(output, model_output).values():
            for item in outputs.outputs:
                reason = None if item.finish_reason is None else str(item.finish_reason)
                self.answers[item.request_id].extend(item.new_token_ids)
                if reason is not None and item.request_id not in self.scheduler.requests:
                    self._finish(item.request_id, reason)
                delivered.append((item.request_id, tuple(item.new_token_ids), reason))
        return delivered

    def _finish(self, request_id: str, reason: str) -> None:
        assert request_id not in self.finished, f"{request_id} finished twice"
        self.finished[request_id] = reason

    def _record(
        self, output: Any, delivered: list[tuple[str, tuple[int, ...], str | None]]
    ) -> Step:
        new, cached = output.scheduled_new_reqs, output.scheduled_cached_reqs
        blocks = [(data.req_id, tuple(data.block_ids[0])) for data in new]
        for request_id, new_blocks in zip(cached.req_ids, cached.new_block_ids, strict=True):
            if new_blocks is not None:
                blocks.append((request_id, tuple(new_blocks[0])))
        resumed = [i for i in cached.req_ids if i in cached.resumed_req_ids]
        return Step(
            number=self._steps,
            scheduled=tuple(output.num_scheduled_tokens.items()),
            admitted=(*(data.req_id for data in new), *resumed),
            preempted=frozenset(output.preempted_req_ids or ()),
            released=frozenset(output.finished_req_ids),
            blocks=tuple(blocks),
            delivered=tuple(delivered),
        )
