"""The doctor: what it reads from logs and servers, and what it makes of it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client import Histogram as Recorded

from lengthwise.advise.doctor import recorded_limits, signs_of_log
from lengthwise.compare.engine_log import read_engine_log
from lengthwise.measure.server_metrics import Histogram, parse_metrics
from lengthwise.simulate.engine import EngineSettings
from tests.support.command_line import Run
from tests.support.recorded_log import COST, ENGINE, REQUESTS, STEPS, traffic, write_log


@pytest.fixture
def run(run: Run) -> Run:
    return partial(run, "doctor")


QUICK = ("--jobs", "1", "--seeds", "2")


def diagnose(run: Run, folder: Path, *arguments: str) -> dict[str, Any]:
    ended = run("--log", str(folder), *QUICK, *arguments, "--json")
    assert ended.code == 0, ended.err
    document: dict[str, Any] = json.loads(ended.out)
    return document


# Logs ---------------------------------------------------------------------------------------


def test_the_signs_of_a_log_are_what_happened(tmp_path: Path) -> None:
    served = write_log(tmp_path, traffic(10.5))
    log = read_engine_log(tmp_path, 0)
    queue_s = served.requests["scheduled_s"] - served.requests["arrival_s"]
    cached = served.requests["cached_tokens"].astype(np.float64)
    signs = signs_of_log(traffic(10.5), queue_s, cached, log.steps, ENGINE)
    waits = served.steps["waiting"] > 0
    assert signs.mean_queue_s == pytest.approx(queue_s.mean())
    # Little's law, over steps instead of instants.
    assert signs.mean_latency_s == pytest.approx(served.e2el_s.mean(), rel=0.05)
    assert signs.waiting_share == pytest.approx(
        served.steps["duration_s"][waits].sum() / served.makespan_s, rel=0.02
    )
    assert signs.slots_taken is not None
    assert signs.slots_taken > 0.9
    assert signs.queues


def test_limits_are_those_recorded_or_those_seen(tmp_path: Path) -> None:
    write_log(tmp_path / "new", traffic(10.5))
    new = read_engine_log(tmp_path / "new", 0)
    assert recorded_limits(new.steps, new.limits) == asdict(ENGINE)
    write_log(tmp_path / "old", traffic(10.5), older=True)
    old = read_engine_log(tmp_path / "old", 0)
    seen = recorded_limits(old.steps, old.limits)
    assert seen["slots"] == ENGINE.slots
    assert 0.9 * 2000 < seen["kv_blocks"] <= 2000


def test_a_log_that_queues_is_told_what_it_would_gain(run: Run, tmp_path: Path) -> None:
    served = write_log(tmp_path, traffic(11.0))
    document = diagnose(run, tmp_path)
    assert document["queues"] is True
    assert document["verdict"][0].startswith("It queues: someone waits")
    assert document["verdict"][1].startswith("Worth it: with predictions of tau 0.5")
    simulated = document["simulated"]
    # Costs are fitted to the log's own steps, so the simulation repeats what was recorded.
    for name in ("step_s", "prefill_s"):
        assert simulated["cost"][name] == pytest.approx(getattr(COST, name), rel=0.02)
    assert simulated["fcfs"]["mean_e2el_ms"] == pytest.approx(1000 * served.e2el_s.mean(), rel=0.02)
    gains = [row["mean-e2el"]["gain"] for row in simulated["predictors"]]
    assert gains[0] < gains[2] < gains[3]
    low, high = simulated["predictors"][1]["mean-e2el"]["interval"]
    assert low <= gains[1] <= high
    assert simulated["predictors"][3]["mean-e2el"]["interval"] is None
    assert document["signs"]["load"] > 0.8
    assert any(line.startswith("Slots: ") for line in document["limits"])


def test_the_verdict_comes_first(run: Run, tmp_path: Path) -> None:
    write_log(tmp_path, traffic(11.0))
    ended = run("--log", str(tmp_path), *QUICK)
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert lines[0].startswith("It queues")
    assert lines[1].startswith("Worth it")
    assert "tau 0.7" in ended.out
    assert "lengthwise tune" in lines[-1]
    assert "left out 1 requests" in ended.err


def test_a_quiet_log_has_nothing_to_gain(run: Run, tmp_path: Path) -> None:
    write_log(tmp_path, traffic(1.0, count=150))
    document = diagnose(run, tmp_path)
    assert document["queues"] is False
    assert document["verdict"][0].startswith("It hardly queues")
    assert document["verdict"][1].startswith("Not worth it")
    assert document["limits"][0].startswith("No queue")
    assert any(line.startswith("Too few requests: 150") for line in document["limits"])


def test_answers_of_one_length_and_scarce_memory_are_named(run: Run, tmp_path: Path) -> None:
    scarce = EngineSettings(slots=32, kv_blocks=60)
    write_log(tmp_path, traffic(12.0, sigma=0.05), scarce)
    limits = " ".join(diagnose(run, tmp_path)["limits"])
    assert "Few distinct lengths" in limits
    assert "KV memory" in limits
    assert "Slots" not in limits


def test_a_log_without_steps_is_simulated_with_a_preset(run: Run, tmp_path: Path) -> None:
    write_log(tmp_path, traffic(11.0))
    (tmp_path / "steps.jsonl").unlink()
    ended = run("--log", str(tmp_path), *QUICK, "--slots", "2", "--json")
    assert ended.code == 0, ended.err
    assert "no step costs from the log" in ended.err
    document = json.loads(ended.out)
    assert "h100:llama-3-8b, derived" in document["simulated"]["cost"]["source"]
    assert document["simulated"]["engine"]["slots"] == 2
    assert document["signs"]["waiting_share"] is None


def test_a_log_of_an_older_version_or_with_a_cut_line_is_read(run: Run, tmp_path: Path) -> None:
    write_log(tmp_path, traffic(11.0), older=True)
    with (tmp_path / "steps.jsonl").open("a") as file:
        file.write(json.dumps({"schema": STEPS}) + '\n{"t": 3')
    document = diagnose(run, tmp_path)
    assert document["simulated"]["engine"]["slots"] == ENGINE.slots
    assert "fitted to" in document["simulated"]["cost"]["source"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no requests.jsonl"),
        ({"requests.jsonl": json.dumps({"schema": REQUESTS}) + "\n"}, "requests.jsonl"),
        ({"requests.jsonl": ""}, "empty"),
        ({"requests.jsonl": '{"schema": "lengthwise.requests/9"}\n{"id": "1"}\n'}, "upgrade"),
    ],
)
def test_a_log_without_requests_is_one_line(
    files: dict[str, str], message: str, run: Run, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    ended = run("--log", str(tmp_path))
    assert ended.code == 2
    last = ended.err.strip().splitlines()[-1]
    assert last.startswith("lengthwise: ")
    assert message in last


def test_damaged_steps_are_one_line(run: Run, tmp_path: Path) -> None:
    write_log(tmp_path, traffic(11.0, count=50))
    (tmp_path / "steps.jsonl").write_text('{"schema": "lengthwise.steps/1"}\n{"t": oops}\n{}\n')
    ended = run("--log", str(tmp_path))
    assert ended.code == 2
    assert "steps.jsonl is damaged" in ended.err.strip().splitlines()[-1]


# Servers ------------------------------------------------------------------------------------


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """A server whose /metrics answers with the given texts in turn, the last one for ever."""
    servers: list[HTTPServer] = []

    def start(*texts: str) -> str:
        left = list(texts)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path != "/metrics":
                    self.send_error(404)
                    return
                text = left.pop(0) if len(left) > 1 else left[0]
                self.send_response(200)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: Any) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def metrics(
    waiting: float, queue_s: list[float], latency_s: list[float], answers: list[int], kv: float
) -> str:
    """A page as vLLM writes it, of two engines."""
    registry = CollectorRegistry()

    def label(metric: Any, engine: int) -> Any:
        return metric.labels(model_name="m", engine=str(engine))

    names = ("model_name", "engine")
    running = Gauge("vllm:num_requests_running", "d", names, registry=registry)
    queued = Gauge("vllm:num_requests_waiting", "d", names, registry=registry)
    use = Gauge("vllm:kv_cache_usage_perc", "d", names, registry=registry)
    preempted = Counter("vllm:num_preemptions", "d", names, registry=registry)
    for engine in (0, 1):
        label(running, engine).set(4)
        label(queued, engine).set(waiting / 2)
        label(use, engine).set(kv if engine else 0.1)
        label(preempted, engine).inc(3 if kv > 0.9 else 0)
    for name, values, bounds in (
        ("request_queue_time_seconds", queue_s, (0.3, 0.5, 1.0, 5.0, 10.0)),
        ("e2e_request_latency_seconds", latency_s, (0.3, 0.5, 1.0, 5.0, 10.0)),
        ("request_generation_tokens", answers, (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)),
    ):
        recorded = Recorded(f"vllm:{name}", "d", names, buckets=bounds, registry=registry)
        for place, value in enumerate(values):
            label(recorded, place % 2).observe(value)
    return generate_latest(registry).decode()


BUSY = metrics(6, [2.0] * 600, [5.0] * 600, [10, 90, 200] * 200, kv=0.5)
IDLE = metrics(0, [0.001] * 600, [5.0] * 600, [10, 90, 200] * 200, kv=0.2)
FULL = metrics(6, [2.0] * 600, [5.0] * 600, [100] * 600, kv=0.99)


def test_a_busy_server_is_told_what_to_record(run: Run, serve: Callable[..., str]) -> None:
    url = serve(IDLE, BUSY) + "/metrics"
    ended = run("--url", url, "--seconds", "1", "--json")
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    signs = document["signs"]
    assert signs["waiting_share"] == 0.5
    assert signs["mean_queue_s"] == pytest.approx(2.0)
    assert signs["queue_share"] == pytest.approx(0.4)
    assert signs["kv_use"] == 0.5
    assert signs["requests"] == 600
    assert document["queues"] is True
    assert document["simulated"] is None
    assert '"record"' in document["next"]

    text = run("--url", url, "--seconds", "0").out
    assert text.startswith("It queues: someone waits 100% of the time")
    assert "lengthwise doctor --log" in text


def test_an_idle_and_a_full_server(run: Run, serve: Callable[..., str]) -> None:
    idle = json.loads(run("--url", serve(IDLE) + "/metrics", "--seconds", "0", "--json").out)
    assert idle["queues"] is False
    assert idle["limits"][0].startswith("No queue")
    full = json.loads(run("--url", serve(FULL) + "/metrics", "--seconds", "0", "--json").out)
    limits = " ".join(full["limits"])
    assert "KV memory: up to 99% of its blocks in use; 6 preemptions" in limits


@given(st.lists(st.integers(1, 1000), min_size=5, max_size=60))
def test_a_histogram_knows_its_mean_and_about_its_spread(values: list[int]) -> None:
    page = metrics(0, [1.0], [1.0], values, kv=0.5)
    answers = parse_metrics(page, "page").answer_tokens
    assert answers.count == len(values)
    assert answers.mean == pytest.approx(np.mean(values))
    fine = Histogram(
        count=len(values),
        total=float(sum(values)),
        buckets={float(bound): sum(value <= bound for value in values) for bound in range(1, 1001)},
    )
    # Buckets of one token: middles are half a token off.
    middles = np.array(values) - 0.5
    assert fine.spread == pytest.approx(middles.std() / middles.mean(), abs=1e-9)


def test_servers_that_cannot_be_asked_are_one_line(run: Run, serve: Callable[..., str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}/metrics"
    for url, message in (
        (closed, "cannot reach"),
        ("http://no-such-host.invalid/metrics", "cannot reach"),
        ("localhost:8000", "http://localhost:8000/metrics"),
        ("file:///etc/hostname", "http://localhost:8000/metrics"),
        (serve(BUSY) + "/health", "answers 404"),
        (serve("<html>hello {there</html>") + "/metrics", "Prometheus metrics"),
        (serve('python_info{version="3"} 1.0\n') + "/metrics", "vllm:num_requests_running"),
    ):
        ended = run("--url", url, "--seconds", "0")
        assert ended.code == 2, url
        last = ended.err.strip().splitlines()[-1]
        assert last.startswith("lengthwise: ")
        assert message in last


def test_a_source_must_be_given_and_only_one(run: Run, tmp_path: Path) -> None:
    for arguments in ((), ("--log", str(tmp_path), "--url", "http://localhost/metrics")):
        ended = run(*arguments)
        assert ended.code == 2
        assert "give --log DIR" in ended.err


def test_a_time_without_an_end_is_one_line(run: Run, serve: Callable[..., str]) -> None:
    ended = run("--url", serve(IDLE) + "/metrics", "--seconds", "inf")
    assert ended.code == 2
    assert ended.err.strip().splitlines()[-1].startswith("lengthwise: --seconds inf: give a number")
