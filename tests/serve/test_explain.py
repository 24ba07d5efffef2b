"""`lengthwise explain`: what the journal of a real scheduler says of its requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: pip install 'lengthwise[cpu]'")

from bench.support.engine_harness import Ask, build_scheduler
from lengthwise.counters import Counters
from lengthwise.errors import InputError
from lengthwise.predict.load import TRUE_TOKENS
from lengthwise.predict.prediction import REQUEST_ID
from lengthwise.serve.journal_reader import explain, in_words
from lengthwise.settings import parse_settings
from lengthwise.telemetry.journal import SEGMENTS, Journal
from lengthwise.vllm import Scheduler
from tests.support.checked_engine import CheckedEngine


def started(folder: Path, **settings: Any) -> CheckedEngine:
    given = {"policy": "oracle", "journal": str(folder), "max_overtakes": None, **settings}
    return CheckedEngine(build_scheduler(Scheduler, max_num_seqs=1, lengthwise={"settings": given}))


def ask(name: str, answer: int, **more: Any) -> Ask:
    return Ask(name, [7] * 8, answer, hints={TRUE_TOKENS: answer, **more})


def test_who_overtook_a_request_and_what_was_predicted(tmp_path: Path) -> None:
    engine = started(tmp_path, preemption="never")
    engine.add(ask("running", 20))
    engine.step()
    engine.add(ask("long-0-ab12", 90, **{REQUEST_ID: "mine"}))
    for place in range(7):
        engine.add(ask(f"short-{place}", 3))
    engine.drain()
    engine.scheduler.shutdown()
    for name in ("long-0-ab12", "long", "mine"):  # vLLM's, that of the response, the client's
        told = explain(tmp_path, name)
        assert told.request == "long-0-ab12"
    assert [each.request for each in told.overtaken_by] == [f"short-{n}" for n in range(7)]
    assert [each.rank for each in told.overtaken_by] == [3.0] * 7
    assert (told.rank, told.tier, told.expected_tokens) == (90.0, "ordinary", 90.0)
    assert (told.ahead, told.prompt_tokens, told.finished) == (0, 8, "stop")
    assert told.output_tokens == 90
    assert 0.0 < told.waited_s == told.runs_s[0] < told.total_s
    lines = in_words(told)
    assert "7 later arrivals" in lines[2]
    assert "and 2 more" in lines[8]
    assert explain(tmp_path, "short-3").overtaken_by == []


def test_who_was_preempted_and_for_whom(tmp_path: Path) -> None:
    engine = started(tmp_path, preemption="greedy")
    engine.add(ask("long", 50))
    for _ in range(4):
        engine.step()
    engine.add(ask("short", 3))
    engine.drain()
    engine.scheduler.shutdown()
    told = explain(tmp_path, "long")
    ((preempted,), runs) = (told.preempted, told.runs_s)
    assert (preempted.why, preempted.instead) == ("policy", ["short"])
    assert preempted.output_tokens > 0
    assert runs[0] < preempted.at_s < runs[1]
    assert any("for a waiting request: short ran" in line for line in in_words(told))


def test_who_was_paused_and_when_it_went_on(tmp_path: Path) -> None:
    settings = {"policy": "oracle", "pausing": True, "journal": str(tmp_path)}
    limits = {"max_num_seqs": 8, "max_num_active_seqs": 1}
    engine = CheckedEngine(build_scheduler(Scheduler, lengthwise={"settings": settings}, **limits))
    engine.add(ask("cmpl-long-0-ab12", 60))
    for _ in range(4):
        engine.step()
    engine.add(ask("cmpl-short-0-cd34", 3))
    engine.drain()
    engine.scheduler.shutdown()
    told = explain(tmp_path, "long")  # as the client said it in X-Request-Id
    (paused,) = told.paused
    assert paused.output_tokens > 0
    assert told.runs_s[0] < paused.at_s < paused.until_s < told.total_s
    assert paused.instead == ["cmpl-short-0-cd34"]
    assert not paused.freed
    assert told.paused_s == told.longest_stall_s == paused.until_s - paused.at_s
    assert told.looked_s is None
    assert told.preempted == []
    assert any(line.startswith("paused at") and "went on" in line for line in in_words(told))
    assert any("cmpl-short-0-cd34 ran" in line for line in in_words(told))
    assert explain(tmp_path, "short").paused == []


def test_without_a_journal_no_paused_request_is_held_on_to(tmp_path: Path) -> None:
    settings = {"policy": "oracle", "pausing": True, "journal": str(tmp_path)}
    limits = {"max_num_seqs": 8, "max_num_active_seqs": 1}
    engine = CheckedEngine(build_scheduler(Scheduler, lengthwise={"settings": settings}, **limits))
    engine.add(ask("long", 60))
    for _ in range(4):
        engine.step()
    engine.add(ask("short", 9))
    engine.step()
    engine.step()
    assert list(engine.scheduler._observers._notes._paused) == ["long"]
    engine.scheduler.apply_now(parse_settings({**settings, "journal": None}))
    assert engine.scheduler._observers._notes is None
    engine.drain()


def test_a_request_that_still_waits(tmp_path: Path) -> None:
    engine = started(tmp_path, preemption="never")
    engine.scheduler.begin_anew(iter(float(n) for n in range(10_000)).__next__)  # 1 s a look
    engine.add(ask("running", 40))
    engine.step()
    engine.add(ask("waits", 30))
    for _ in range(5):
        engine.step()
    engine.scheduler._active.journal.close()
    told = explain(tmp_path, "waits")
    assert told.runs_s == []
    assert told.finished is None
    assert told.expected_tokens == 30.0
    assert told.waited_s > 0.0
    assert any("has not run" in line for line in in_words(told))
    engine.drain()


def test_in_the_order_of_the_queue_there_are_no_ranks(tmp_path: Path) -> None:
    engine = started(tmp_path, policy="fcfs")
    engine.add(ask("a", 5))
    engine.add(ask("b", 3))
    engine.abort(["b"])
    engine.drain()
    engine.scheduler.shutdown()
    assert explain(tmp_path, "a").rank is None
    gone = explain(tmp_path, "b")
    assert (gone.finished, gone.runs_s) == ("abort", [])
    assert any("without running" in line for line in in_words(gone))


def test_the_journal_is_bounded_and_says_how_far_it_goes_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 0, Counters(), most_bytes=20_000)
    facts = {"t": 0.0, "event": "arrived", "id": "", "priority": 0, "prompt_tokens": 1}
    for batch in range(40):
        numbers = range(100 * batch, 100 * batch + 100)
        lines = [{**facts, "request": f"r{n}", "index": n, "waiting": 0} for n in numbers]
        journal._write(lines)
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2 * 20_000
    journal.close()
    assert explain(tmp_path, "r3999").prompt_tokens == 1
    with pytest.raises(InputError, match="the oldest that is there is r"):
        explain(tmp_path, "r0")


def test_what_is_no_journal_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no journal"):
        explain(tmp_path, "a")
    (tmp_path / SEGMENTS[1]).write_text('{"schema": "lengthwise.journal/9"}\n')
    with pytest.raises(InputError, match="another version"):
        explain(tmp_path, "a")
    header = json.dumps({"schema": "lengthwise.journal/1", "engine": 0})
    (tmp_path / SEGMENTS[1]).write_text(f"{header}\n" + '{"t": 1.0, "event": "arri')
    with pytest.raises(InputError, match="nothing has come yet"):
        explain(tmp_path, "a")
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError, match="cannot write"):
        Journal(file / "below", 0, Counters())


def test_a_line_that_cannot_be_encoded_is_counted(tmp_path: Path) -> None:
    counters = Counters()
    journal = Journal(tmp_path, 0, counters)
    journal.put(t=0.0, event="arrived", request=object())
    journal.close()
    assert counters.record_lost == 1


def test_each_engine_has_its_own(tmp_path: Path) -> None:
    for engine in (0, 1):
        journal = Journal(tmp_path, engine, Counters())
        facts = {"index": 0, "priority": 0, "prompt_tokens": 1, "waiting": 0}
        journal.put(t=0.0, event="arrived", request=f"of-{engine}", id="", **facts)
        journal.close()
    assert [explain(tmp_path, f"of-{engine}").engine for engine in (0, 1)] == [0, 1]
