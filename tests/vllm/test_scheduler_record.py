"""What the scheduler records of its requests, and that it is a trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: pip install 'lengthwise[cpu]'")

from bench.support.engine_harness import Ask, SteppedEngine, build_scheduler
from lengthwise.simulate.engine import EngineSettings
from lengthwise.vllm import Scheduler
from lengthwise.workload.trace import load_trace

PREFIX = list(range(2, 34))  # two blocks of 16


def test_requests_are_recorded_with_their_arrival_and_what_was_cached(tmp_path: Path) -> None:
    settings = {"policy": "fcfs", "record": str(tmp_path)}
    scheduler = build_scheduler(Scheduler, max_num_seqs=2, lengthwise={"settings": settings})
    engine = SteppedEngine(scheduler)
    engine.add(Ask("first", [*PREFIX, 40], answer=30))
    engine.step()
    for name, answer in (("second", 20), ("third", 3), ("gone", 9)):
        engine.add(Ask(name, [*PREFIX, 50, 51], answer))
    engine.abort(["gone"])
    engine.run()
    scheduler._active.recorder.close()

    lines = (tmp_path / "requests.jsonl").read_text().splitlines()[1:]
    requests: dict[str, dict[str, Any]] = {line["id"]: line for line in map(json.loads, lines)}
    assert list(requests) == ["gone", "second", "third", "first"]
    arrivals = [requests[name]["arrival_s"] for name in ("first", "second", "third", "gone")]
    assert arrivals == sorted(arrivals)
    steps = (tmp_path / "steps.jsonl").read_text().splitlines()[1:]
    assert arrivals[0] <= json.loads(steps[0])["t"] <= arrivals[1]
    cached = {name: line["cached_tokens"] for name, line in requests.items()}
    assert cached == {"first": 0, "second": 32, "third": 32, "gone": None}

    trace = load_trace(tmp_path)
    assert trace.layout == "lengthwise log"
    assert trace.prompt_tokens.tolist() == [33, 34, 34]
    assert trace.output_tokens.tolist() == [30, 20, 3]
    assert trace.left_out == {"it ended before its first token": 1}


def test_steps_say_what_they_did_and_within_which_limits(tmp_path: Path) -> None:
    settings = {"policy": "srpt", "predictor": "declared", "record": str(tmp_path)}
    scheduler = build_scheduler(
        Scheduler,
        max_num_seqs=2,
        token_budget=24,
        num_blocks=101,
        watermark=0.02,
        lengthwise={"settings": settings},
    )
    engine = SteppedEngine(scheduler)
    engine.add(Ask("long", list(range(2, 42)), answer=4))  # 40 tokens: two steps of prefill
    engine.step()
    engine.step()
    engine.add(Ask("short", [7], answer=2))
    engine.run()
    scheduler._active.recorder.close()

    header, *steps = map(json.loads, (tmp_path / "steps.jsonl").read_text().splitlines())
    assert EngineSettings(**header["engine"]) == EngineSettings(
        slots=2, max_seqs=2, token_budget=24, kv_blocks=100, block_size=16, watermark=0.02
    )
    names = ("prefill_tokens", "decode_tokens", "requests", "kv_tokens", "attention_tokens")
    assert [tuple(step[name] for name in names) for step in steps] == [
        (24, 0, 1, 24, 24 * 25 // 2),
        (16, 0, 1, 40, sum(range(25, 41))),
        (1, 1, 2, 41 + 1, 1),  # a prompt of one token is prefilled all the same
        (0, 2, 2, 42 + 2, 0),
        (0, 1, 1, 43, 0),
    ]
    lines = (tmp_path / "requests.jsonl").read_text().splitlines()[1:]
    without = {name: json.loads(lines[0])[name] for name in ("score", "low_tokens", "high_tokens")}
    assert without == {"score": None, "low_tokens": None, "high_tokens": None}


def test_a_prediction_is_recorded_whole(tmp_path: Path) -> None:
    settings = {"policy": "srpt", "predictor": "oracle", "record": str(tmp_path)}
    scheduler = build_scheduler(Scheduler, lengthwise={"settings": settings})
    engine = SteppedEngine(scheduler)
    engine.add(Ask("a", [2, 3], answer=4, hints={"lengthwise_true_tokens": 4}))
    engine.run()
    scheduler._active.recorder.close()
    (line,) = (tmp_path / "requests.jsonl").read_text().splitlines()[1:]
    names = ("score", "expected_tokens", "low_tokens", "median_tokens", "high_tokens")
    assert [json.loads(line)[name] for name in names] == [4.0] * 5
