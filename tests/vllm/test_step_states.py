"""Whose state each row is: in chunks, after cache hits, after preemptions, in any order."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="torch is not installed")

import torch

from lengthwise.vllm.step_states import StepStates

HIDDEN = 3
LAYERS = 2


def state(request: int, layer: int, position: int) -> Any:
    """What the made-up model computes: different for every request, layer and position."""
    return torch.tensor([float(request), float(layer), float(position)])


class Engine:
    """Plans steps as vLLM does, and makes up the states that its model runner would have."""

    def __init__(self, resumes_as_new: bool = False) -> None:
        self.follower = StepStates()
        self.known: dict[str, int] = {}  # tokens of prompt and answer
        self.prompt: dict[str, int] = {}
        self.computed: dict[str, int] = {}
        self.started: set[str] = set()
        self.resuming: set[str] = set()
        self.finished: set[str] = set()
        self.resumes_as_new = resumes_as_new
        self.prompts: dict[str, Any] = {}
        self.ages: dict[str, list[int]] = {}

    def add(self, name: str, prompt: int, cached: int = 0) -> None:
        self.known[name] = self.prompt[name] = prompt
        self.computed[name] = cached
        self.ages[name] = []

    def preempt(self, name: str, cached: int = 0) -> None:
        self.computed[name] = min(cached, self.known[name] - 1)
        self.resuming.add(name)

    def step(self, tokens: dict[str, int]) -> None:
        """Compute so many tokens of each; a request whose tokens are all computed gets one more."""
        new = [n for n in tokens if n not in self.started or self._is_new_again(n)]
        cached = [n for n in tokens if n not in new]
        scheduled = SimpleNamespace(
            finished_req_ids=set(self.finished),
            scheduled_new_reqs=[
                SimpleNamespace(
                    req_id=n,
                    prompt_len=self.prompt[n],
                    num_computed_tokens=self.computed[n],
                    sampling_params=None,
                )
                for n in new
            ],
            scheduled_cached_reqs=SimpleNamespace(
                req_ids=cached, num_computed_tokens=[self.computed[n] for n in cached]
            ),
            num_scheduled_tokens=tokens,
        )
        self.finished.clear()
        self.started.update(tokens)
        self.resuming -= set(tokens)
        starts, rows = [0], []
        for name, count in tokens.items():
            rows += [(int(name), self.computed[name] + place) for place in range(count)]
            starts.append(len(rows))
        layers = [
            torch.stack([state(request, layer, position) for request, position in rows])
            for layer in range(LAYERS)
        ]
        self.follower.begin(scheduled)
        ids = list(tokens)
        for prompt in self.follower.prompts(ids, starts, layers):
            assert prompt.request_id not in self.prompts
            self.prompts[prompt.request_id] = prompt
        decodes = self.follower.decodes(ids, starts, layers)
        if decodes is not None:
            assert decodes.states.shape == (len(decodes.ages), LAYERS, HIDDEN)
            for place, (name, age) in enumerate(
                zip(decodes.request_ids, decodes.ages, strict=True)
            ):
                self.ages[name].append(age)
                for layer in range(LAYERS):
                    expected = state(int(name), layer, self.prompt[name] + age - 1)
                    assert torch.equal(decodes.states[place, layer], expected)
        for name, count in tokens.items():
            self.computed[name] += count
            if self.computed[name] == self.known[name]:
                self.known[name] += 1

    def finish(self, name: str) -> None:
        self.finished.add(name)
        self.started.discard(name)

    def _is_new_again(self, name: str) -> bool:
        return self.resumes_as_new and name in self.resuming

    def assert_prompt(self, name: str, first: int) -> None:
        """The pool has the positions from `first` to the prompt's end, once each."""
        prompt, count = self.prompts[name], self.prompt[name]
        mean = (first + count - 1) / 2
        for layer in range(LAYERS):
            assert prompt.mean[layer].tolist() == pytest.approx([float(name), layer, mean])
            assert torch.equal(prompt.last[layer], state(int(name), layer, count - 1))
        assert prompt.share == pytest.approx((count - first) / count)


def test_a_prompt_in_chunks_is_one_mean() -> None:
    engine = Engine()
    engine.add("1", 10)
    engine.add("2", 1)
    engine.step({"1": 4, "2": 1})
    assert list(engine.prompts) == ["2"]
    engine.step({"2": 1, "1": 5})
    engine.step({"1": 1, "2": 1})  # the last chunk has one token, as a decode step has
    engine.assert_prompt("1", 0)
    engine.assert_prompt("2", 0)
    engine.step({"1": 1, "2": 1})
    assert engine.ages == {"1": [1], "2": [1, 2, 3]}


def test_a_prefix_found_in_the_cache_has_no_states() -> None:
    engine = Engine()
    engine.add("1", 10, cached=8)
    engine.step({"1": 2})
    engine.assert_prompt("1", 8)


@pytest.mark.parametrize("resumes_as_new", [False, True])
def test_a_resumed_request_is_read_on_and_nothing_twice(resumes_as_new: bool) -> None:
    engine = Engine(resumes_as_new)
    engine.add("1", 6)
    engine.step({"1": 6})
    for _ in range(3):
        engine.step({"1": 1})
    engine.preempt("1")
    engine.step({"1": 5})  # 6 of its prompt and 4 of its answer are to be computed again
    engine.step({"1": 4})
    assert engine.ages["1"] == [1, 2, 3]
    engine.step({"1": 1})
    engine.step({"1": 1})
    assert engine.ages["1"] == [1, 2, 3, 4, 5]
    engine.assert_prompt("1", 0)


def test_a_prefill_that_is_preempted_goes_on_where_it_was() -> None:
    engine = Engine()
    engine.add("1", 9)
    engine.step({"1": 4})
    engine.preempt("1")
    engine.step({"1": 6})
    engine.step({"1": 3})
    engine.assert_prompt("1", 0)


def test_an_id_that_is_used_again_is_another_request() -> None:
    engine = Engine()
    engine.add("1", 4)
    engine.step({"1": 4})
    engine.step({"1": 1})
    engine.finish("1")
    engine.prompts.clear()
    engine.add("1", 4)
    engine.step({"1": 4})
    engine.assert_prompt("1", 0)
    engine.step({"1": 1})
    assert engine.ages["1"] == [1]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_state_is_read_once_whatever_the_schedule(data: st.DataObject) -> None:
    engine = Engine(data.draw(st.booleans()))
    cached: dict[str, int] = {}
    for number in range(data.draw(st.integers(1, 4))):
        name, size = str(number), data.draw(st.integers(1, 12))
        cached[name] = data.draw(st.integers(0, size - 1))
        engine.add(name, size, cached[name])
    for _ in range(data.draw(st.integers(1, 25))):
        names = data.draw(st.lists(st.sampled_from(sorted(engine.known)), min_size=1, unique=True))
        tokens = {
            name: data.draw(st.integers(1, engine.known[name] - engine.computed[name]))
            for name in names
        }
        engine.step(tokens)
        victim = data.draw(st.sampled_from([None, *names]))
        if victim is not None:
            # What is in the cache was computed once.
            engine.preempt(victim, data.draw(st.integers(0, engine.computed[victim])))
    for name, prompt in engine.prompts.items():
        assert prompt.share <= 1.0
        if cached[name] == 0:
            engine.assert_prompt(name, 0)
    for name, ages in engine.ages.items():
        assert ages == sorted(set(ages)), name
