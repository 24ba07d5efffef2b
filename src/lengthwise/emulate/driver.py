"""vLLM's engine core in this process, in virtual time: arrivals in, times of tokens out.

The engine core steps as it does in a server: it takes up what has arrived, plans, lets the executor
run, and hands out tokens. Nothing waits, so it takes as long as vLLM's own code does.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from lengthwise.emulate.asked import Asked, Coming, Served
from lengthwise.emulate.virtual_config import END_OF_ANSWER, OURS, virtual_config
from lengthwise.errors import LengthwiseError
from lengthwise.predict.baselines import TRUE_TOKENS
from lengthwise.simulate.engine_settings import EngineSettings
from lengthwise.simulate.step_cost import StepCost

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
        self._core.scheduler.reset_prefix_cache()
        self._pace.restart(durations)
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
