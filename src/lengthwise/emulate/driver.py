"""vLLM's engine core in this process, in virtual time: arrivals in, times of tokens out.

Requests to come are `Asked`, what became of them `Served`; `virtual_config` is vLLM's configuration
of such an engine. The engine core steps as it does in a server: it takes up what has arrived,
plans, lets the executor run, and hands out tokens. Nothing waits, so it takes as long as vLLM's own
code does.
"""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import Any, Final

from lengthwise.emulate.link import BANDWIDTH, OFFLOAD_GBIT_PER_S, Offload
from lengthwise.emulate.pace import EMULATE
from lengthwise.errors import LengthwiseError
from lengthwise.predict.load import TRUE_TOKENS
from lengthwise.simulate.engine import EngineSettings, StepCost
from lengthwise.vllm.compat import offloading_connector
from lengthwise.vllm.compat.workers import engine_in_process


@dataclass(frozen=True)
class Asked:
    """One request to come.

    Attributes:
        prompt_ids: the prompt's tokens.
        output_tokens: the answer's length; None where a model that computes ends it itself.
        arrival_s: when it is sent, s from the start; in a closed loop as soon as a client is free.
            Of a later turn of a session: s from the end of the turn before it.
        after: of a later turn of a session, the place of the turn before it.
        priority: vLLM's, lower runs sooner.
        hints: what the client tells of it (`vllm_xargs`).
        abort_s: when its client goes away, s from the start; the engine hears of it between two
            steps. Who goes before sending sends nothing.
        ends_itself: the answer ends with an end token that the scheduler cannot foresee, as real
            answers do; else it is cut at its length.
    """

    prompt_ids: Sequence[int]
    output_tokens: int | None
    arrival_s: float = 0.0
    after: int | None = None
    priority: int = 0
    hints: Mapping[str, object] = field(default_factory=dict)
    abort_s: float = math.inf
    ends_itself: bool = True
    seed: int = 0
    most_tokens: int | None = None


@dataclass
class Served:
    """What became of a request; times in s from the start.

    Attributes:
        sent_s: when it was sent.
        token_s: when each token came.
        preemptions: how often it lost its place in the batch.
        cached_tokens: prompt tokens that the prefix cache held at its first step.
        finished: why it ended, in vLLM's words; None where it did not.
    """

    sent_s: float = math.nan
    token_s: list[float] = field(default_factory=list)
    preemptions: int = 0
    cached_tokens: int = 0
    finished: str | None = None

    @property
    def first_token_s(self) -> float:
        """When its first token came; NaN without one."""
        return self.token_s[0] if self.token_s else math.nan

    @property
    def finish_s(self) -> float:
        """When its last token came; NaN without one."""
        return self.token_s[-1] if self.token_s else math.nan


class Coming:
    """Requests that were not sent yet: they arrive at their times, or after a turn has ended."""

    def __init__(self, asked: Sequence[Asked], served: Sequence[Served]) -> None:
        self._asked, self._served = asked, served
        self._left = len(asked)
        self._next: dict[int, int] = {
            each.after: place for place, each in enumerate(asked) if each.after is not None
        }
        self._open: list[int] = []  # places of those that were sent and that others wait for
        self._known = [
            (each.arrival_s, place) for place, each in enumerate(asked) if each.after is None
        ]
        heapify(self._known)

    def __bool__(self) -> bool:
        """Whether any is left."""
        return self._left > 0

    @property
    def is_known(self) -> bool:
        """Whether it is known when the next one arrives."""
        return bool(self._known)

    @property
    def next_s(self) -> float:
        """When that is."""
        return self._known[0][0]

    def pop(self) -> tuple[float, int]:
        """Take the next one: when it arrives, and its place."""
        self._left -= 1
        return heappop(self._known)

    def sent(self, place: int) -> None:
        """Note that it is on its way, if another waits for its end."""
        if place in self._next:
            self._open.append(place)

    def end(self, place: int, ended_s: float) -> None:
        """Let the turn after it come, its delay after the end."""
        if place in self._next:
            after = self._next[place]
            heappush(self._known, (ended_s + self._asked[after].arrival_s, after))

    def look(self, now_s: float) -> None:
        """Let those come whose last turns have ended by now."""
        ended = [place for place in self._open if self._served[place].finished is not None]
        if ended:
            self._open = [place for place in self._open if self._served[place].finished is None]
        for place in ended:
            finish_s = self._served[place].finish_s
            self.end(place, now_s if math.isnan(finish_s) else finish_s)


OURS: Final = "lengthwise.vllm.Scheduler"
END_OF_ANSWER: Final = 1  #: the token that ends an answer

_HEAD_SIZE: Final = 128

#: A model that is never loaded: what vLLM reads of it is its shape.
_SHAPE: Final[Mapping[str, object]] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": _HEAD_SIZE,
    "intermediate_size": 384,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": _HEAD_SIZE,
    "vocab_size": 1024,
    "eos_token_id": END_OF_ANSWER,
    "bos_token_id": None,
    "dtype": "bfloat16",
}


_TOKEN_BYTES: Final = 2 * _HEAD_SIZE * 2  # of its KV of a token: keys and values, bfloat16


def host_memory(size_bytes: float, token_bytes: float, *, answers: bool = True) -> dict[str, Any]:
    """vLLM's `--kv-transfer-config` of an engine whose KV is copied to host memory.

    Args:
        size_bytes: of host memory, for each GPU.
        token_bytes: of a token's KV on each GPU, where the engine is another's stand-in: memory and
            link (`link.OFFLOAD_GBIT_PER_S`) shrink as far as a token's KV does.
        answers: copy answers, too, and not prompts alone.
    """
    scale = _TOKEN_BYTES / token_bytes
    return {
        "kv_connector": offloading_connector.CONNECTOR,
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "cpu_bytes_to_use": int(size_bytes * scale),
            "offload_prompt_only": not answers,
            BANDWIDTH: OFFLOAD_GBIT_PER_S * scale,
        },
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


_STANDSTILL: Final = 1000  # steps in a row without anything done


class VirtualEngine:
    """One engine core, whose rounds run one after the other, each from an empty prefix cache.

    `run` serves a whole round. Who has several engines begins a round on each and then lets the
    one whose clock is behind take its next `step`, and `send`s what has arrived by then. Make an
    engine with `open_virtual_engine`.

    Attributes:
        scheduler: vLLM's, or ours over it.
        steps: steps taken so far.
    """

    def __init__(self, core: Any) -> None:
        self._core = core
        self.scheduler = core.scheduler
        self._pace = core.model_executor.pace
        self._clock = self._pace.clock
        self.steps = 0
        self._sent = 0
        self._idle_steps = 0
        self._live: dict[str, tuple[Any, Served]] = {}  # by vLLM's name: its request, and ours

    def use(self, settings: Mapping[str, object]) -> None:
        """Change the settings of our scheduler between two rounds.

        Raises:
            InputError: they make no sense; nothing has changed.
        """
        from lengthwise.settings import parse_settings

        self.scheduler.apply_now(parse_settings(dict(settings)))

    def run(
        self,
        asked: Sequence[Asked],
        clients: int | None = None,
        durations: Sequence[float] | None = None,
    ) -> list[Served]:
        """Serve requests to the last.

        Args:
            asked: in order of arrival; those of the same time in this order.
            clients: of a closed loop, each of which sends the next request when its last has been
                answered; None for arrivals at their times.
            durations: what each step takes, in s; None for what the engine's pace says.

        Returns:
            What became of each, in the same order.

        Raises:
            LengthwiseError: the engine came to a standstill, or took more steps than there are
                durations.
        """
        served = [Served() for _ in asked]
        coming = Coming(asked, served)
        leaving = deque(sorted((each.abort_s, place) for place, each in enumerate(asked)))
        self.begin(durations)
        while coming or self.busy:
            if coming.is_known and clients is None and not self.busy:
                self.sleep_until(coming.next_s)
            gone = []
            while leaving and leaving[0][0] <= self.now_s:
                gone.append(served[leaving.popleft()[1]])
            if gone:
                self.abort(gone)
            while coming.is_known and (
                coming.next_s <= self.now_s if clients is None else len(self._live) < clients
            ):
                arrival_s, place = coming.pop()
                if asked[place].abort_s <= self.now_s:
                    served[place].finished = "abort"  # gone before the engine saw it
                    coming.end(place, self.now_s)
                    continue
                sent_s = arrival_s if clients is None else self.now_s
                self.send(asked[place], served[place], sent_s)
                coming.sent(place)
            self.step()
            coming.look(self.now_s)
        return served

    def begin(self, durations: Sequence[float] | None = None) -> None:
        """Begin a round at 0 s, with nothing in memory; see `run` for the durations."""
        assert not self._live
        self._core.scheduler.reset_prefix_cache(reset_connector=True)  # host memory, too
        self._pace.restart(durations)
        link = getattr(self._core.model_executor, "link", None)
        if isinstance(link, Offload):
            link.restart()
        if hasattr(self.scheduler, "begin_anew"):
            self.scheduler.begin_anew(self._clock.now)

    @property
    def now_s(self) -> float:
        """When the engine plans its next step, if it is busy; else when it fell idle."""
        return float(self._clock.now())

    @property
    def busy(self) -> bool:
        """Whether a step is to be taken, if only to tell the worker of the last end."""
        return bool(self._live or self._core.scheduler.has_requests() or self._core.batch_queue)

    def sleep_until(self, time_s: float) -> None:
        """Let time pass on an engine that has nothing to do."""
        self._clock.wait_until(time_s)

    def send(self, asked: Asked, served: Served, sent_s: float) -> None:
        """Give the engine a request, which it sees now; `served` is written from now on."""
        served.sent_s = sent_s
        name = str(self._sent)
        self._sent += 1
        self._live[name] = self._add(name, asked), served

    def abort(self, gone: Iterable[Served]) -> None:
        """Let the clients of unfinished requests go away; others are left alone."""
        leaving = {id(each) for each in gone}
        for name, (request, served) in list(self._live.items()):
            if id(served) in leaving:
                self._core.abort_requests([name])
                self._end(name, request, served, "abort")

    def step(self) -> None:
        """Take a step, if there is one to take, and note whose tokens came.

        Raises:
            LengthwiseError: the engine has come to a standstill.
        """
        outputs, ran = self._core.step_fn()
        self._core.post_step(ran)
        self.steps += 1
        self._idle_steps = 0 if ran or outputs else self._idle_steps + 1
        if self._idle_steps > _STANDSTILL:
            raise LengthwiseError("the engine stands still: requests wait, none can run")
        now_s = self.now_s
        for output in (outputs or {}).values():
            for each in output.outputs:
                if each.request_id not in self._live:
                    continue  # aborted while it was on its way
                request, served = self._live[each.request_id]
                served.token_s.extend([now_s] * len(each.new_token_ids))
                if each.prefill_stats is not None:
                    served.cached_tokens = each.prefill_stats.num_cached_tokens
                if each.finish_reason is not None:
                    self._end(each.request_id, request, served, str(each.finish_reason))

    def _end(self, name: str, request: Any, served: Served, reason: str) -> None:
        served.finished = reason
        served.preemptions = request.num_preemptions
        del self._live[name]

    def _add(self, name: str, asked: Asked) -> Any:
        from vllm.v1.engine import EngineCoreRequest

        room = self._core.vllm_config.model_config.max_model_len - len(asked.prompt_ids)
        request, wave = self._core.preprocess_add_request(
            EngineCoreRequest(
                request_id=name,
                prompt_token_ids=list(asked.prompt_ids),
                mm_features=None,
                sampling_params=self._sampling(asked, room),
                pooling_params=None,
                arrival_time=self._clock.now(),
                lora_request=None,
                cache_salt=None,
                data_parallel_rank=None,
                priority=asked.priority,
            )
        )
        self._core.add_request(request, wave)
        return request

    def _sampling(self, asked: Asked, room: int) -> Any:
        """vLLM's sampling parameters of a request that has room for so many tokens."""
        from vllm.sampling_params import SamplingParams

        assert asked.output_tokens is not None, "nothing is computed that would end it"
        hints: dict[str, object] = dict(asked.hints)
        if asked.ends_itself:
            hints[TRUE_TOKENS] = asked.output_tokens
        parameters = SamplingParams(
            max_tokens=room if asked.ends_itself else asked.output_tokens,
            ignore_eos=not asked.ends_itself,
            extra_args=hints or None,
            detokenize=False,
        )
        parameters.update_from_generation_config({}, END_OF_ANSWER)
        return parameters


@contextlib.contextmanager
def open_virtual_engine(
    cost: StepCost,
    engine: EngineSettings,
    *,
    longest: int,
    scheduler: str | None = OURS,
    settings: Mapping[str, object] | None = None,
    connector: Mapping[str, object] | None = None,
) -> Iterator[VirtualEngine]:
    """An engine core whose steps take what `cost` says; see `virtual_config`."""
    with virtual_config(
        cost,
        engine,
        longest=longest,
        scheduler=scheduler,
        settings=settings,
        connector=connector,
    ) as config:
        from vllm.v1.engine.core import EngineCore

        from lengthwise.emulate.executor import Executor

        core = EngineCore(config, Executor, log_stats=False)
        try:
            yield VirtualEngine(core)
        finally:
            core.shutdown()
