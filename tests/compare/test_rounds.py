"""Choosing requests, reading the engine's log, and what is said of a round."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lengthwise.compare.client import Answer, Replay, ReplayRequest
from lengthwise.compare.engine_log import EngineLog, read_engine_log
from lengthwise.compare.rounds import choose_requests, describe_round, records_of
from lengthwise.compare.session import Observed
from lengthwise.compare.specs import Burst, Capacity, Load
from lengthwise.errors import InputError, LengthwiseError
from lengthwise.measure.results import RoundInfo
from lengthwise.settings import OVERTAKE_SHARE, Settings, parse_settings
from lengthwise.workload.dataset import Dataset
from lengthwise.workload.records import Rejection


class Characters:
    """A tokenizer with one token per character."""

    def encode_conversations(
        self, conversations: Sequence[Sequence[Mapping[str, Any]]]
    ) -> list[list[int]]:
        return [[ord(each) for each in messages[-1]["content"]] for messages in conversations]


def dataset(prompts: list[str], lengths: list[int]) -> Dataset:
    return Dataset("t", prompts, np.array(lengths), None, np.arange(len(prompts)) + 1, rejected=[])


def test_requests_are_chosen_by_seed_and_numbered_from_zero() -> None:
    table = dataset([f"p{row}" for row in range(2000)], list(range(1, 2001)))

    def choose(seed: int) -> list[ReplayRequest]:
        return choose_requests(table, Characters(), count=900, max_model_len=3000, seed=seed)[0]

    assert choose(1) == choose(1)
    assert choose(1) != choose(2)
    assert [each.number for each in choose(1)] == list(range(900))
    assert len({each.output_tokens for each in choose(1)}) == 900


def test_what_does_not_fit_is_left_out_and_said() -> None:
    table = dataset(["fits", "much too long", "fits", "empty"], [6, 3, 7, 0])
    chosen, notes = choose_requests(table, Characters(), count=9, max_model_len=10, seed=0)
    assert [(len(each.prompt_ids), each.output_tokens) for each in chosen] == [(4, 6)]
    assert any(note.startswith("2 of 4 rows were left out: longer") for note in notes)
    assert any("an answer of 0 tokens" in note for note in notes)
    assert "9 requests were asked for, 1 rows fit" in notes
    malformed = replace(table, rejected=[Rejection(5, "no prompt")])
    _, notes = choose_requests(malformed, Characters(), count=9, max_model_len=10, seed=0)
    assert notes[-1] == "1 malformed rows were left out"
    with pytest.raises(InputError, match="none of the 4 rows"):
        choose_requests(table, Characters(), count=9, max_model_len=4, seed=0)


def log(**columns: list[float]) -> EngineLog:
    names = ("t", "duration_s", "prefill_tokens", "decode_tokens", "running", "waiting")
    steps = len(columns["running"])
    return EngineLog(
        {name: np.array(columns.get(name, [0.0] * steps), dtype=float) for name in names}, {}
    )


def test_capacity_is_that_of_the_workload_whatever_the_order() -> None:
    generator = np.random.default_rng(0)
    prefill = generator.integers(0, 50, 400) * (generator.random(400) < 0.3)
    decode = generator.integers(1, 5, 400)
    seconds = 0.01 + 0.001 * prefill + 0.002 * decode
    seconds[7] = 9.0  # the machine paused
    steps = log(
        running=decode.tolist(),
        duration_s=[*seconds[:-1].tolist(), math.nan],
        prefill_tokens=prefill.tolist(),
        decode_tokens=decode.tolist(),
    ).steps
    requests = {number: {"prompt_tokens": 20, "output_tokens": 30} for number in range(5)}
    # For each request 20 · 1 ms of prefill and 30 shares of a step of 10 ms among 4, and 2 ms.
    expected = (20 + 30) / (20 * 0.001 + 30 * (0.01 / 4 + 0.002))
    assert EngineLog(steps, requests).capacity() == pytest.approx(expected)
    assert log(running=[]).capacity() is None
    assert log(running=[4], duration_s=[math.nan]).capacity() is None


def test_a_log_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    step = {"t": 1.0, "duration_s": None, "prefill_tokens": 3, "decode_tokens": 0, "running": 1}
    (tmp_path / "steps.jsonl").write_text(
        '{"schema": "lengthwise.steps/1"}\n' + json.dumps(step) + '\n{"t": 2'
    )
    (tmp_path / "requests.jsonl").write_text(
        '{"schema": "lengthwise.requests/1"}\n{"id": "7", "queue_s": 0.5}\n{"id": "cmpl-x"}\n'
    )
    found = read_engine_log(tmp_path, finished=2)
    assert found.steps["prefill_tokens"].tolist() == [3.0]
    assert math.isnan(found.steps["duration_s"][0])
    assert found.requests == {7: {"id": "7", "queue_s": 0.5}}


def answer(number: int, sent_s: float, tokens: int, error: str | None = None) -> Answer:
    return Answer(
        request=number,
        scheduled_s=sent_s,
        sent_s=sent_s,
        first_token_s=sent_s + 0.1,
        finish_s=sent_s + 1.0,
        token_times=array("f", [0.1] * tokens),
        prompt_tokens=2,
        output_tokens=tokens,
        finish_reason="length",
        error=error,
    )


REQUESTS = [ReplayRequest(0, [1, 2], 8), ReplayRequest(1, [1, 2], 28)]


def observed(*answers: Answer) -> Observed:
    steps = log(running=[2], duration_s=[0.4], decode_tokens=[2]).steps
    lengths = {"prompt_tokens": 0, "output_tokens": 20}
    known = {
        0: {**lengths, "queue_s": 0.25, "preemptions": 1, "overtaken": 3, "expected_tokens": None}
    }
    return Observed(Replay(0.0, list(answers)), EngineLog(steps, known), {"preemptions": 1})


def describe(load: Load, seen: Observed) -> RoundInfo:
    settings = Settings(policy="srpt", predictor="declared", record="somewhere")
    return describe_round(3, "srpt", settings, load, 1, datetime.now(UTC), seen, REQUESTS)


def test_the_load_really_offered_comes_from_what_the_engine_did() -> None:
    seen = observed(answer(0, 0.5, 8), answer(1, 4.0, 28))
    # 40 tokens of work within 4 s, for an engine that does 5 a second.
    assert describe(Capacity(1.2), seen).offered_load == pytest.approx(2.0)
    assert describe(Burst(), seen).offered_load is None
    assert describe(Burst(), seen).capacity_tokens_per_s == pytest.approx(5.0)


def test_the_settings_of_a_round_are_kept_but_not_where_it_was_recorded() -> None:
    info = describe(Burst(), observed(answer(0, 0.5, 8)))
    kept = parse_settings(RoundInfo.from_json(json.loads(json.dumps(info.to_json()))).settings)
    assert kept == Settings(policy="srpt", predictor="declared")


def test_the_bound_that_auto_came_to_is_kept() -> None:
    """Another version may choose otherwise; a simulation of these records must not."""
    seen = observed(answer(0, 0.5, 8))
    limited = replace(seen, engine=replace(seen.engine, limits={"slots": 16}))
    settings = Settings(policy="srpt", predictor="declared", max_overtakes="auto")
    info = describe_round(
        3, "srpt:max_overtakes=auto", settings, Burst(), 1, datetime.now(UTC), limited, REQUESTS
    )
    kept = parse_settings(RoundInfo.from_json(json.loads(json.dumps(info.to_json()))).settings)
    assert (kept.max_overtakes, kept.overtake_share) == (16, OVERTAKE_SHARE)


def test_records_join_the_client_and_the_engine() -> None:
    seen = observed(answer(0, 0.5, 8), answer(1, 4.0, 3, error="cut off"))
    info = describe(Burst(), seen)
    assert info.flags == ("an error: cut off",)
    first, second = records_of(info, seen)
    assert (first.queue_s, first.preemptions, first.overtaken) == (0.25, 1, 3)
    assert math.isnan(first.expected_tokens)
    assert (first.round, first.policy, first.load) == (3, "srpt", "burst")
    assert len(first.token_times) == 8
    assert second.error == "cut off"
    assert math.isnan(second.queue_s)


def test_a_round_without_any_answer_is_a_failure() -> None:
    with pytest.raises(LengthwiseError, match="no request was answered: refused"):
        describe(Burst(), observed(answer(0, 0.0, 0, error="refused")))
