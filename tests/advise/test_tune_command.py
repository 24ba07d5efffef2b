"""`lengthwise tune`: what it writes, what it says, and what it refuses."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lengthwise.advise.sweep import Workload
from lengthwise.advise.tune import Candidate, Judged, Tuning
from lengthwise.compare.specs import parse_policies
from lengthwise.compare.tuned import chosen_settings
from lengthwise.predict.tokenizer import REFERENCE, load_tokenizer
from lengthwise.settings import Settings, read_settings
from tests.support.command_line import Run
from tests.support.recorded_log import ENGINE, traffic, write_log

SLOTS = 8


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


def test_the_settings_name_what_they_can_and_the_rest_is_said() -> None:
    judged = Judged(Candidate("srpt"), [], [], np.ones(1), np.ones((1, 1)))
    result = Tuning(judged, "", judged, [judged], [], 0)
    settings, to_do = chosen_settings(result, "prompt-length", probed=False)
    assert (settings.predictor, to_do) == ("prompt-length", "")
    settings, to_do = chosen_settings(result, "noisy-oracle:0.7", probed=True)
    assert settings.predictor == "declared"
    assert "--predictor DIR" in to_do
    assert "serve with --probe DIR" in to_do


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


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_a_learnt_predictor_is_named_in_the_settings(
    run: Run, trace_file: Path, prompts: Path, tmp_path: Path
) -> None:
    from lengthwise.predict.train import train
    from lengthwise.workload.dataset import load_dataset

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
