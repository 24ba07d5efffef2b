"""`lengthwise check`: verdicts on settings files, without a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lengthwise.serve.settings_check import check_settings, worst
from lengthwise.settings import off_path
from tests.support.command_line import Run

SRPT = {"policy": "srpt", "predictor": "declared"}
POLICY_OF_OWN = """
from lengthwise.policy import register

@register("longest-{name}")
def rank(request, now, parameters):
    return {body}
"""

OK: dict[str, Any] = {
    "nothing, which is fcfs": {},
    "fcfs": {"policy": "fcfs"},
    "srpt": SRPT,
    "hrrn": {"policy": "hrrn", "predictor": "declared"},
    "the bound grows": {**SRPT, "max_overtakes": 50, "overtake_share": 0.5},
    "bounded by time alone": {**SRPT, "max_overtakes": None, "max_wait_s": 30},
    "trail, c measured": {"policy": "trail", "predictor": "declared", "parameters": {"c": "auto"}},
    "preemption that pays": {**SRPT, "preemption": "pays", "service_time": True},
    "shadow": {**SRPT, "shadow": True},
    "half and half": {**SRPT, "blend": 0.5},
    "a log of features": {**SRPT, "length_log": {"folder": "log", "megabytes": 1}},
    "nothing learnt yet": {"policy": "ltr", "predictor": "none"},
    "metrics here alone": {**SRPT, "metrics_port": 39871, "metrics_host": "127.0.0.1"},
}
DANGEROUS: dict[str, tuple[Any, str]] = {
    "no bound": ({**SRPT, "max_overtakes": None}, "nothing bounds"),
    "no bound, greedy": ({**SRPT, "max_overtakes": None, "preemption": "greedy"}, "and greedy"),
    "greedy": ({**SRPT, "preemption": "greedy"}, "recomputes"),
    "prompts are kept": ({**SRPT, "length_log": {"folder": "log", "text": True}}, "prompts"),
    "clients go ahead": ({**SRPT, "client_priority": True}, "any client"),
    "the policy priority": ({"policy": "priority"}, "any client"),
    "an oracle": ({"policy": "srpt", "predictor": "oracle"}, "benchmarks"),
    "an oracle by its policy": ({"policy": "oracle-sjf"}, "benchmarks"),
    "a noisy oracle": ({"policy": "srpt", "predictor": "noisy-oracle:0.5"}, "benchmarks"),
    "no floor": ({**SRPT, "tau_floor": None}, "tau_floor"),
    "an endless record": ({**SRPT, "record": "/tmp/lengthwise-record"}, "grows"),
    "more log than disk": (
        {**SRPT, "length_log": {"folder": "log", "megabytes": 1 << 30}},
        "fewer megabytes",
    ),
    "a key twice": ('{"policy": "fcfs", "policy": "hrrn", "predictor": "declared"}', "'policy'"),
}
REFUSED: dict[str, tuple[Any, str]] = {
    "not JSON": ("{", "not JSON"),
    "no object": ("[]", "object"),
    "nothing at all": ("", "not JSON"),
    "a key mistyped": ({"polcy": "srpt"}, "'policy'"),
    "a policy mistyped": ({"policy": "srtp"}, "'srpt'"),
    "a parameter mistyped": ({**SRPT, "policy": "trail", "parameters": {"d": 1}}, "'d'"),
    "out of range": ({**SRPT, "blend": 2}, "blend"),
    "not a number": ({**SRPT, "max_overtakes": "many"}, "max_overtakes"),
    "no predictor": ({"policy": "srpt"}, "needs a predictor"),
    "a folder that is not there": ({"policy": "ltr", "predictor": "no/such"}, "no/such"),
    "a folder that is no predictor": ({"policy": "ltr", "predictor": "empty"}, "empty"),
    "a predictor mistyped": ({"policy": "ltr", "predictor": "declard"}, "declared"),
    "a stand-in that is not there": ({**SRPT, "stand_in": "no/such"}, "stand_in"),
    "a log in a file": ({**SRPT, "length_log": {"folder": "file/log"}}, "not a folder"),
    "a port that is none": ({**SRPT, "metrics_port": 70000}, "metrics_port"),
    "an address of another machine": (
        {**SRPT, "metrics_port": 39871, "metrics_host": "192.0.2.1"},
        "metrics_port",
    ),
    "a host's name with an empty part": (
        {**SRPT, "metrics_port": 39871, "metrics_host": "a..b"},
        "no name of a host",
    ),
    "a policy's file that is not there": ({**SRPT, "policy": "nowhere.py#mine"}, "nowhere"),
}


def written(folder: Path, settings: Any) -> Path:
    (folder / "empty").mkdir()
    (folder / "file").write_text("")
    path = folder / "settings.json"
    path.write_text(settings if isinstance(settings, str) else json.dumps(settings))
    return path


def test_there_are_forty_files_and_more() -> None:
    assert len(OK) + len(DANGEROUS) + len(REFUSED) >= 40


@pytest.mark.parametrize("name", OK)
def test_a_file_that_is_ok_is_one_line(tmp_path: Path, name: str) -> None:
    findings = check_settings(written(tmp_path, OK[name]))
    assert worst(findings) == 0, findings
    assert "\n" not in findings[0].says


@pytest.mark.parametrize("name", DANGEROUS)
def test_what_is_dangerous_is_said_in_one_line(tmp_path: Path, name: str) -> None:
    settings, says = DANGEROUS[name]
    findings = check_settings(written(tmp_path, settings))
    assert worst(findings) == 1
    assert [each for each in findings if each.verdict == "dangerous" and says in each.says]
    assert len([each for each in findings if each.verdict == "dangerous"]) == 1, findings


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_said_in_one_line(tmp_path: Path, name: str) -> None:
    settings, says = REFUSED[name]
    findings = check_settings(written(tmp_path, settings))
    assert worst(findings) == 2
    (refused,) = (each for each in findings if each.verdict == "refused")
    assert says in refused.says
    assert "\n" not in refused.says


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    (found,) = check_settings(tmp_path / "settings.json")
    assert found.verdict == "refused"
    assert "No such file" in found.says


def test_who_may_write_the_file_decides_who_runs(tmp_path: Path) -> None:
    path = written(tmp_path, SRPT)
    path.chmod(0o666)
    assert [each for each in check_settings(path) if "chmod" in each.says]


def test_a_switch_that_was_left_off_is_said(tmp_path: Path) -> None:
    path = written(tmp_path, SRPT)
    off_path(path).touch()
    assert [each for each in check_settings(path) if str(off_path(path)) in each.says]


def test_a_probe_and_a_model_are_looked_at(tmp_path: Path) -> None:
    path = written(tmp_path, SRPT)
    findings = check_settings(path, probe=tmp_path / "empty")
    assert worst(findings) == 2
    assert "probe" in findings[0].says
    assert worst(check_settings(path, model="./no/such/model")) == 2
    assert worst(check_settings(path, model="reference")) == 0


def test_the_command_says_it_and_exits_with_the_worst(tmp_path: Path, run: Run) -> None:
    paths = []
    for name, settings in (("ok", SRPT), ("open", {**SRPT, "client_priority": True})):
        (tmp_path / name).mkdir()
        paths.append(str(written(tmp_path / name, settings)))
    done = run("check", *paths)
    assert done.code == 1
    assert [line.split(": ")[1] for line in done.out.splitlines()] == ["ok", "dangerous"]
    done = run("check", "--json", paths[0])
    assert done.code == 0
    assert json.loads(done.out)[paths[0]][0]["verdict"] == "ok"


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    path = written(tmp_path, {**SRPT, "length_log": {"folder": "log", "megabytes": 1}})
    before = sorted(tmp_path.rglob("*"))
    check_settings(path)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("body", ["request.no_such_field", "request.remaining"])
def test_a_policy_of_the_users_own_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    own = tmp_path / "own_policy.py"
    name = "a" if body.endswith("field") else "b"
    own.write_text(POLICY_OF_OWN.format(body=body, name=name))
    monkeypatch.chdir(tmp_path)
    settings = {"policy": f"{own}#longest-{name}", "predictor": "declared"}
    findings = check_settings(written(tmp_path, settings))
    assert worst(findings) == (2 if name == "a" else 0), findings
    assert name == "b" or "no_such_field" in findings[0].says
