"""How long emulated answers are, what a predictor can learn of them, and the model's folder."""

from __future__ import annotations

import json
from abc import abstractmethod
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("vllm", reason="needs vLLM: pip install 'lengthwise[cpu]'")

from lengthwise.emulate import executor
from lengthwise.emulate.executor import answer_tokens, drawn_tokens, prompt_effect
from lengthwise.emulate.model_folder import cached_model_folder, model_folder
from lengthwise.emulate.pace import emulation_settings
from lengthwise.errors import InputError
from lengthwise.predict.evaluate import evaluate
from lengthwise.predict.load import TRUE_TOKENS
from lengthwise.predict.tokenizer import load_tokenizer
from lengthwise.predict.train import train
from lengthwise.reference.prompts import generate
from lengthwise.simulate.presets import parse_preset
from lengthwise.vllm.compat.workers import check_executor
from lengthwise.workload.dataset import Dataset


def sampling(**changed: Any) -> Any:
    values = {"extra_args": None, "ignore_eos": False, "seed": None, "min_tokens": 0}
    return SimpleNamespace(**{**values, "max_tokens": 500, **changed})


def test_a_given_length_goes_first_then_max_tokens_then_a_drawn_one() -> None:
    prompt = [5, 6, 7]
    given = {TRUE_TOKENS: 17}
    assert answer_tokens(prompt, sampling(extra_args=given)) == 17
    assert answer_tokens(prompt, sampling(extra_args=given, ignore_eos=True)) == 17
    assert answer_tokens(prompt, sampling(ignore_eos=True)) == 500
    assert answer_tokens(prompt, sampling()) == drawn_tokens(prompt)
    assert answer_tokens(prompt, sampling(seed=3)) == drawn_tokens(prompt, 3)
    assert answer_tokens(prompt, sampling(extra_args=given, min_tokens=30)) == 31


@pytest.mark.parametrize("value", ["12", 12.2, "12.0"])
def test_a_length_may_come_as_text(value: object) -> None:
    assert answer_tokens([1], sampling(extra_args={TRUE_TOKENS: value})) == 12


@pytest.mark.parametrize("value", ["many", None, [3], float("nan"), "inf", 10**400])
def test_what_is_no_length_does_not_count(value: object) -> None:
    drawn = answer_tokens([1], sampling())
    assert answer_tokens([1], sampling(extra_args={TRUE_TOKENS: value})) == drawn


@given(
    st.lists(st.integers(0, 200_000), max_size=60),
    st.none() | st.integers(-(2**63), 2**64 - 1),
)
def test_a_drawn_length_is_always_the_same(prompt: list[int], seed: int | None) -> None:
    length = drawn_tokens(prompt, seed)
    assert length >= 1
    assert drawn_tokens(list(prompt), seed) == length


def test_drawn_lengths_are_spread_as_promised() -> None:
    generator = np.random.default_rng(0)
    prompts = generator.integers(0, 50_000, size=(4000, 40)).tolist()
    logarithms = np.log([drawn_tokens(prompt) for prompt in prompts])
    effects = np.array([prompt_effect(prompt) for prompt in prompts])
    assert np.exp(np.median(logarithms)) == pytest.approx(executor.MEDIAN_TOKENS, rel=0.1)
    assert logarithms.std() == pytest.approx(executor.SIGMA, rel=0.1)
    share = np.corrcoef(effects, logarithms)[0, 1] ** 2
    assert share == pytest.approx(executor.PROMPT_SHARE, abs=0.03)


def test_prompts_tell_something_of_their_answers() -> None:
    tokenizer = load_tokenizer("reference")
    prompts = [prompt.text for prompt in generate(1500, seed=1)]
    lengths = [drawn_tokens(ids) for ids in tokenizer.encode_chat_many(prompts)]

    def table(rows: slice) -> Dataset:
        some = prompts[rows]
        numbers = np.arange(len(some)) + 1
        return Dataset("t", some, np.array(lengths[rows]), None, numbers, rejected=[])

    result = evaluate(train(table(slice(0, 1100)), tokenizer), table(slice(1100, None)), tokenizer)
    assert result.tau is not None
    assert result.tau > 0.3


def test_the_folder_has_the_shape_of_the_model_and_our_tokenizer(tmp_path: Path) -> None:
    shape = parse_preset("a100:llama-3-8b").model
    folder = model_folder(shape, tmp_path / "model")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert model_folder(shape, folder) == folder  # again, over what is there
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    config = json.loads(before["config.json"])
    assert config["num_hidden_layers"] == 32
    assert config["num_key_value_heads"] == 8
    assert config["max_position_embeddings"] == 8192
    assert config["vocab_size"] == 128256
    built_in, copied = load_tokenizer("reference"), load_tokenizer(str(folder))
    assert copied.fingerprint == built_in.fingerprint  # predictors for one fit the other
    assert copied.encode_chat("Hello") == built_in.encode_chat("Hello")


def test_the_cache_is_where_the_user_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    preset = parse_preset("2xa100:llama-3-8b")
    assert cached_model_folder(preset) == tmp_path / "lengthwise/emulated/llama-3-8b"


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        model_folder(parse_preset("a100:llama-3-8b").model, tmp_path / "file" / "model")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a100", "name GPU and model as in a100:llama-3-8b"),
        ("a100:gpt-9", "unknown model 'gpt-9'.*llama-3-8b"),
        ("abacus:llama-3-8b", "unknown GPU 'abacus'.*a100"),
        ("a10g:llama-3-70b", "does not fit"),
    ],
)
def test_what_cannot_be_emulated_is_one_line(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_preset(name)


def test_a_preset_has_the_defaults_of_its_gpu() -> None:
    limits = {
        gpu: (engine.slots, engine.token_budget, engine.block_size)
        for gpu in ("a100", "2xa100", "h100", "l40s")
        for engine in [parse_preset(f"{gpu}:llama-3-8b").engine]
    }
    usual, large = (256, 2048, 16), (1024, 8192, 16)
    assert limits == {"a100": usual, "2xa100": usual, "h100": large, "l40s": usual}


def test_the_executor_is_told_what_to_emulate() -> None:
    told = emulation_settings({"preset": "a100:llama-3-8b"}, block_size=32)
    preset = parse_preset("a100:llama-3-8b")
    assert told.cost == preset.cost
    assert preset.engine.kv_blocks is not None
    assert told.kv_tokens == preset.engine.kv_blocks * 16
    assert told.asynchronous
    first, second = (told.clock.now() for _ in range(2))
    assert second >= first > 0.0


COSTS = {"step_s": 1e-3, "prefill_s": 0.0, "decode_s": 0.0}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "what is emulated.*additional-config"),
        ({"clock": "real"}, "what is emulated"),
        ({"preset": "a100:llama-3-8b", "speed": 2}, "unknown key of the emulation 'speed'"),
        ({"preset": "a100:llama-3-8b", "clock": "sun"}, "unknown clock 'sun'.*real, virtual"),
        ({"preset": "a100:llama-3-8b", "clock": []}, "unknown clock"),
        ({"cost": {"step": 1}, "kv_blocks": 10}, "not a step cost"),
        ({"cost": COSTS}, "needs kv_blocks"),
        ({"cost": COSTS, "kv_blocks": "many"}, "kv_blocks must be a whole number"),
        ({"cost": COSTS, "kv_blocks": float("nan")}, "kv_blocks must be a whole number"),
        ({"cost": COSTS | {"step_s": "x"}, "kv_blocks": 10}, "step_s must be a number"),
    ],
)
def test_a_wrong_configuration_is_one_line(config: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        emulation_settings(config, block_size=16)


def test_another_interface_of_executors_is_one_line() -> None:
    from vllm.v1.executor.abstract import Executor

    check_executor(Executor)

    class Newer(Executor):  # type: ignore[misc]
        @abstractmethod
        def execute_everything(self) -> None: ...

    with pytest.raises(InputError, match=r"a new execute_everything.*cannot be emulated"):
        check_executor(Newer)
    with pytest.raises(InputError, match=r"no collective_rpc, .*cannot be emulated"):
        check_executor(type("Older", (), {"execute_model": None}))


def test_words_of_answers_are_many() -> None:
    tokens = load_tokenizer("reference").encode_words(executor.TEXT)
    assert len(set(tokens)) > 40
    assert all(one != other for one, other in pairwise(tokens))
