"""The dashboard and the alerts ask for metrics that exist; on demand, of a real Prometheus."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from lengthwise.counters import Counters
from lengthwise.gateway.prometheus import GatewayMetrics
from lengthwise.hints.service import ServerMetrics, hint_requests
from lengthwise.telemetry.prometheus import families
from scripts import draw_dashboard

ROOT = Path(__file__).parents[1]
DASHBOARD = ROOT / "deploy/grafana-dashboard.json"
ALERTS = ROOT / "deploy/prometheus-alerts.yml"
NAME = re.compile(r"\b(?:lengthwise_|vllm:)\w+")
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def dashboard_queries() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def alerts() -> list[dict[str, Any]]:
    yaml: Any = pytest.importorskip("yaml", reason="PyYAML, which vLLM brings, is not installed")
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def names_in(queries: list[str]) -> set[str]:
    return {name for query in queries for name in NAME.findall(query)}


@pytest.fixture
def known() -> set[str]:
    """All time series that can be scraped, by name."""
    loggers = importlib.util.find_spec("vllm")
    if loggers is None or loggers.origin is None:
        pytest.skip("vLLM is not installed")
    theirs = (Path(loggers.origin).parent / "v1/metrics/loggers.py").read_text()
    documented = (ROOT / "docs/reference/counters.md").read_text()
    names = {f"lengthwise_{name}_total" for name in Counters().snapshot()}
    names |= set(re.findall(r"`(lengthwise_\w+)`", documented))
    collected = [*ServerMetrics().registry.collect(), *hint_requests().collect()]
    collected += GatewayMetrics(Counters()).collect()
    for family in (*collected, *families([], ["engine"])):
        if family.type == "histogram":
            names |= {f"{family.name}_{end}" for end in ("bucket", "sum", "count")}
        else:
            names.add(family.name + "_total" * (family.type == "counter"))
    for name in re.findall(r'name="(vllm:\w+)"', theirs):
        names |= {name, f"{name}_total", *(f"{name}_{end}" for end in ("bucket", "sum", "count"))}
    return names


def test_the_dashboard_is_the_one_its_script_draws() -> None:
    assert DASHBOARD.read_text() == draw_dashboard.draw()
    assert dashboard_queries() == list(draw_dashboard.queries())


def test_every_query_names_metrics_that_exist(known: set[str]) -> None:
    asked = dashboard_queries() + [rule["expr"] for rule in alerts()]
    assert all(names_in([query]) for query in asked)
    assert names_in(asked) - known == set()
    assert "lengthwise_nothing" not in known


def test_panels_do_not_overlap_and_say_what_to_read_from_them() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"].endswith(".")
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_alerts_say_what_to_do() -> None:
    rules = alerts()
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert set(rule["annotations"]) == {"summary", "action"}
        assert rule["labels"]["severity"] in ("warning", "critical")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_accepts_the_alerts() -> None:
    finished = subprocess.run(
        ["promtool", "check", "rules", str(ALERTS)], capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is not installed")
def test_a_real_prometheus_answers_every_query(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lengthwise.hints.middleware import PREDICTOR
    from lengthwise.serve.listen import free_port
    from tests.support.commands import started, wait_for

    names = ("vllm", "scheduler", "predict", "gateway", "prometheus")
    ports = {name: free_port() for name in names}
    monkeypatch.setenv(PREDICTOR, f"http://127.0.0.1:{ports['predict']}")
    settings = {"policy": "srpt", "predictor": "declared", "metrics_port": ports["scheduler"]}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    server = ["serve", "--emulate", "a100:llama-3-8b", "--port", str(ports["vllm"])]
    server += ["--settings", str(tmp_path / "settings.json"), "--max-num-seqs", "4"]
    server += ["--middleware", "lengthwise.hints.Middleware"]
    predict = ["predict-server", "prompt-length", "--tokenizer", "reference"]
    predict += ["--port", str(ports["predict"])]
    gateway = ["gateway", "--upstream", f"http://127.0.0.1:{ports['vllm']}", "--max-inflight", "6"]
    gateway += ["--policy", "srpt", "--predictor", "declared", "--port", str(ports["gateway"])]
    jobs = [
        {"job_name": name, "static_configs": [{"targets": [f"127.0.0.1:{ports[name]}"]}]}
        for name in names[:-1]
    ]
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(ALERTS)],
        "scrape_configs": jobs,
    }
    # JSON is YAML.
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))
    (tmp_path / "first").mkdir()
    (tmp_path / "last").mkdir()

    with (
        started(tmp_path / "first", *predict) as predictor,
        started(tmp_path, *server) as process,
        ExitStack() as later,
        (tmp_path / "prometheus.log").open("w") as log,
    ):
        wait_for(
            lambda: "ready at" in (tmp_path / "first/err").read_text(),
            predictor,
            tmp_path / "first",
        )
        wait_for(lambda: "ready at" in (tmp_path / "err").read_text(), process, tmp_path)
        last = tmp_path / "last"
        before = later.enter_context(started(last, *gateway))
        wait_for(lambda: "ready at" in (last / "err").read_text(), before, last)
        prometheus = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={tmp_path / 'prometheus.yml'}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address=127.0.0.1:{ports['prometheus']}",
            ],
            stdout=log,
            stderr=log,
        )
        try:
            api = f"http://127.0.0.1:{ports['prometheus']}/api/v1"
            _ask_for_a_while(f"http://127.0.0.1:{ports['gateway']}", seconds=15.0)
            _wait(lambda: _data(f"{api}/query?query=lengthwise_steps_total")["result"])
            # What is foretold there is only in shadow.
            (tmp_path / "settings.json").write_text(json.dumps({**settings, "shadow": True}))
            _ask_for_a_while(f"http://127.0.0.1:{ports['vllm']}", seconds=5.0)
            _wait(lambda: _data(f"{api}/query?query=lengthwise_shadow_gain_mean")["result"])
            empty = [
                query
                for query in dashboard_queries()
                if not _data(f"{api}/query?" + urllib.parse.urlencode({"query": filled(query)}))[
                    "result"
                ]
            ]
            assert empty == []
            (group,) = _data(f"{api}/rules")["groups"]
            assert [rule["health"] for rule in group["rules"]] == ["ok"] * len(alerts())
            for name in names_in([rule["expr"] for rule in alerts()]):
                assert _data(f"{api}/query?query={name}")["result"], name
        finally:
            prometheus.terminate()
            prometheus.wait()


def filled(query: str) -> str:
    """A query of the dashboard, with what Grafana puts into it."""
    return query.replace("$__rate_interval", "30s").replace("$engine", ".*")


def _ask_for_a_while(url: str, seconds: float) -> None:
    """Keep more requests open than there are slots."""
    body = {
        "model": "llama-3-8b",
        "messages": [{"role": "user", "content": "Hello"}],
        "vllm_xargs": {"lengthwise_true_tokens": 40},
    }
    ends = time.monotonic() + seconds

    def ask(_: int) -> None:
        while time.monotonic() < ends:
            request = urllib.request.Request(
                f"{url}/v1/chat/completions",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            with DIRECT.open(request, timeout=200) as response:
                response.read()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))


def _data(address: str) -> Any:
    with DIRECT.open(address, timeout=60) as response:
        return json.load(response)["data"]


def _wait(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.5)
