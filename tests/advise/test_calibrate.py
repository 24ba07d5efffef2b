"""Calibration finds the costs of an engine that is itself a simulation, and repeats its rounds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.advise.calibrate import TERMS, Clock, bends_of, fit_cost, knots_from, ramps, steady
from lengthwise.advise.fidelity import METRICS, SPEEDS, agreement, by_round, compare
from lengthwise.compare.engine_log import read_measured
from lengthwise.errors import InputError
from lengthwise.simulate.engine import StepCost, read_cost, read_engine
from lengthwise.simulate.presets import preset
from tests.support.command_line import Command, Run
from tests.support.measured_folder import COST, ENGINE, rewrite_lines, write_folder, write_lines

DELAY_S = 0.03


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two repeats of fcfs and srpt."""
    folder = tmp_path_factory.mktemp("bench")
    write_folder(folder, cost=replace(COST, delay_s=DELAY_S))
    return folder


@pytest.fixture
def folder(recorded: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(recorded, tmp_path / "bench"))


def change_steps(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    for path in folder.glob("server/rounds/*/steps.jsonl"):
        rewrite_lines(path, change)


def without(*names: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda line: {key: value for key, value in line.items() if key not in names}


@pytest.mark.parametrize("line", ['{"t": 1, "durat', "5", "[1]", '{"duration_s": "soon"}'])
def test_a_round_whose_steps_are_damaged_is_left_out_and_said(folder: Path, line: str) -> None:
    with (folder / "server" / "rounds" / "001" / "steps.jsonl").open("a") as file:
        file.write(line + "\n")
    rounds, notes = read_measured(folder)
    assert [each.info.round for each in rounds] == [0, 2, 3]
    assert notes == ["round 1 was left out: its steps are damaged"]


def test_known_costs_are_found_again(recorded: Path) -> None:
    rounds, notes = read_measured(recorded)
    assert notes == []
    fit = fit_cost(rounds)
    assert fit.left_out == {}
    for name in TERMS:
        assert getattr(fit.cost, name) == pytest.approx(getattr(COST, name), rel=1e-4)
        assert fit.standard_errors[name] < 1e-4 * getattr(COST, name)
    assert fit.r2 == pytest.approx(1.0)
    assert fit.mape < 1e-5
    assert fit.outliers == 0
    assert fit.steps + fit.idle == sum(len(each.steps["t"]) for each in rounds)
    # A request comes anywhere in a step, so the delay is known to a part of a step.
    assert fit.cost.delay_s == pytest.approx(DELAY_S, abs=0.003)


def test_a_curve_over_tokens_is_fitted_where_there_is_one(tmp_path: Path) -> None:
    a100 = preset("a100", "llama-3-8b").cost
    write_folder(tmp_path, cost=a100)
    rounds, _ = read_measured(tmp_path)
    fit = fit_cost(rounds)
    assert fit.cost.linear
    assert fit.mape < 0.01
    tokens = np.array([2.0, 8, 64, 128, 256])
    work = np.stack([tokens, np.zeros(5), tokens, np.ones(5), tokens**2 / 2], axis=1)
    assert fit.cost.seconds(work) == pytest.approx(a100.seconds(work), rel=0.12)
    fit.cost.write(tmp_path / "cost.json")
    assert read_cost(tmp_path / "cost.json") == fit.cost


def test_bends_leave_enough_steps_between_them() -> None:
    generator = np.random.default_rng(0)
    tokens = np.concatenate([generator.integers(1, 9, 500), generator.integers(50, 400, 200)])
    bends = bends_of(tokens.astype(float))
    assert (bends[0], bends[-1]) == (1.0, tokens.max())
    counts, _ = np.histogram(tokens, bends)
    assert counts.min() >= 40
    slopes = np.arange(1.0, len(bends))
    curve = StepCost(1.0, 0.0, 0.0, linear=knots_from(bends, slopes))
    assert curve.linear_s(bends) == pytest.approx(ramps(bends, bends) @ slopes)
    assert len(bends_of(np.full(1000, 8.0))) == 0
    assert len(bends_of(np.empty(0))) == 0


def test_a_step_planned_ahead_takes_the_time_of_the_one_before(tmp_path: Path) -> None:
    write_folder(tmp_path, lag=1, cost=replace(COST, delay_s=DELAY_S))
    rounds, _ = read_measured(tmp_path)
    fit = fit_cost(rounds)
    assert fit.cost.terms == pytest.approx(COST.terms, rel=1e-3)
    assert fit.cost.delay_s == pytest.approx(DELAY_S, abs=0.005)
    for row in agreement(compare(rounds, rounds)):
        assert row["e2el"]["mean_error"] == pytest.approx(0.0, abs=0.01)


def test_a_round_that_was_simulated_is_simulated_again_exactly(recorded: Path) -> None:
    rounds, _ = read_measured(recorded)
    compared = compare(rounds, rounds)
    assert len(compared) == len(rounds) * len(SPEEDS)
    for row in agreement(compared):
        assert row["requests"] == 300
        # Swaps are looked for every few steps, and an engine that rests takes one more: an arrival
        # that is noted a little later moves them.
        swaps = row["policy"] != "fcfs"
        simulated = row["preemptions_simulated"]
        assert simulated == pytest.approx(row["preemptions_measured"], rel=0.1)
        for name in METRICS:
            assert row[name]["pearson"] > (0.99 if swaps else 0.9999)
            for error in ("mean_error", "p50_error", "p99_error"):
                assert row[name][error] == pytest.approx(0.0, abs=0.05 if swaps else 0.01)
        assert row["tpot"]["mape"] < (1e-2 if swaps else 1e-3)
        assert ("over_fcfs" in row) == (row["policy"] == "srpt")
    srpt = next(row for row in agreement(compared) if row["policy"] == "srpt")
    assert srpt["preemptions_measured"] > 0
    ratio = srpt["over_fcfs"]["e2el"]
    assert ratio["measured_mean"] < 0.9
    assert ratio["simulated_mean"] == pytest.approx(ratio["measured_mean"], rel=0.005)


def test_costs_come_from_other_repeats_than_the_compared_one(recorded: Path) -> None:
    rounds, _ = read_measured(recorded)
    rows = by_round(compare(rounds, rounds))
    assert [row["fitted_to"] for row in rows] == [[2, 3], [2, 3], [0, 1], [0, 1]]
    assert [row["fitted_to"] for row in by_round(compare(rounds[:2], rounds[:2]))] == [[1], [0]]
    assert [row["fitted_to"] for row in by_round(compare(rounds[:1], rounds[:1]))] == [[0]]
    again, _ = read_measured(recorded)
    assert by_round(compare(again[:1], rounds))[0]["fitted_to"] == [0, 1, 2, 3]


def test_a_machine_that_slows_down_is_told_from_a_wrong_model(
    recorded: Path, tmp_path: Path
) -> None:
    half_way = 3.0
    slowing = Clock(
        np.array([0.0, half_way, 1e7]),
        np.array([0.0, half_way, half_way + (1e7 - half_way) / 1.3]),
    )
    write_folder(tmp_path, clock=slowing, repeats=1)
    slow, _ = read_measured(tmp_path)
    fitted, _ = read_measured(recorded)
    rows = {(row["speed"], row["policy"]): row for row in agreement(compare(slow, fitted))}
    for policy in ("fcfs", "srpt"):
        errors = [abs(rows[speed, policy]["e2el"]["mean_error"]) for speed in SPEEDS]
        assert errors[0] > 0.15
        assert errors[1] < 0.1
        assert errors[2] < 0.02
    for row in by_round(compare(slow, fitted)):
        assert 1.0 < row["slowness"] < 1.3


def test_steps_that_took_far_too_long_are_left_out_and_counted(folder: Path) -> None:
    expected = fit_cost(read_measured(folder)[0])
    stalled = iter(range(10_000))
    change_steps(
        folder,
        lambda line: (
            {**line, "duration_s": 9.0}
            if line["duration_s"] is not None and next(stalled) % 1000 == 500
            else line
        ),
    )
    fit = fit_cost(read_measured(folder)[0])
    assert fit.outliers == len(range(500, next(stalled), 1000)) > 1
    assert 0.1 < fit.outlier_time < 0.9
    assert fit.cost.terms == pytest.approx(expected.cost.terms, rel=1e-3)


def test_steps_that_say_less_are_fitted_without_what_they_lack(folder: Path) -> None:
    change_steps(folder, without("requests", "kv_tokens", "attention_tokens"))
    rounds, _ = read_measured(folder)
    fit = fit_cost(rounds)
    assert fit.left_out["kv_s"] == fit.left_out["attention_s"] == "not recorded in every round"
    assert fit.cost.prefill_s == pytest.approx(COST.prefill_s, rel=0.3)
    assert fit.cost.delay_s == pytest.approx(DELAY_S, abs=0.01)
    fcfs = next(row for row in agreement(compare(rounds, rounds)) if row["speed"] == "second")
    assert fcfs["e2el"]["mean_error"] == pytest.approx(0.0, abs=0.02)


def test_what_cannot_be_told_apart_is_left_out_with_the_reason(folder: Path) -> None:
    change_steps(folder, lambda line: {**line, "kv_tokens": 40 * line["decode_tokens"] + 7})
    fit = fit_cost(read_measured(folder)[0])
    assert fit.cost.kv_s == 0.0
    assert "cannot be told apart" in fit.left_out["kv_s"]
    change_steps(folder, lambda line: {**line, "kv_tokens": 0, "attention_tokens": 5})
    left_out = fit_cost(read_measured(folder)[0]).left_out
    assert left_out["kv_s"] == "did not occur"
    assert left_out["attention_s"] == "the same in every step"


def test_a_cost_is_never_negative(folder: Path) -> None:
    longest = 0.2
    change_steps(
        folder,
        lambda line: {
            **line,
            "duration_s": None if line["duration_s"] is None else longest - 1e-3 * line["requests"],
        },
    )
    fit = fit_cost(read_measured(folder)[0])
    assert fit.cost.terms.min() == 0.0
    assert "the best fit gives it nothing" in fit.left_out.values()


def test_what_no_fit_can_use_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        read_measured(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"run\.json does not exist"):
        read_measured(tmp_path / "empty")
    rounds, _ = read_measured(folder)

    def with_steps(**columns: Any) -> Any:
        steps = {name: column.copy() for name, column in rounds[0].steps.items()}
        return replace(rounds[0], steps={**steps, **columns})

    few = {name: column[:150] for name, column in rounds[0].steps.items()}
    with pytest.raises(InputError, match="timed steps were recorded, 200 are needed"):
        fit_cost([with_steps(**few)])
    alike = np.ones(len(rounds[0].steps["t"]))
    names = ("prefill_tokens", "decode_tokens", "requests", "kv_tokens", "attention_tokens")
    with pytest.raises(InputError, match="all recorded steps did the same work"):
        fit_cost([with_steps(**dict.fromkeys(names, alike))])
    backwards = rounds[0].steps["duration_s"].copy()
    backwards[41] = -0.5
    with pytest.raises(InputError, match=r"round 0 \(fcfs, load 1.2\): step 42 took -0.5 s"):
        fit_cost([with_steps(duration_s=backwards)])

    for path in folder.glob("server/rounds/*/steps.jsonl"):
        path.unlink()
    with pytest.raises(InputError, match="holds no steps of the engine"):
        read_measured(folder)


def test_rounds_without_steps_or_answers_are_left_out_and_said(folder: Path) -> None:
    (folder / "server/rounds/001/steps.jsonl").unlink()
    rounds, notes = read_measured(folder)
    assert [each.info.round for each in rounds] == [0, 2, 3]
    assert notes == ["round 1 was left out: nothing tells what its steps took"]


def test_a_round_whose_steps_are_each_alone_is_left_out(tmp_path: Path) -> None:
    """With asynchronous scheduling it is the step after one that tells what that took."""
    write_folder(tmp_path, lag=1)
    path = tmp_path / "server/rounds/000/steps.jsonl"
    header, *steps = path.read_text().splitlines()
    alone = [
        json.dumps({**json.loads(line), **({"duration_s": None} if place % 2 else {})})
        for place, line in enumerate(steps)
    ]
    path.write_text("\n".join([header, *alone]) + "\n")
    rounds, notes = read_measured(tmp_path)
    assert notes == ["round 0 was left out: nothing tells what its steps took"]
    assert len(compare(rounds, rounds)) == len(rounds) * len(SPEEDS)


def test_the_record_of_a_server_that_was_started_again_is_read_on(folder: Path) -> None:
    path = folder / "server/rounds/000/steps.jsonl"
    before = len(read_measured(folder)[0][0].steps["t"])
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:50], lines[0], *lines[50:]]) + "\n")
    assert len(read_measured(folder)[0][0].steps["t"]) == before


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"slots": 4, "warp": 9}, "limits that this Lengthwise does not know"),
        ({}, "do not say what the engine's limits are"),  # no engine of 256 slots in its place
    ],
)
def test_unknown_limits_are_refused(folder: Path, engine: dict[str, int], message: str) -> None:
    path = folder / "server/rounds/000/steps.jsonl"
    lines = path.read_text().splitlines()[1:]
    header = {"schema": "lengthwise.steps/1", "engine": engine}
    write_lines(path, [header, *map(json.loads, lines)])
    with pytest.raises(InputError, match=message):
        read_measured(folder)


@given(
    st.lists(st.tuples(st.floats(0.01, 10.0), st.floats(0.1, 10.0)), min_size=1, max_size=8),
    st.lists(st.floats(0.0, 1000.0), min_size=1),
)
def test_a_clock_is_its_own_inverse(stretches: list[tuple[float, float]], at: list[float]) -> None:
    wall = np.cumsum([0.0, *(length for length, _ in stretches), 1e4])
    work = np.cumsum([0.0, *(length / slow for length, slow in stretches), 1e4])
    clock, times = Clock(wall, work), np.array(at)
    assert clock.wall_at(clock.work_at(times)) == pytest.approx(times, rel=1e-6, abs=1e-6)
    assert steady(2.0).wall_at(times) == pytest.approx(2.0 * times, rel=1e-9)


def test_the_command_writes_what_simulate_reads(run: Run, recorded: Path, tmp_path: Path) -> None:
    command = Command(run, "calibrate")
    other, out = tmp_path / "other", tmp_path / "sub" / "cost.json"
    write_folder(other, policies=("fcfs",), repeats=1, requests=60, seed=9)

    document = command.json(recorded, "--against", other, "--out", out)
    assert read_cost(out) == StepCost(**document["cost"])
    assert read_engine(out, {}) == ENGINE
    assert document["engine"] == asdict(ENGINE)
    speeds = [row["speed"] for row in document["fidelity"] if row["folder"] == str(other)]
    assert speeds == list(SPEEDS)
    assert document["rounds"][-1]["fitted_to"] == [0, 1, 2, 3]

    code, printed, _ = command(recorded, "--out", out)
    assert code == 0
    assert "Step costs" in printed
    assert "srpt" in printed

    assert command(tmp_path, "--out", out).code == 2
