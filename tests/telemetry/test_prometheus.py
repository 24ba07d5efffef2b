"""The scheduler's numbers on vLLM's own /metrics, from one file for each engine."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, make_asgi_app
from prometheus_client import Counter as PrometheusCounter
from prometheus_client.parser import text_string_to_metric_families

from lengthwise.counters import BOUNDS, HELP, Counters, QueueTimes
from lengthwise.telemetry.prometheus import (
    ENGINES,
    EngineFile,
    EngineState,
    Metrics,
    alive,
    engines_folder,
    read_engines,
    started,
)
from tests.support.waiting import wait_until


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ENGINES, str(tmp_path))
    return tmp_path


def state(engine: int = 0, finished: int = 7) -> EngineState:
    times = QueueTimes()
    times.observe(0.02, 0, 100.0)
    times.observe(2000.0, -5, None)
    counters = Counters(finished=finished).snapshot()
    return EngineState(
        engine, "llama", "srpt", counters, {"waiting_requests": 3.0}, times.snapshot()
    )


def write(folder: Path, name: str, **changed: Any) -> None:
    said = {"schema": "lengthwise.engine/1", "pid": os.getpid(), "started": started(os.getpid())}
    said |= {"time": 0.0, **vars(state(changed.get("engine", 0)))}
    (folder / f"engine-{name}.json").write_text(json.dumps({**said, **changed}))


def vllms_page() -> Any:
    """The page that vLLM serves, made as vLLM makes it."""
    registry = CollectorRegistry()
    PrometheusCounter("vllm:requests", "Requests", registry=registry).inc(5)
    return make_asgi_app(registry=registry)


def get(
    app: Any, path: str = "/metrics", query: str = "", method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Ask an ASGI application."""
    sent: list[Any] = []
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()],
    }

    async def receive() -> Any:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    found = {k.decode().lower(): v.decode() for k, v in sent[0]["headers"]}
    return sent[0]["status"], found, b"".join(each["body"] for each in sent[1:])


def samples(page: bytes) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def test_every_counter_of_every_engine_is_there_once(folder: Path) -> None:
    write(folder, "0-1")
    write(folder, "1-2", engine=1, counters=Counters(finished=30).snapshot())
    status, headers, page = get(Metrics(vllms_page()))
    assert status == 200
    assert int(headers["content-length"]) == len(page)
    found = samples(page)
    assert found["vllm:requests_total"] == [({}, 5.0)]
    for name in HELP:
        labels = [labels for labels, _ in found[f"lengthwise_{name}_total"]]
        assert labels == [{"engine": e, "model_name": "llama"} for e in ("0", "1")], name
    assert sum(value for _, value in found["lengthwise_finished_total"]) == 37.0
    assert found["lengthwise_policy_info"][0][0]["policy"] == "srpt"
    assert "lengthwise_engine_files_left_out" not in found
    buckets = [
        (labels["le"], value)
        for labels, value in found["lengthwise_queue_time_seconds_bucket"]
        if (labels["engine"], labels["class"], labels["predicted_tokens"]) == ("0", "0", "64-256")
    ]
    assert buckets == [("0.01", 0.0), *((str(b), 1.0) for b in BOUNDS[1:]), ("+Inf", 1.0)]


@pytest.mark.parametrize(
    "headers",
    [
        {"accept": "application/openmetrics-text;version=1.0.0", "accept_encoding": "gzip"},
        {"Accept_Encoding": "gzip, br"},
    ],
)
def test_what_a_client_would_rather_have_does_not_break_the_page(
    folder: Path, headers: dict[str, str]
) -> None:
    write(folder, "0-1")
    _, found, page = get(Metrics(vllms_page()), **headers)
    assert "content-encoding" not in found
    assert {"vllm:requests_total", "lengthwise_finished_total"} <= samples(page).keys()


def test_names_that_are_asked_for_are_all_that_comes(folder: Path) -> None:
    write(folder, "0-1")
    query = "name[]=lengthwise_finished_total&name[]=vllm:requests_total"
    _, _, page = get(Metrics(vllms_page()), query=query)
    assert samples(page).keys() == {"vllm:requests_total", "lengthwise_finished_total"}


def test_all_else_passes_untouched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, "0-1")
    plain = get(vllms_page(), accept_encoding="gzip")
    assert get(Metrics(vllms_page()), path="/v1/models", accept_encoding="gzip")[0] == 200
    assert get(Metrics(vllms_page()), method="HEAD", accept_encoding="gzip")[1] == plain[1]
    monkeypatch.delenv(ENGINES)
    _, headers, page = get(Metrics(vllms_page()), accept_encoding="gzip")
    assert headers == plain[1]
    assert b"lengthwise" not in gzip.decompress(page)


def test_a_page_that_fails_is_passed_on(folder: Path) -> None:
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await send({"type": "http.response.body", "body": b"busy"})

    assert get(Metrics(failing))[::2] == (503, b"busy")


def test_files_that_cannot_be_believed_are_left_out_and_said(folder: Path) -> None:
    write(folder, "0-1")
    write(folder, "0-2", started=(started(os.getpid()) or 1) - 1)  # its number went to another
    write(folder, "1-3", engine=1, pid=2**22 + 1)
    write(folder, "1-4", engine=1, schema="lengthwise.engine/2")
    (folder / "engine-2-5.json").write_text('{"schema": "lengthwise.eng')
    (folder / "engine-3-6.json").write_text("[]")
    (folder / "engine-4-7.json").write_bytes(b" " * (2 << 20))
    (folder / "engine-5-8.json").mkdir()
    found = samples(get(Metrics(vllms_page()))[2])
    assert [labels["engine"] for labels, _ in found["lengthwise_finished_total"]] == ["0"]
    left_out = {
        labels["reason"]: value for labels, value in found["lengthwise_engine_files_left_out"]
    }
    assert left_out == {"dead": 2.0, "torn": 4.0, "version": 1.0}


def test_of_two_engines_with_one_number_the_younger_counts(folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as younger:
        time.sleep(0.05)
        write(folder, "0-1", pid=younger.pid, started=started(younger.pid), model_name="younger")
        write(folder, "0-2")
        engines, left_out = read_engines(folder)
        younger.communicate(b"\n")
    assert [each.model_name for each in engines] == ["younger"]
    assert left_out == {folder / "engine-0-2.json": "twice"}
    assert not alive(younger.pid, None)


def test_a_folder_that_is_gone_leaves_vllms_page(folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv(ENGINES, str(folder / "gone"))
    assert samples(get(Metrics(vllms_page()))[2])["vllm:requests_total"] == [({}, 5.0)]


def test_an_engine_keeps_its_file_true_and_takes_it_away(folder: Path) -> None:
    counted = [0]
    assert engines_folder() == folder

    def now() -> EngineState:
        counted[0] += 1
        if counted[0] == 1:
            raise RuntimeError("dictionary changed size during iteration")
        return state(finished=counted[0])

    file = EngineFile(folder, now, 0)
    wait_until(file.path.exists)
    ((engine,), left_out) = read_engines(folder)
    assert engine.counters["finished"] >= 2
    assert left_out == {}
    file.close()
    assert list(folder.iterdir()) == []


def test_clients_cannot_make_time_series_without_end() -> None:
    times = QueueTimes()
    for priority in range(1000):
        times.observe(1.0, priority, 5000.0)
    classes = [each["class"] for each in times.snapshot()]
    assert len(classes) == 17
    assert "other" in classes
    assert {each["predicted_tokens"] for each in times.snapshot()} == {"4096-"}
