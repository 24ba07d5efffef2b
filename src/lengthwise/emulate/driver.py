"""vLLM's engine core in this process, in virtual time: arrivals in, times of tokens out.

The engine core steps as it does in a server: it takes up what has arrived, plans, lets the executor
run, and hands out tokens. Nothing waits, so it takes as long as vLLM's own code does.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from lengthwise.errors import LengthwiseError
from lengthwise.predict.baselines import TRUE_TOKENS
from lengthwise.simulate.engine_settings import EngineSettings
from lengthwise.simulate.step_cost import StepCost

OURS: Final = "lengthwise.vllm.Scheduler"

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
    "eos_token_id": 1,
    "bos_token_id": None,
    "dtype": "bfloat16",
}


@dataclass(frozen=True)
class Asked:
    """One request to come.

    Attributes:
        prompt_ids: the prompt's tokens.
        output_tokens: the answer's length.
        arrival_s: when it is sent, s from the start; in a closed loop as soon as a client is free.
        priority: vLLM's, lower runs sooner.
        hints: what the client tells of it (`vllm_xargs`).
        abort_s: when its client goes away, s from the start.
        ends_itself: the answer ends with an end token that the scheduler cannot foresee, as real
            answers do; else it is cut at its length.
    """

    prompt_ids: Sequence[int]
    output_tokens: int
    arrival_s: float = 0.0
    priority: int = 0
    hints: Mapping[str, object] = field(default_factory=dict)
    abort_s: float = math.inf
    ends_itself: bool = True


@dataclass
class Served:
    """What became of a request; times in s from the start.

    Attributes:
        sent_s: when it was sent.
        token_s: when each token came.
        scheduled_s: when it was first planned into a step; NaN where it never was.
        preemptions: how often it lost its place in the batch.
        cached_tokens: prompt tokens that the prefix cache held at its first step.
        finished: why it ended, in vLLM's words; None where it did not.
    """

    sent_s: float = math.nan
    token_s: list[float] = field(default_factory=list)
    scheduled_s: float = math.nan
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


class VirtualEngine:
    """One engine core; rounds run on it one after the other, each from an empty prefix cache.

    Make one with `open_virtual_engine`.

    Attributes:
        scheduler: vLLM's, or ours over it.
        steps: steps taken so far.
    """

    def __init__(self, core: Any) -> None:
        self._core = core
        self.scheduler = core.scheduler
        self._clock = core.model_executor.clock
        self.steps = 0

    def use(self, settings: Mapping[str, object]) -> None:
        """Change the settings of our scheduler between two rounds.

        Raises:
            InputError: they make no sense; nothing has changed.
        """
        from lengthwise.vllm.settings import parse_settings

        self.scheduler.apply_now(parse_settings(dict(settings)))

    def run(self, asked: Sequence[Asked], clients: int | None = None) -> list[Served]:
        """Serve requests to the last.

        Args:
            asked: in order of arrival.
            clients: of a closed loop, each of which sends the next request when its last has been
                answered; None for arrivals at their times.

        Returns:
            What became of each, in the same order.

        Raises:
            LengthwiseError: the engine came to a standstill.
        """
        served = [Served() for _ in asked]
        coming = deque(range(len(asked)))
        leaving = sorted(
            (each.abort_s, place) for place, each in enumerate(asked) if each.abort_s < math.inf
        )
        gone = deque(leaving)
        live, idle_steps = 0, 0
        self._core.model_executor.restart_clock()
        if hasattr(self.scheduler, "begin_anew"):
            self.scheduler.begin_anew(self._clock.now)
        names = {f"{self.steps}-{place}": place for place in range(len(asked))}
        name_of = list(names)
        queue = self._core.batch_queue
        while coming or live or self._core.scheduler.has_requests() or queue:
            # While anything is left to be told, or in flight, the engine does not sleep.
            idle = not (live or queue or self._core.scheduler.has_requests())
            if idle and coming and clients is None:
                self._clock.wait_until(asked[coming[0]].arrival_s)
            now_s = self._clock.now()
            while coming and (
                asked[coming[0]].arrival_s <= now_s if clients is None else live < clients
            ):
                place = coming.popleft()
                served[place].sent_s = asked[place].arrival_s if clients is None else now_s
                self._add(name_of[place], asked[place])
                live += 1
            while gone and gone[0][0] <= now_s:
                place = gone.popleft()[1]
                if served[place].finished is None and not math.isnan(served[place].sent_s):
                    self._core.abort_requests([name_of[place]])
                    served[place].finished = "abort"
                    live -= 1
            outputs, ran = self._core.step_fn()
            self._core.post_step(ran)
            self.steps += 1
            idle_steps = 0 if ran or outputs else idle_steps + 1
            if idle_steps > 1000:
                raise LengthwiseError("the engine stands still: requests wait, none can run")
            now_s = self._clock.now()
            for output in (outputs or {}).values():
                for each in output.outputs:
                    one = served[names[each.request_id]]
                    one.token_s.extend([now_s] * len(each.new_token_ids))
                    if each.finish_reason is not None and one.finished is None:
                        one.finished = str(each.finish_reason)
                        live -= 1
        self._core.scheduler.reset_prefix_cache()
        return served

    def _add(self, name: str, asked: Asked) -> None:
        from vllm.sampling_params import SamplingParams
        from vllm.v1.engine import EngineCoreRequest

        hints: dict[str, object] = dict(asked.hints)
        room = self._core.vllm_config.model_config.max_model_len - len(asked.prompt_ids)
        if asked.ends_itself:
            hints[TRUE_TOKENS] = asked.output_tokens
        parameters = SamplingParams(
            max_tokens=room if asked.ends_itself else asked.output_tokens,
            ignore_eos=not asked.ends_itself,
            extra_args=hints or None,
            detokenize=False,
        )
        parameters.update_from_generation_config({}, _SHAPE["eos_token_id"])
        request, wave = self._core.preprocess_add_request(
            EngineCoreRequest(
                request_id=name,
                prompt_token_ids=list(asked.prompt_ids),
                mm_features=None,
                sampling_params=parameters,
                pooling_params=None,
                arrival_time=self._clock.now(),
                lora_request=None,
                cache_salt=None,
                data_parallel_rank=None,
                priority=asked.priority,
            )
        )
        self._core.add_request(request, wave)


@contextlib.contextmanager
def open_virtual_engine(
    cost: StepCost,
    engine: EngineSettings,
    *,
    longest: int,
    scheduler: str | None = OURS,
    settings: Mapping[str, object] | None = None,
    priority: bool = False,
) -> Iterator[VirtualEngine]:
    """An engine core whose steps take what `cost` says.

    Args:
        cost: of its steps.
        engine: its limits.
        longest: tokens of the longest request, prompt and answer.
        scheduler: class by name; None for the one that vLLM chooses itself.
        settings: of our scheduler; None for fcfs.
        priority: vLLM's `--scheduling-policy priority`.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.core import EngineCore

    from lengthwise.emulate.executor import Executor
    from lengthwise.emulate.settings import EMULATE
    from lengthwise.reference import model_path

    longest = -(-(longest + 1) // engine.block_size) * engine.block_size
    folder = Path(tempfile.mkdtemp(prefix="lengthwise-model-"))
    try:
        shape = {**_SHAPE, "max_position_embeddings": longest}
        (folder / "config.json").write_text(json.dumps(shape), encoding="utf-8")
        ours: dict[str, object] = {
            EMULATE: {
                "cost": asdict(cost),
                "kv_blocks": engine.blocks(longest),
                "clock": "virtual",
                "asynchronous": engine.lag > 0,
            }
        }
        if scheduler == OURS:
            ours["settings"] = dict(settings or {})
        arguments = EngineArgs(
            model=str(folder),
            tokenizer=str(model_path()),
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=longest,
            block_size=engine.block_size,
            max_num_seqs=engine.slots,
            max_num_batched_tokens=engine.token_budget,
            long_prefill_token_threshold=engine.long_prefill_tokens,
            enable_prefix_caching=engine.prefix_caching,
            scheduler_cls=scheduler,
            scheduling_policy="priority" if priority else "fcfs",
            distributed_executor_backend=Executor,
            additional_config={"lengthwise": ours},
            disable_log_stats=True,
            enforce_eager=True,
        )
        config = arguments.create_engine_config()
        config.scheduler_config.watermark = engine.watermark
        core = EngineCore(config, Executor, log_stats=False)
        try:
            yield VirtualEngine(core)
        finally:
            core.shutdown()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
