"""Faults that a live server outlives: each request ends once or gets one clear error, none hangs.

`make test-live` runs all of them, and `make test-all` one of each kind. A server is an emulated one
(`tests/support/live_server.py`), with everything but the model's arithmetic as users run it.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")
pytest.importorskip("psutil", reason="psutil, which vLLM brings, is not installed")

from lengthwise.settings import status_path
from tests.support.live_server import CUT, GOOD, REFUSED, WHOLE, Ask, Live, assert_all, live_server

pytestmark = [pytest.mark.engine, pytest.mark.live]

CLOCK = "LENGTHWISE_TEST_CLOCK"  # names the file with the seconds by which the clock is wrong
STEPPED = f"""
import os, time
right = time.time
def stepped():
    try:
        return right() + float(open(os.environ["{CLOCK}"]).read() or 0)
    except (OSError, ValueError):
        return right()
time.time = stepped
time.time_ns = lambda: int(stepped() * 1e9)
"""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One start for all faults that a server outlives."""
    folder = tmp_path_factory.mktemp("live")
    (folder / "sitecustomize.py").write_text(STEPPED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CLOCK, str(folder / "clock"))
        patch.setenv("PYTHONPATH", f"{folder}:{os.environ.get('PYTHONPATH', '')}")
        with live_server(folder) as server:
            yield server


@pytest.fixture(autouse=True)
def good_again(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a fault has left in the server's folder is taken away."""
    yield
    if "live" in request.fixturenames:
        request.getfixturevalue("live").choose()


@dataclass(frozen=True)
class Fault:
    """Something that happens while answers are made.

    Attributes:
        kind: of fault.
        strike: lets it happen.
        seen: whether the scheduler has met it; waited for before the answers are.
        mend: takes it away again.
    """

    kind: str
    strike: Callable[[Live], object]
    seen: Callable[[Live], object] = lambda live: True
    mend: Callable[[Live], object] = lambda live: None


def write(text: str) -> Callable[[Live], object]:
    return lambda live: live.settings.write_text(text)


def choose(**settings: object) -> Callable[[Live], object]:
    """Settings that are not checked before they are written."""
    return write(json.dumps(GOOD | settings))


def policy_file(code: str) -> Callable[[Live], object]:
    def strike(live: Live) -> None:
        (live.folder / "own.py").write_text(code)
        choose(policy=f"{live.folder}/own.py#own")(live)

    return strike


RAISES = """
from lengthwise.policy import register
@register("own", predicts=False)
def rank(request, now, parameters):
    "Divides by zero for every fiftieth request."
    return 1.0 / (request.arrival_index % 50 - 49.0)
"""


def raise_while_ranking(live: Live) -> None:
    policy_file(RAISES)(live)
    live.wait_for(lambda: live.status()["policy"].endswith("#own"))  # it is compiled first
    assert_all(live.send([Ask(50)] * 200).outcomes(), WHOLE, tokens=50)


def refused(live: Live) -> bool:
    return bool(live.status()["state"] == "refused")


def instead(make: Callable[[Path], object]) -> Callable[[Live], object]:
    """Something else in the place of the settings file."""

    def strike(live: Live) -> None:
        live.settings.unlink()
        make(live.settings)

    return strike


def settings_again(live: Live) -> None:
    path = live.settings
    if path.is_dir():
        path.rmdir()
    elif path.exists() or path.is_symlink():
        path.unlink()
    live.choose()


def broken(strike: Callable[[Live], object]) -> Fault:
    return Fault("settings", strike, refused, settings_again)


def writes_all(live: Live) -> dict[str, object]:
    return {
        "record": str(live.folder / "record"),
        "journal": str(live.folder / "journal"),
        "length_log": {"folder": str(live.folder / "log"), "text": True},
    }


def fill_the_disk(live: Live) -> None:
    live.choose(**writes_all(live))
    lost = live.counter("record_lost")
    with live.full_disk():
        assert_all(live.send([Ask()] * 30).outcomes(), WHOLE, tokens=20)
        time.sleep(1.0)  # the status says nothing now: it cannot be written either
    live.wait_for(lambda: live.counter("record_lost") > lost)


def take_folders_away(live: Live) -> None:
    live.choose(**writes_all(live))
    for name in ("record", "journal", "log"):
        (live.folder / name).rename(live.folder / f"{name}-gone-{time.time_ns()}")


def status_as_a_folder(live: Live) -> None:
    status_path(live.settings).unlink()
    try:
        status_path(live.settings).mkdir()
    except FileExistsError:  # written anew in between
        status_as_a_folder(live)


def take_metrics_port(live: Live) -> None:
    with closing(socket.socket()) as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        taken = other.getsockname()[1]
        live.choose(metrics_port=taken)
        assert taken < live.status()["metrics_port"] < taken + 64


def connections_that_say_nothing(live: Live) -> None:
    live.choose(metrics_port=live.port + 1)
    for port in (live.port, live.status()["metrics_port"]):
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(200)]
        for connection in silent[:100]:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Le")
        assert_all(live.send([Ask()] * 20).outcomes(), WHOLE, tokens=20)
        for connection in silent:
            connection.close()


def step_clock(seconds: float) -> Callable[[Live], object]:
    def strike(live: Live) -> None:
        (live.folder / "clock").write_text(str(seconds))
        live.wait_for(lambda: abs(live.status()["time"] - time.time() - seconds) < 60)

    return strike


def clock_right(live: Live) -> None:
    (live.folder / "clock").write_text("0")
    live.wait_for(lambda: abs(live.status()["time"] - time.time()) < 60)


def freeze(live: Live) -> None:
    engine = live.engine
    engine.suspend()
    time.sleep(3.0)
    engine.resume()


def fifty_changes(live: Live) -> None:
    before = live.counter("settings_changes")
    for number in range(50):
        policy = ("srpt", "fcfs", "trail", "mlfq")[number % 4]
        live.choose(policy=policy, blend=0.5 + number / 100, preemption="greedy")
    assert live.counter("settings_changes") > before


FAULTS = {
    "settings that are no JSON": broken(write("{")),
    "an unknown policy": broken(choose(policy="srtp")),
    "a number out of range": broken(choose(starvation_quantum=3_000_000_000)),
    "no such predictor": broken(choose(predictor="no/such/folder")),
    "a record that cannot be made": broken(choose(record="/dev/null/record")),
    "a policy that ends the process": broken(policy_file("raise SystemExit(3)")),
    "no settings file": broken(instead(lambda path: None)),
    "a pipe for settings": broken(instead(os.mkfifo)),
    "endless settings": broken(instead(lambda path: path.symlink_to("/dev/zero"))),
    "a folder for settings": broken(instead(Path.mkdir)),
    "megabytes of settings": broken(write(" " * (2 << 20))),
    "settings nested deeply": broken(write("[" * 100_000)),
    "fifty changes of settings": Fault("settings", fifty_changes),
    "a policy that raises": Fault(
        "settings", raise_while_ranking, lambda live: live.status()["switched_off"]
    ),
    "a full disk": Fault("disk", fill_the_disk),
    "folders that are taken away": Fault("disk", take_folders_away),
    "a folder for the status": Fault(
        "disk", status_as_a_folder, mend=lambda live: status_path(live.settings).rmdir()
    ),
    "a metrics port in use": Fault("ports", take_metrics_port),
    "connections that say nothing": Fault("ports", connections_that_say_nothing),
    "a clock that jumps ahead": Fault("clock", step_clock(86_400.0), mend=clock_right),
    "a clock that jumps back": Fault("clock", step_clock(-86_400.0), mend=clock_right),
    "an engine that is stopped for a while": Fault("clock", freeze),
}


def one_of_each_kind(faults: dict[str, Any]) -> list[Any]:
    """All of them, the first of each kind for `make test-all` too."""
    kinds: set[str] = set()
    found = []
    for name, fault in faults.items():
        found.append(pytest.param(name, marks=[] if fault.kind in kinds else [pytest.mark.slow]))
        kinds.add(fault.kind)
    return found


@pytest.mark.parametrize("name", one_of_each_kind(FAULTS))
def test_every_answer_is_whole_all_the_same(name: str, live: Live) -> None:
    fault = FAULTS[name]
    crowd = live.busy([Ask(200)] * 100)
    fault.strike(live)
    live.wait_for(lambda: fault.seen(live))
    assert_all(crowd.outcomes(), WHOLE, tokens=200)
    assert_all(live.send([Ask()] * 20).outcomes(), WHOLE, tokens=20)
    fault.mend(live)
    live.assert_serves()


# What clients do --------------------------------------------------------------------------------

HOSTILE = {
    "an id of a megabyte": Ask(hints={"lengthwise_id": "x" * (1 << 20)}),
    "a length of any size": Ask(hints={"lengthwise_expected_tokens": 1e300}),
    "a length that is no number": Ask(hints={"lengthwise_expected_tokens": "NaN"}),
    "the best of all priorities": Ask(more={"priority": -(2**63)}),
    "the worst of all priorities": Ask(more={"priority": 2**63 - 1}),
    "a priority beyond all": Ask(more={"priority": 10**40}),
    "no room for an answer": Ask(more={"max_tokens": 10**9}),
    "an answer of no length": Ask(more={"max_tokens": -1}),
    "no prompt": Ask(more={"prompt": ""}),
    "a prompt that is too long": Ask(more={"prompt": [5] * 100_000}),
    "tokens that there are not": Ask(more={"prompt": [2**31]}),
    "another model": Ask(more={"model": "none"}),
}


@pytest.mark.slow
def test_hostile_requests_are_served_or_refused_among_others(live: Live) -> None:
    """Each of them twenty times, between others, with everything written down."""
    live.choose(**writes_all(live), client_priority=True)
    finished, switched_off = live.counter_now("finished"), live.counter("switched_off")
    asks = [ask for ask in HOSTILE.values() for _ in range(20)]
    others = live.busy([Ask(100)] * 40)
    outcomes = live.send(asks).outcomes()
    assert_all(others.outcomes(), WHOLE, tokens=100)
    assert_all(outcomes, WHOLE, REFUSED)
    for got in outcomes:
        assert got.how == WHOLE or got.said.startswith("4"), got.said[:200]
    served = sum(got.how == WHOLE for got in outcomes)
    assert served >= 20
    live.wait_for(lambda: live.counter("finished") - finished == served + 40)
    assert live.counter("switched_off") == switched_off
    live.assert_serves()


@pytest.mark.slow
def test_900_of_1000_leave_and_come_again(live: Live) -> None:
    finished = live.counter_now("finished")
    leaving = [Ask(300, leaves_after=1 + number % 7) for number in range(900)]
    first = live.send([*leaving, *[Ask(60)] * 100])
    again = live.send([Ask(30)] * 900)
    outcomes = first.outcomes()
    assert_all(outcomes[:900], CUT)
    assert {got.said for got in outcomes[:900]} == {"the client left"}
    assert_all(outcomes[900:], WHOLE, tokens=60)
    assert_all(again.outcomes(), WHOLE, tokens=30)
    live.wait_for(lambda: live.counter("finished") - finished == 1900)
    live.assert_serves()


def test_10_000_queued_are_all_answered(live: Live) -> None:
    finished = live.counter_now("finished")
    crowd = live.send([Ask(1 + number % 9) for number in range(10_000)])
    live.wait_for(lambda: crowd.tokens > 1)
    live.choose(policy="trail")
    outcomes = crowd.outcomes()
    assert_all(outcomes, WHOLE)
    assert [got.tokens for got in outcomes] == [1 + number % 9 for number in range(10_000)]
    live.wait_for(lambda: live.counter("finished") - finished == 10_000)
    live.assert_serves()
