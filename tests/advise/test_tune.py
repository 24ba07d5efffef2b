"""The tuner: what it may choose, that its choice keeps its promises, and what it says otherwise."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lengthwise.advise import candidates
from lengthwise.advise import tune as tuning
from lengthwise.advise.candidates import MARGIN, ORDERS, PAUSING, REFINEMENTS, Candidate, grid
from lengthwise.advise.cell import Cell, Figures, Workload, arrivals_of, run_cell, summary
from lengthwise.advise.objectives import (
    LATENCIES,
    MAX_WAIT,
    OBJECTIVES,
    Cap,
    gain,
    parse_caps,
    require_objective,
)
from lengthwise.advise.tune import FRESH, FRESH_SEEDS, Tuning, tune
from lengthwise.compare.specs import parse_policies
from lengthwise.errors import InputError, LengthwiseError
from lengthwise.intervals import t_interval
from lengthwise.policy.discipline import make_discipline
from lengthwise.predict.tokenizer import REFERENCE, load_tokenizer
from lengthwise.settings import Settings, read_settings
from lengthwise.simulate.engine_settings import EngineSettings
from lengthwise.simulate.simulation import simulate
from lengthwise.simulate.step_cost import StepCost
from lengthwise.workload.synthetic import synthetic_trace
from tests.support.command_line import Run
from tests.support.recorded_log import ENGINE, traffic, write_log

SLOTS = 8
BASE = Cell(
    label="",
    discipline={},
    load="1.1",
    cost=StepCost(7e-3, 32e-6, 32e-6),
    engine=EngineSettings(slots=SLOTS),
    predictor="noisy-oracle:0.6",
)
CAPS = (Cap("p99-e2el", 1.25),)


@pytest.fixture(scope="module")
def workload() -> Workload:
    return Workload(synthetic_trace(200, 5.0, mean_prompt=80, mean_output=80, sigma=0.9, seed=4))


@pytest.fixture(scope="module")
def tuned(workload: Workload) -> Tuning:
    return tune(workload, BASE, "mean-e2el", CAPS, jobs=1)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A smaller grid, where it does not matter what is on it."""
    monkeypatch.setattr(candidates, "_OVERTAKES", ((1.0, 0.0), (1.0, 0.5)))
    monkeypatch.setattr(candidates, "_BLENDS", (1.0, 0.7))


def play(candidate: Candidate, workload: Workload, seed: int, **cell: Any) -> Figures:
    return run_cell(replace(BASE, discipline=candidate.discipline, seed=seed, **cell), workload)


# What is asked ------------------------------------------------------------------------------


def test_caps_are_read() -> None:
    caps = parse_caps(["p99-e2el=1.1", "max-wait-s=30"])
    assert caps == [Cap("p99-e2el", 1.1), Cap("max-wait-s", 30.0)]
    assert [str(cap) for cap in caps] == ["p99-e2el ≤ 1.1 × fcfs", "max-wait ≤ 30 s"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("p99-e2e=1.1", "did you mean 'p99-e2el'?"),
        ("latency=1", "max-wait-s, mean-e2el"),
        ("p99-e2el", "times the figure of fcfs"),
        ("p99-e2el=0", "above 0"),
        ("p99-e2el=-1", "above 0"),
        ("p99-e2el=inf", "above 0"),
        ("max-wait-s=long", "in seconds"),
    ],
)
def test_a_wrong_cap_is_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        parse_caps([text])


def test_a_cap_twice_and_an_unknown_objective_are_refused() -> None:
    with pytest.raises(InputError, match="twice"):
        parse_caps(["p99-e2el=1.1", "p99-e2el=1.2"])
    with pytest.raises(InputError, match="goodput, mean-e2el"):
        require_objective("throughput")


def test_gains_and_caps_by_hand() -> None:
    fcfs = dict.fromkeys(LATENCIES.values(), 200.0)
    fcfs |= {"request_goodput": 2.0, "duration": 10.0, "max_waiting_time_ms": 9000.0}
    policy = dict.fromkeys(LATENCIES.values(), 160.0)
    policy |= {"request_goodput": 3.0, "duration": 10.0, "max_waiting_time_ms": 12000.0}
    for objective in OBJECTIVES:
        assert gain(objective, policy, fcfs) == (1.5 if objective == "goodput" else 1.25)
    assert gain("goodput", policy, {**fcfs, "request_goodput": 0.0}) == pytest.approx(30.0)
    assert Cap("p99-e2el", 1.1).measured(policy, fcfs) == 0.8
    assert Cap(MAX_WAIT, 30.0).measured(policy, fcfs) == 12.0


def test_goodput_counts_requests_that_meet_every_objective(workload: Workload) -> None:
    trace = arrivals_of(BASE, workload.trace)
    served = simulate(trace, make_discipline("fcfs"), BASE.cost, BASE.engine)
    figures = summary(served, {"ttft": 900.0, "tpot": 9.0})
    tpot = np.nan_to_num(served.tpot_s)
    good = sum(
        first <= 0.9 and later <= 0.009 for first, later in zip(served.ttft_s, tpot, strict=True)
    )
    assert 0 < good < len(workload.trace)
    assert figures["request_goodput"] == pytest.approx(good / served.makespan_s)
    assert "request_goodput" not in summary(served)


def test_labels_are_policies_that_other_verbs_understand() -> None:
    found = list(grid(SLOTS, [Cap(MAX_WAIT, 30.0)], pauses=True, looks=True))
    labels = [each.label for each in found]
    assert len(set(labels)) == len(labels)
    parsed = parse_policies(labels, "declared")
    for each in found:
        ours = make_discipline(**each.discipline)
        theirs = make_discipline(**parsed[each.label].discipline_arguments(SLOTS))
        for name in ("policy", "parameters", "guards", "preemption", "blend", "pausing", "peek"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name)), each.label
    policies = {each.policy for each in found}
    assert policies == {*ORDERS, *(name for name, _ in (*REFINEMENTS, *PAUSING))}
    stalls = {each.guards["max_stall_s"] for each in found if each.guards.get("pausing")}
    assert len(stalls) > 1
    assert any(each.guards.get("peek") for each in found)
    without = list(grid(SLOTS))
    assert not any(each.guards.get("pausing") for each in without), "nobody can be paused there"
    assert not any(each.guards.get("peek") for each in grid(SLOTS, pauses=True)), "without a probe"


# What is chosen -----------------------------------------------------------------------------


def test_the_choice_keeps_its_promises_on_seeds_that_chose_nothing(
    tuned: Tuning, workload: Workload
) -> None:
    chosen = tuned.chosen
    assert tuned.reason == ""
    assert len(chosen.gains) == FRESH_SEEDS
    for place, gained in enumerate(chosen.gains):
        seed = BASE.seed + FRESH + place
        ours = play(chosen.candidate, workload, seed)
        fcfs = play(Candidate("fcfs"), workload, seed)
        assert gained == pytest.approx(fcfs["mean_e2el_ms"] / ours["mean_e2el_ms"])
        assert gained > 1.0
        assert ours["p99_e2el_ms"] <= (1.0 - MARGIN) * 1.25 * fcfs["p99_e2el_ms"]


def test_the_choice_is_near_the_best_of_all_on_an_unseen_seed(
    tuned: Tuning, workload: Workload
) -> None:
    seeds = (50,)
    fcfs = [play(Candidate("fcfs"), workload, seed) for seed in seeds]
    gains: dict[str, float] = {}
    for each in grid(SLOTS):
        rows = [play(each, workload, seed) for seed in seeds]
        pairs = list(zip(rows, fcfs, strict=True))
        if each == tuned.chosen.candidate or all(
            CAPS[0].measured(row, base) <= CAPS[0].limit for row, base in pairs
        ):
            gains[each.label] = float(np.mean([gain("mean-e2el", *pair) for pair in pairs]))
    assert gains[tuned.chosen.candidate.label] >= 0.95 * max(gains.values())


@pytest.mark.usefixtures("small")
def test_where_the_first_token_counts_pauses_and_looks_are_chosen(workload: Workload) -> None:
    engine = replace(BASE.engine, max_seqs=4 * SLOTS)
    chosen = tune(
        workload, replace(BASE, engine=engine, probe="noisy-oracle:0.8"), "mean-ttft", (), jobs=1
    ).chosen
    assert chosen.candidate.guards["pausing"]
    assert "peek" in chosen.candidate.guards
    assert chosen.figures[0]["pauses"] > 0
    assert chosen.figures[0]["looks"] > 0


def test_nothing_on_the_front_is_bettered_on_both(tuned: Tuning) -> None:
    others = [each for each in tuned.front if each is not tuned.chosen]
    assert tuned.chosen in tuned.front
    # fcfs itself, or what keeps the cap better and gains besides.
    assert others[0].candidate.policy == "fcfs" or others[0].measured.mean() <= 1.0
    caps = [float(each.measured.mean()) for each in tuned.front]
    assert caps == sorted(caps)
    gains = [each.gain for each in others]
    assert gains == sorted(gains)
    assert tuned.ideal.gain > 1.1


@pytest.mark.usefixtures("small")
def test_a_long_trace_is_narrowed_on_a_stretch_and_judged_whole(
    workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "_STRETCH", 120)
    stages: list[tuple[str, int]] = []
    result = tune(
        workload,
        BASE,
        "mean-latency-per-output-token",
        (),
        jobs=1,
        stage=lambda title, total: stages.append((title, total)),
    )
    assert any("whole" in title for title, _ in stages)
    assert sum(total for _, total in stages) == result.simulations
    assert {row["completed"] for row in result.chosen.figures} == {len(workload.trace)}
    assert result.chosen.gain > 1.1


def test_traffic_that_does_not_queue_has_nothing_to_gain(workload: Workload) -> None:
    result = tune(workload, replace(BASE, load="0.2"), "mean-e2el", CAPS, jobs=1)
    assert result.chosen.candidate.policy == "fcfs"
    assert "nothing to gain" in result.reason
    assert result.simulations < 5


@pytest.mark.usefixtures("small")
def test_a_cap_that_nothing_keeps_leaves_fcfs(workload: Workload) -> None:
    result = tune(workload, BASE, "mean-e2el", [Cap(MAX_WAIT, 0.05)], jobs=1)
    assert result.chosen.candidate.policy == "fcfs"
    assert "neither does fcfs" in result.reason


@pytest.mark.usefixtures("small")
def test_a_cap_on_waiting_can_choose_the_guard_on_waiting(workload: Workload) -> None:
    fcfs = play(Candidate("fcfs"), workload, 0)
    cap = Cap(MAX_WAIT, 1.5 * fcfs["max_waiting_time_ms"] / 1000.0)
    result = tune(workload, BASE, "p50-e2el", [cap], jobs=1)
    assert result.chosen.measured.max() <= (1.0 - MARGIN) * cap.limit
    assert result.chosen.gains.min() > 1.0


@pytest.mark.usefixtures("small")
def test_a_dead_worker_costs_its_candidate_and_a_dead_fcfs_the_run(
    workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ailing(policy: str) -> Callable[..., list[Figures]]:
        def run(cells: list[Cell], served: Workload, **_: Any) -> list[Figures]:
            return [
                {"policy": cell.label, "error": "its worker died"}
                if cell.label == policy
                else run_cell(cell, served)
                for cell in cells
            ]

        return run

    monkeypatch.setattr(candidates, "run_sweep", ailing("sjf"))
    result = tune(workload, BASE, "mean-e2el", (), jobs=1)
    assert result.chosen.candidate.label != "sjf"
    monkeypatch.setattr(candidates, "run_sweep", ailing("fcfs"))
    with pytest.raises(LengthwiseError, match="its worker died"):
        tune(workload, BASE, "mean-e2el", (), jobs=1)


def test_intervals_are_those_of_student() -> None:
    # Mean 2, standard deviation 1, n = 4; t(0.975, 3) = 3.1824.
    low_high = t_interval(np.array([1.0, 2.0, 3.0, 2.0]))
    assert low_high is not None
    half = 3.18245 * math.sqrt(2.0 / 3.0) / 2.0
    assert low_high == pytest.approx((2.0 - half, 2.0 + half), rel=1e-4)
    assert t_interval(np.array([1.0])) is None


# The command line ---------------------------------------------------------------------------


@pytest.fixture
def run(run: Run) -> Run:
    return partial(run, "tune")


@pytest.fixture
def trace_file(tmp_path: Path, workload: Workload) -> Path:
    trace = workload.trace
    lines = ["arrival_s,prompt_tokens,output_tokens"]
    rows = zip(trace.arrival_s, trace.prompt_tokens, trace.output_tokens, strict=True)
    lines += [f"{arrival:.6f},{prompt},{output}" for arrival, prompt, output in rows]
    path = tmp_path / "trace.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


BUSY = ("--load", "1.1", "--slots", str(SLOTS), "--jobs", "1")


@pytest.mark.usefixtures("small")
def test_the_command_writes_settings_that_serve_takes(run: Run, trace_file: Path) -> None:
    out = trace_file.parent / "made" / "settings.json"
    caps = ("--cap", "p99-e2el=1.3", "--objective", "mean-latency-per-output-token")
    ended = run(str(trace_file), *BUSY, *caps, "--out", str(out), "--json")
    assert ended.code == 0, ended.err
    assert "the preset h100:llama-3-8b" in ended.err
    document = json.loads(ended.out)
    settings, _ = read_settings(out)
    chosen = document["chosen"]
    assert settings.policy == chosen["policy"].partition(":")[0] != "fcfs"
    assert settings.predictor == "declared"
    assert "--predictor DIR" in document["note"]
    assert chosen["caps"]["p99-e2el"]["worst"] <= 1.3
    low, high = chosen["gain_interval"]
    assert 1.0 < low <= chosen["gain"] <= high
    parsed = parse_policies([chosen["policy"]], "declared")[chosen["policy"]]
    # As it was simulated, but that poor predictions are not believed, as for every server, and that
    # requests are paused only where the engine can.
    pausing = "auto" if parsed.pausing else False
    assert settings == parsed.model_copy(
        update={"tau_floor": Settings().tau_floor, "pausing": pausing}
    )


@pytest.mark.usefixtures("small")
def test_the_command_says_what_it_chose(run: Run, trace_file: Path, tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "settings.json"))
    ended = run(str(trace_file), *BUSY, "--objective", "goodput", "--slo", "ttft:500", *out)
    assert ended.code == 0, ended.err
    assert ended.out.startswith("Chosen: ")
    assert "× better than fcfs" in ended.out
    assert "What more would cost" in ended.out
    assert "the queue grows" in ended.err


def test_a_quiet_trace_gets_fcfs_and_is_told_why(run: Run, trace_file: Path) -> None:
    out = trace_file.parent / "settings.json"
    ended = run(str(trace_file), "--jobs", "1", "--out", str(out))
    assert ended.code == 0, ended.err
    assert "nothing to gain" in ended.out
    assert "--load 0.9" in ended.out
    assert read_settings(out)[0].policy == "fcfs"


@pytest.mark.usefixtures("small")
def test_a_recorded_folder_brings_its_engine_and_costs(run: Run, tmp_path: Path) -> None:
    log = tmp_path / "log"
    write_log(log, traffic(12.0, count=300))
    out = ("--out", str(tmp_path / "settings.json"), "--jobs", "1", "--json")
    ended = run(str(log), "--skip-malformed", "--objective", "p50-e2el", *out)
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    assert document["engine"]["slots"] == ENGINE.slots
    assert document["cost"]["source"].startswith("fitted to")
    assert document["chosen"]["gain"] > 1.0


@pytest.mark.usefixtures("small")
def test_a_learnt_predictor_is_named_in_the_settings(
    run: Run, trace_file: Path, tmp_path: Path
) -> None:
    from lengthwise.predict.train import train
    from lengthwise.workload.dataset import load_dataset

    rows = [
        {"prompt": f"List {n} facts about {word}.", "response_tokens": 10 + 20 * n}
        for n in range(1, 11)
        for word in ("rain", "iron", "owls", "salt", "jazz", "rope")
    ]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "p"
    train(load_dataset(prompts), load_tokenizer(REFERENCE)).save(folder)
    out = tmp_path / "settings.json"
    quick = ("--objective", "p50-e2el", "--out", str(out), "--json")
    ended = run(str(trace_file), *BUSY, "--predictor", str(folder), *quick)
    assert ended.code == 0, ended.err
    assert "a trace has no prompts" in ended.err
    document = json.loads(ended.out)
    assert document["predictor"].startswith("noisy-oracle:")
    assert document["note"] == ""
    assert read_settings(out)[0].predictor == str(folder)

    ended = run(str(prompts), "--slots", "4", "--jobs", "1", "--predictor", str(folder), *quick)
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["predictor"] == "given"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--objective", "speed"), "known are goodput, mean-e2el"),
        (("--cap", "p99=1"), "p99-e2el"),
        (("--cap", "p99-e2el=0"), "above 0"),
        (("--objective", "goodput"), "--slo ttft:500"),
        (("--slo", "ttft:500"), "--objective goodput"),
        (("--objective", "goodput", "--slo", "ttft"), "ttft:MS"),
        (("--load", "fast"), "must be a number"),
        (("--model", "llama-3-8b"), "--gpu h100"),
        (("--predictor", "no-such-folder"), "noisy-oracle"),
        (("--out", "/dev/null/settings.json"), "cannot write"),
    ],
)
def test_wrong_options_are_one_line(
    arguments: tuple[str, ...], message: str, run: Run, trace_file: Path
) -> None:
    ended = run(str(trace_file), "--jobs", "1", *arguments)
    assert ended.code == 2
    assert ended.out == ""
    last = ended.err.strip().splitlines()[-1]
    assert last.startswith("lengthwise: ")
    assert message in last


def test_an_empty_trace_is_refused(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "empty.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n")
    ended = run(str(path))
    assert ended.code == 2
    assert "empty" in ended.err
