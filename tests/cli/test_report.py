"""`lengthwise report`: exit codes, one-line errors, and what goes to stdout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from lengthwise.cli.report import report
from lengthwise.errors import InputError
from tests.support.measure_rounds import write_run

app = typer.Typer()
app.command()(report)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def error_of(*arguments: object) -> str:
    """The message of the input error that the command ends with, checked to be one line."""
    result = run(*arguments)
    assert isinstance(result.exception, InputError)
    message = str(result.exception)
    assert "\n" not in message
    return message


def test_json_is_all_there_is_on_stdout(tmp_path: Path) -> None:
    write_run(tmp_path)
    result = run(tmp_path, "--json", "--goodput", "e2el:3000")
    assert result.exit_code == 0
    rows = json.loads(result.stdout)
    assert [row["policy"] for row in rows] == ["fcfs", "ltr", "oracle"]
    assert rows == json.loads((tmp_path / "results.json").read_text())
    assert (tmp_path / "report.html").exists()
    assert rows[0]["request_goodput"] == 0
    # All of the oracle's answers came within 3 s; its rounds took 3 s and 1.5 s.
    assert rows[2]["request_goodput"] == pytest.approx((3 / 3 + 3 / 1.5) / 2)


def test_the_table_and_one_policy_alone(tmp_path: Path) -> None:
    write_run(tmp_path)
    table = run(tmp_path)
    assert "All at once" in table.stdout
    assert "2.00" in table.stdout
    alone = run(tmp_path, "--policy", "ltr")
    assert alone.stdout.startswith("ltr, All at once\n============ Serving Benchmark Result")
    assert "unknown policy 'lt': did you mean 'ltr'?" in error_of(tmp_path, "--policy", "lt")


def test_a_run_that_was_cut_off(tmp_path: Path) -> None:
    write_run(tmp_path)
    lines = (tmp_path / "rounds.jsonl").read_text().splitlines()
    (tmp_path / "rounds.jsonl").write_text("\n".join([*lines[:4], lines[4][:30]]))
    result = run(tmp_path, "--json")
    assert result.exit_code == 0
    assert "line 5 of rounds.jsonl is cut off" in result.stderr
    assert [row["rounds"] for row in json.loads(result.stdout)] == [1, 1, 1]
    assert "is cut off" in (tmp_path / "report.html").read_text()


def test_folders_without_results(tmp_path: Path) -> None:
    assert "is not a folder" in error_of(tmp_path / "nowhere")
    assert "give the --out folder of `lengthwise bench`" in error_of(tmp_path)
