"""What the scheduler records of its requests, and that it is a trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: pip install 'lengthwise[cpu]'")

from engine_harness import Ask, SteppedEngine, build_scheduler
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
    scheduler._recorder.close()

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
    assert [rejection.row for rejection in trace.rejected] == [2]
