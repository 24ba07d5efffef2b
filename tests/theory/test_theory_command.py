"""`lengthwise theory`: what it prints, what it reads, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from lengthwise.cli.theory import theory
from lengthwise.errors import InputError
from lengthwise.theory import (
    POLICIES,
    exponential,
    exponential_prediction,
    job_samples,
    mean_response_time,
    noisily_predicted,
    perfectly_predicted,
    size_samples,
)

COMMAND = "from lengthwise.cli.main import main; main()"


app = typer.Typer()
app.command()(theory)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("policy", POLICIES)
def test_the_command_prints_formula_and_simulation(policy: str) -> None:
    asked = ("--policy", policy, "--rate", 0.7, "--predictions", "exponential")
    result = run(*asked, "--jobs", 100_000, "--seed", 3, "--json")
    assert result.exit_code == 0
    values = json.loads(result.stdout)
    expected = mean_response_time(noisily_predicted(exponential()), 0.7, policy, 0.8)
    assert values["mean_response_time"] == pytest.approx(expected)
    assert values["ratio"] == pytest.approx(expected / values["simulated"])
    low, high = values["interval"]
    assert low < values["simulated"] < high
    assert values["load"] == values["rate"] == 0.7
    assert values["c"] == {"fcfs": None, "sjf": 0, "srpt": 1, "trail": 0.8}[policy]
    assert (values["policy"], values["predictions"]) == (policy, "exponential")
    assert (values["jobs"], values["seed"]) == (100_000, 3)
    assert values["preemptions_per_job"] >= 0
    assert values["mean_age_in_memory"] > 0
    table = run(*asked, "--no-simulation")
    assert f"{expected:.4f}" in table.stdout
    assert "simulated" not in table.stdout


def test_the_command_reads_columns_of_a_table(tmp_path: Path) -> None:
    path = tmp_path / "lengths.csv"
    path.write_text("tokens,guess\n100,90\n300,500\n200,10\n")
    jobs = job_samples([0.5, 1.5, 1.0], [0.45, 2.5, 0.05])
    for predictions, law in (
        ("guess", jobs),
        ("perfect", perfectly_predicted(size_samples(jobs.sizes))),
        ("exponential", noisily_predicted(size_samples(jobs.sizes), exponential_prediction)),
    ):
        result = run(
            "--size", f"{path}#tokens", "--predictions", predictions, "--no-simulation", "--json"
        )
        values = json.loads(result.stdout)
        assert values["mean_response_time"] == pytest.approx(
            mean_response_time(law, 0.7, "trail", 0.8)
        )
        assert values["simulated"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--rate", 1.2), "the load is 1.2: from 1 on the queue grows without bound"),
        (("--rate", 1), "grows without bound"),
        (("--rate", 0), "above 0"),
        (("--rate", "nan"), "above 0"),
        (("--policy", "srtp"), "did you mean 'srpt'"),
        (("--c", 1.5), "from 0 to 1"),
        (("--c", "nan"), "from 0 to 1"),
        (("--predictions", "good"), "exponential, perfect"),
        (("--size", "lognormal"), "lognormal:0.8"),
        (("--size", "weibull:x"), "weibull:0.8"),
        (("--size", "pareto:2"), "unknown law of sizes"),
        (("--size", "exponential:2"), "unknown law of sizes 'exponential:2': did you mean 'expon"),
        (("--size", "nowhere.csv#tokens"), "no such file"),
        (("--size", "{table}#token"), "did you mean 'tokens'"),
        (("--size", "{table}#tokens"), "row 2: tokens is not a number: 'many'"),
        (("--size", "{huge}#tokens"), "row 1: tokens is not a number: 1000"),
        (("--size", "{table}#guess"), "every size must be above 0, got -3"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, arguments: tuple[object, ...], words: str) -> None:
    table = tmp_path / "table.csv"
    table.write_text("tokens,guess\n5,4\nmany,-3\n")
    huge = tmp_path / "huge.jsonl"
    huge.write_text('{"tokens": 1' + 400 * "0" + "}\n")
    texts = (str(each).replace("{table}", str(table)) for each in arguments)
    result = run(*(text.replace("{huge}", str(huge)) for text in texts))
    assert isinstance(result.exception, InputError)
    assert result.exception.exit_code == 2
    assert words in str(result.exception)
    assert "\n" not in str(result.exception)
    assert result.stdout == ""


def test_a_full_server_ends_with_2_and_one_line() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", COMMAND, "theory", "--rate", "1"],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    assert "the queue grows without bound" in ended.stderr
