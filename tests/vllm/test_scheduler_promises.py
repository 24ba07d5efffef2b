"""The scheduler's promises, on vLLM's real scheduler driven at random.

`CheckedEngine` checks after every step that no request is lost, no KV block is lost, overtaking
stays bounded, runnable work runs, nobody makes way for nobody; and at the end that every answer is
whole. Here a hypothesis state machine and a seeded long run look for the sequence of events that
breaks one of them.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: pip install 'lengthwise[cpu]'")

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from bench.support.engine_harness import Ask, build_scheduler
from lengthwise.predict.prediction import Prediction, Prompt
from lengthwise.settings import parse_settings
from lengthwise.vllm import Scheduler
from tests.support.checked_engine import AnyText, CheckedEngine
from tests.support.random_traffic import RandomTraffic

POLICIES = ("srpt", "trail", "ltr", "sjf", "hrrn", "mlfq", "gittins", "tie")
MAX_OVERTAKES = 4
SLOTS = 4
ENCODER = 200  # room for the images of all that may come in at once


class MoodyPredictor:
    """Predicts what it is told to, or fails in the way it is told to."""

    name = "moody"
    mood = "right"

    def predict(self, prompt: Prompt) -> Prediction:
        value = float(str(prompt.hints["lengthwise_true_tokens"]))
        match self.mood:
            case "raises":
                raise RuntimeError("in a bad mood")
            case "nan":
                value = math.nan
            case "inf":
                value = math.inf
            case "negative":
                value = -1.0
        return Prediction(value, value, value, value, value)


class PromisesMachine(RuleBasedStateMachine):
    """Anything that a server may do to its scheduler, in any order."""

    @initialize(
        policy=st.sampled_from(POLICIES),
        preemption=st.sampled_from([None, "greedy"]),
        lag=st.sampled_from([0, 1]),
        num_blocks=st.sampled_from([24, 200]),
        prefix_caching=st.booleans(),
        vllm_policy=st.sampled_from(["fcfs", "priority"]),
        model_runner=st.sampled_from([1, 2]),
        looks_ahead=st.booleans(),
        pausing=st.booleans(),
    )
    def start(
        self,
        policy: str,
        preemption: str | None,
        lag: int,
        num_blocks: int,
        prefix_caching: bool,
        vllm_policy: Any,
        model_runner: Any,
        looks_ahead: bool,
        pausing: bool,
    ) -> None:
        self.looks_ahead = looks_ahead
        self.pausing = pausing
        self.predictor = MoodyPredictor()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(
            "lengthwise.vllm.live_settings.load_predictor", lambda spec, tokenizer: self.predictor
        )
        scheduler = build_scheduler(
            Scheduler,
            num_blocks=num_blocks,
            max_num_seqs=3 * SLOTS if pausing else SLOTS,
            max_num_active_seqs=SLOTS,
            token_budget=48,
            asynchronous=bool(lag),
            prefix_caching=prefix_caching,
            policy=vllm_policy,
            model_runner=model_runner,
            encoder_embeddings=ENCODER,
            lengthwise={"settings": self.settings(policy, preemption)},
        )
        self.engine = CheckedEngine(scheduler, lag, max_overtakes=MAX_OVERTAKES)
        self.names = (f"r{number}" for number in itertools.count())
        self.compiling: list[Any] = []

    def settings(self, policy: str, preemption: str | None) -> dict[str, object]:
        return {
            "policy": policy,
            "predictor": "declared",
            "preemption": preemption,
            "pausing": self.pausing,
            "max_overtakes": MAX_OVERTAKES,
            "memory_growth": float(self.looks_ahead),
            "service_time": self.looks_ahead,
        }

    @rule(
        prefix=st.sampled_from([0, 16, 48]),
        tail=st.integers(1, 60),
        answer=st.integers(1, 60),
        max_tokens=st.sampled_from([None, 1, 20]),
        priority=st.sampled_from([0, 0, 0, 1]),
        count=st.sampled_from([1, 1, 1, 8]),
        image=st.sampled_from([0, 0, 1, 10]),
        delay=st.sampled_from([0, 0, 0, 3]),
    )
    def add(
        self,
        prefix: int,
        tail: int,
        answer: int,
        max_tokens: int | None,
        priority: int,
        count: int,
        image: int,
        delay: int,
    ) -> None:
        for _ in range(count):
            name = next(self.names)
            tokens = min(image, prefix + tail)
            self.engine.add(
                Ask(
                    name,
                    prompt=[5] * prefix + [100 + sum(map(ord, name))] * tail,
                    answer=answer,
                    max_tokens=max_tokens,
                    priority=priority,
                    # Behind another server in front of the engine, it may reach that later.
                    arrival_time=len(self.engine.requests) - delay,
                    hints={"lengthwise_true_tokens": answer},
                    images=((f"of {tokens}", 0, tokens),) if tokens else (),
                )
            )

    @rule(answer=st.integers(1, 20))
    def add_one_that_waits_for_its_grammar(self, answer: int) -> None:
        name = next(self.names)
        hints = {"lengthwise_true_tokens": answer}
        request = self.engine.add(Ask(name, [7] * 9, answer, hints=hints, structured=True))
        self.compiling.append(request)

    @precondition(lambda self: self.compiling)
    @rule(data=st.data())
    def finish_a_grammar(self, data: st.DataObject) -> None:
        request = self.compiling.pop(data.draw(st.integers(0, len(self.compiling) - 1)))
        request.structured_output_request.grammar = AnyText()

    @rule(steps=st.integers(1, 12))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.engine.step()

    @precondition(lambda self: self.engine.live())
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        live = self.engine.live()
        self.engine.abort(data.draw(st.lists(st.sampled_from(live), min_size=1, max_size=3)))
        self.engine.check()

    @rule(preempt=st.booleans())
    def reset_prefix_cache(self, preempt: bool) -> None:
        self.engine.scheduler.reset_prefix_cache(reset_running_requests=preempt)
        self.engine.check()

    @rule(state=st.sampled_from(["UNPAUSED", "UNPAUSED", "PAUSED_NEW", "PAUSED_ALL"]))
    def pause_or_resume(self, state: str) -> None:
        from vllm.v1.core.sched.interface import PauseState

        self.engine.scheduler.set_pause_state(PauseState[state])

    @rule(policy=st.sampled_from(POLICIES), preemption=st.sampled_from([None, "never", "greedy"]))
    def change_settings(self, policy: str, preemption: str | None) -> None:
        # As the watcher of the settings file does.
        self.engine.scheduler._settings.offer(parse_settings(self.settings(policy, preemption)))

    @rule(mood=st.sampled_from(["right", "raises", "nan", "inf", "negative"]))
    def change_the_predictor(self, mood: str) -> None:
        self.predictor.mood = mood

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        self.patch.undo()
        self.pause_or_resume("UNPAUSED")
        for request in self.compiling:
            request.structured_output_request.grammar = AnyText()
        self.engine.drain()
        assert len(self.engine.scheduler._live) == 0


TestPromises = PromisesMachine.TestCase
TestPromises.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize(("lag", "prefix_caching"), [(0, False), (0, True), (1, True)])
@pytest.mark.parametrize("policy", POLICIES)
def test_long_run(policy: str, lag: int, prefix_caching: bool) -> None:
    scheduler = build_scheduler(
        Scheduler,
        num_blocks=30,
        max_num_seqs=6,
        token_budget=64,
        asynchronous=bool(lag),
        prefix_caching=prefix_caching,
        watermark=0.02,
        lengthwise={
            "settings": {
                "policy": policy,
                "predictor": "oracle",
                "preemption": "greedy",
                "max_overtakes": 4,
                "overtake_share": 0.5,
            }
        },
    )
    engine = CheckedEngine(scheduler, lag, max_overtakes=4, overtake_share=0.5)
    traffic = RandomTraffic(seed=2 * lag + prefix_caching)
    for _ in range(600):
        traffic.act([engine])
        engine.step()
    traffic.settle([engine])
    engine.drain()
    reasons = {preemption.reason for preemption in engine.preemptions}
    assert reasons >= {"newcomer", "memory"}
    assert len(scheduler._live) == 0
