"""Sweeps: on one core, on several, on Ray; with workers that die and runs that were stopped."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lengthwise.advise import sweep
from lengthwise.advise.sweep import Cell, Figures, Workload, arrivals_of, run_cell, run_sweep
from lengthwise.errors import InputError
from lengthwise.simulate.engine import EngineSettings, StepCost
from lengthwise.simulate.simulation import Simulation, simulate
from lengthwise.workload.arrivals import synthetic_trace
from lengthwise.workload.trace import Trace
from tests.support.command_line import Command, Run
from tests.support.deadly_trace import deadly


def cells(count: int = 6, load: str = "0.9") -> list[Cell]:
    return [
        Cell(
            label=policy,
            discipline={"policy": policy},
            load=load,
            cost=StepCost(7e-3, 32e-6, 32e-6),
            engine=EngineSettings(slots=16),
            predictor="noisy-oracle:0.5",
            seed=index // 2,
        )
        for index, policy in zip(range(count), ["fcfs", "srpt"] * count, strict=False)
    ]


@pytest.fixture(scope="module")
def workload() -> Workload:
    return Workload(synthetic_trace(300, 10.0, mean_prompt=50, mean_output=50, sigma=0.8, seed=1))


#: two cells: a trace of 10 requests/s is played faster in the first, and slower in the second
FASTER_AND_SLOWER = [*cells(1, "rate=20"), *cells(1, "rate=5")]


def test_cores_give_what_one_process_gives(workload: Workload) -> None:
    alone = run_sweep(cells(), workload, jobs=1)
    together = run_sweep(cells(), workload, jobs=2)
    assert alone == together
    assert [row["policy"] for row in alone] == ["fcfs", "srpt"] * 3


def test_a_cell_whose_worker_dies_is_tried_again(workload: Workload, tmp_path: Path) -> None:
    counter = tmp_path / "deaths"
    rows = run_sweep(FASTER_AND_SLOWER, Workload(deadly(workload.trace, counter, 1)), jobs=2)
    assert counter.read_text() == "0"
    assert rows == run_sweep(FASTER_AND_SLOWER, workload, jobs=1)


def test_a_cell_that_always_dies_is_reported_and_the_rest_is_kept(
    workload: Workload, tmp_path: Path
) -> None:
    results = tmp_path / "cells.jsonl"
    served = Workload(deadly(workload.trace, tmp_path / "deaths", 9))
    kept, failed = run_sweep(FASTER_AND_SLOWER, served, jobs=2, results=results)
    assert (failed["policy"], failed["load"]) == ("fcfs", "rate=5")
    assert "died (exit code -9), 2 times" in failed["error"]
    assert [kept] == run_sweep(FASTER_AND_SLOWER[:1], workload, jobs=1)
    assert len(results.read_text().splitlines()) == 1


def test_a_stopped_sweep_goes_on_where_it_was(
    workload: Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "run" / "cells.jsonl"
    first = run_sweep(cells(4), workload, jobs=1, results=results)
    with results.open("a") as file:
        file.write('{"cell": "half a li')
    ran: list[Cell] = []

    def counted(cell: Cell, served: Workload) -> Figures:
        ran.append(cell)
        return run_cell(cell, served)

    monkeypatch.setattr(sweep, "run_cell", counted)
    again = run_sweep(cells(6), workload, jobs=1, results=results)
    assert again[:4] == first
    assert [cell.seed for cell in ran] == [2, 2]


def test_a_sweep_does_not_go_on_with_what_came_of_another_trace(workload: Workload) -> None:
    """Traces that differ in one column each, also where arrivals and lengths are the same."""
    plain = workload.trace
    blocks: dict[str, Any] = {
        "block_hashes": np.arange(300),
        "block_offsets": np.arange(301),
        "hash_tokens": 16,
    }
    turns: dict[str, Any] = {"after": np.arange(300) - 1, "delay_s": np.zeros(300)}
    traces = [
        plain,
        replace(plain, output_tokens=plain.output_tokens + 1),
        replace(plain, **blocks),
        replace(plain, **blocks | {"block_hashes": np.zeros(300, np.int64)}),
        replace(plain, **blocks | {"block_offsets": np.append(np.arange(300), 299)}),
        replace(plain, **blocks | {"hash_tokens": 32}),
        replace(plain, **turns),
        replace(plain, **turns | {"after": np.full(300, -1)}),
        replace(plain, **turns | {"delay_s": np.ones(300)}),
    ]
    found = {sweep._identity(cells()[0], Workload(trace)) for trace in traces}
    assert len(found) == len(traces)


def test_a_sweep_does_not_go_on_with_figures_of_another_version(
    workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sweep._identity(cells()[0], workload)
    monkeypatch.setattr(sweep, "package_versions", dict.fromkeys)
    assert sweep._identity(cells()[0], workload) != before


def test_what_cannot_be_simulated_ends_the_sweep_with_one_line(workload: Workload) -> None:
    bad = [*cells(2), Cell("srpt", {"policy": "srpt"}, "0.9", cells()[0].cost, EngineSettings())]
    for jobs in (1, 2):
        with pytest.raises(InputError, match="needs predictions"):
            run_sweep(bad, workload, jobs=jobs)


def conversations(count: int = 40, turns: int = 5) -> Trace:
    """Sessions whose turns come 4 s after one another, if answers took no time."""
    begins = np.repeat(np.arange(count) * 1.0, turns)
    turn = np.tile(np.arange(turns), count)
    order = np.argsort(begins + 4.0 * turn, kind="stable")
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    before = np.where(turn > 0, places[np.arange(len(turn)) - 1], -1)
    return Trace(
        name="conversations",
        arrival_s=(begins + 4.0 * turn)[order],
        prompt_tokens=np.full(len(order), 100),
        output_tokens=np.full(len(order), 50),
        rejected=[],
        layout="made",
        after=before[order],
        delay_s=np.where(turn > 0, 4.0, 0.0)[order],
    )


def test_gaps_without_variation_are_even(workload: Workload) -> None:
    gaps = np.diff(arrivals_of(replace(cells()[0], cv=0.0), workload.trace).arrival_s)
    assert gaps == pytest.approx(gaps[0])


def test_a_probe_errs_in_other_requests_than_the_predictor(
    workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed: dict[str, Any] = {}

    def watched(*arguments: Any, **named: Any) -> Simulation:
        handed.update(named)
        return simulate(*arguments, **named)

    monkeypatch.setattr(sweep, "simulate", watched)
    noise = "noisy-oracle:0.01"  # next to nothing else
    run_cell(replace(cells(2)[1], predictor=noise, probe=noise), workload)
    alike = np.corrcoef(handed["predictions"][:, 0], handed["probe"][:, 0])[0, 1]
    assert abs(alike) < 0.3


@pytest.mark.parametrize("load", ["0.5", "1.5"])
def test_random_gaps_offer_the_load_that_was_asked_for(load: str) -> None:
    few = synthetic_trace(30, math.inf, mean_prompt=50, mean_output=50, sigma=0.8, seed=1)
    for seed in range(3):
        row = run_cell(replace(cells()[0], load=load, seed=seed), Workload(few))
        assert row["offered_load"] == pytest.approx(float(load))


@pytest.mark.parametrize("cv", [None, 1.0])
def test_a_load_is_one_of_sessions_turns_too(cv: float | None) -> None:
    served = Workload(conversations())
    low, high = (run_cell(replace(cells()[0], load=load, cv=cv), served) for load in ("0.2", "0.8"))
    assert high["duration"] < 0.5 * low["duration"]
    assert high["mean_queue_ms"] > low["mean_queue_ms"]
    # What came, and not what was asked for: answers take their time, which no load shortens.
    for row, asked in ((low, 0.2), (high, 0.8)):
        assert 0.5 * asked < row["offered_load"] < (asked if cv is None else 1.3 * asked)


@pytest.fixture
def ray() -> Iterator[Any]:
    ray = pytest.importorskip("ray", reason="Ray is not installed (pip install 'lengthwise[ray]')")
    yield ray
    ray.shutdown()


@pytest.mark.slow
def test_ray_gives_what_one_process_gives(workload: Workload, ray: Any) -> None:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    assert run_sweep(cells(4), workload, on="ray") == run_sweep(cells(4), workload, jobs=1)


# The command line ---------------------------------------------------------------------------


@pytest.fixture
def trace_file(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    arrivals = np.cumsum(generator.exponential(0.1, 200))
    lines = ["arrival_s,input_tokens,output_tokens"]
    lines += [
        f"{arrival:.6f},{generator.integers(1, 300)},{generator.integers(1, 200)}"
        for arrival in arrivals
    ]
    path = tmp_path / "trace.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def command(run: Run) -> Command:
    return Command(run, "simulate")


PRESET = ("--model", "llama-3-8b", "--gpu", "h100", "--jobs", "1")


def test_simulate_prints_json(command: Command, trace_file: Path) -> None:
    arguments = ("--policy", "fcfs,trail,srpt:max_overtakes=8", "--load", "0.8,burst")
    sweeps = ("--sweep", "c=0.2,0.8", "--sweep", "tau=0.3,1", "--slots", "8")
    out = trace_file.parent / "out"
    document = command.json(trace_file, *PRESET, *arguments, *sweeps, "--out", out)
    rows = document["results"]
    # For each of two loads: fcfs once, trail for every c and tau, srpt for every tau.
    assert len(rows) == 2 * (1 + 4 + 2)
    assert document["engine"]["slots"] == 8
    assert document["cost"]["source"].startswith("h100:llama-3-8b, derived")
    for row in rows:
        assert row["completed"] == 200
        assert row["fcfs_over_policy_mean_e2el"] > 0
    guarded = [row for row in rows if row["policy"].startswith("srpt")]
    assert all(row["max_overtaken"] <= 8 + 8 - 1 for row in guarded)
    assert json.loads((out / "results.json").read_text()) == document


def test_simulate_pauses_as_serve_does_unless_told_not_to(
    command: Command, trace_file: Path
) -> None:
    arguments = ("--policy", "srpt,srpt:pausing=false", "--load", "1.2")

    def rows(*more: str) -> list[dict[str, Any]]:
        document = command.json(trace_file, *PRESET, *arguments, *more)
        places = document["engine"]["max_seqs"]
        assert places == (None if "--no-pausing" in more else 2 * document["engine"]["slots"])
        found: list[dict[str, Any]] = document["results"]
        return found

    paused, preempted = rows("--slots", "4")
    assert paused["pauses"] > 0 == paused["preemptions"]
    assert preempted["pauses"] == 0 < preempted["preemptions"]
    # Slots that are swept bring places with them.
    assert [row["pauses"] > 0 for row in rows("--slots", "2", "--sweep", "slots=4")] == [
        True,
        False,
    ]
    assert [row["pauses"] for row in rows("--slots", "4", "--no-pausing")] == [0, 0]


def test_simulate_prints_a_table_and_draws(command: Command, trace_file: Path) -> None:
    out = trace_file.parent / "out"
    loads = ("--load", "0.5,1.2", "--slots", "8", "--seeds", "2")
    said = command(trace_file, *PRESET, *loads, "--out", out)
    assert said.code == 0
    assert "hrrn" in said.out
    assert "really" not in said.err  # the loads are those that were asked for
    assert "grows as long as" in said.err
    assert (out / "mean_e2el.svg").stat().st_size > 1000


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cells.jsonl", "cannot read"),
        ("results.json", "cannot write"),
        ("mean_e2el.svg", "cannot write"),
    ],
)
def test_what_the_folder_does_not_take_is_one_line(
    command: Command, trace_file: Path, name: str, message: str
) -> None:
    taken = trace_file.parent / "out" / name
    taken.mkdir(parents=True)
    arguments = (*PRESET, "--policy", "fcfs", "--load", "0.5,0.9", "--out", taken.parent)
    last = command.refusal(trace_file, *arguments)
    assert f"{message} {taken}: Is a directory" in last


def test_simulate_says_where_another_load_came(command: Command, tmp_path: Path) -> None:
    trace = tmp_path / "sessions.jsonl"
    turns: list[dict[str, object]] = [
        {"delay": 100.0, "input_length": 100, "output_length": 200}
    ] * 5
    first: dict[str, object] = {"timestamp": 0, "input_length": 100, "output_length": 200}
    rows = [{"session_id": f"{n}", **turn} for n in range(9) for turn in (first, *turns)]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = command(trace, *PRESET, "--policy", "fcfs", "--slots", "8", "--load", "0.2,1.5")
    assert said.code == 0
    assert re.search(r"load 1\.5: really 0\.\d\d of what the engines can do", said.err)


def test_simulate_reads_prompts(command: Command, prompts: Path) -> None:
    document = command.json(prompts, *PRESET, "--slots", "4")
    assert {row["load"] for row in document["results"]} == {"0.9"}
    assert document["requests"] == 60


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--cost FILE"),
        (("--model", "llama-3-8b"), "--cost FILE"),
        (("--cost", "x.json", "--gpu", "h100"), "not both"),
        (("--cost", "missing.json"), "cannot read"),
        ((*PRESET, "--load", "fast"), "must be a number"),
        ((*PRESET, "--load", "-1"), "must be a number"),
        ((*PRESET, "--load", "inf"), "load 'inf' must be a number"),
        ((*PRESET, "--load", "rate=inf"), "load 'rate=inf' must be a number"),
        ((*PRESET, "--policy", "sprt"), "srpt"),
        ((*PRESET, "--sweep", "k=1"), "max_overtakes"),
        ((*PRESET, "--sweep", "c=high"), "give numbers"),
        ((*PRESET, "--policy", "trail", "--sweep", "c=nan"), "finite number"),
        ((*PRESET, "--policy", "trail", "--sweep", "c=0.2", "--sweep", "c=0.5"), "given twice"),
        ((*PRESET, "--policy", "srpt", "--sweep", "c=0.5"), "no policy here depends on it"),
        ((*PRESET, "--sweep", "blend=2"), "less than or equal to 1"),
        ((*PRESET, "--sweep", "blend=-1"), "greater than or equal to 0"),
        ((*PRESET, "--sweep", "max_overtakes=-3"), "whole number from 0 to"),
        ((*PRESET, "--sweep", "max_overtakes=nan"), "whole number"),
        ((*PRESET, "--sweep", "slots=2.5"), "slots=2.5: slots must be a whole number from 1 to"),
        ((*PRESET, "--sweep", "slots=inf"), "whole number"),
        ((*PRESET, "--sweep", "kv_blocks=1e300"), "from 1 to"),
        ((*PRESET, "--sweep", "replicas=0"), "from 1 to"),
        ((*PRESET, "--sweep", "tau=0"), "tau must be above 0"),
        ((*PRESET, "--load", "0.9", "--cv", "-1"), "coefficient of variation"),
        ((*PRESET, "--predictor", "build/p"), "without prompts"),
        ((*PRESET, "--kv-blocks", "3"), "can never run"),
        ((*PRESET, "--replicas", "2", "--router", "best"), "round-robin"),
        ((*PRESET, "--router", "round-robin"), "--router is for several engines"),
        ((*PRESET, "--cv", "1"), "--cv is for gaps at random"),
        ((*PRESET, "--load", "burst,trace", "--cv", "1"), "--cv is for gaps at random"),
        ((*PRESET, "--on", "ray", "--jobs", "2"), "--jobs is for the cores of this machine"),
        ((*PRESET, "--split", "test"), "trace without prompts"),
        ((*PRESET, "--policy", "srpt:pausing=on", "--no-pausing"), "leave --no-pausing out"),
        ((*PRESET, "--policy", "srpt:pausing=on;peek=on"), "it is a probe that looks"),
        ((*PRESET, "--policy", "srpt:shadow=true"), "'shadow' is for a server and not simulated"),
        ((*PRESET, "--policy", "srpt:tau_floor=0.9"), "'tau_floor' is for a server"),
        ((*PRESET, "--policy", "srpt:stand_in=oracle"), "'stand_in' is for a server"),
        ((*PRESET, "--policy", "srpt:client_priority=true"), "a trace has no classes"),
        ((*PRESET, "--policy", "srpt:max_tenant_lead=9"), "a trace has no tenants"),
        ((*PRESET, "--policy", "srpt:journal=j"), "'journal' is for a server"),
    ],
)
def test_simulate_says_what_is_wrong(
    command: Command, arguments: tuple[str, ...], message: str, trace_file: Path
) -> None:
    last = command.refusal(trace_file, *arguments)
    assert last.startswith("lengthwise: ")
    assert message in last
