"""What a user can get wrong: one line that says what and how to mend it, and an exit code."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from lengthwise.cli.main import app
from lengthwise.serve.settings_file import AskedFor, own_settings_file
from tests.support.command_line import Run

PRESET = ("--model", "llama-3-8b", "--gpu", "h100")
LONG = "x" * 300  #: a name that no file can have: to look whether there is one is an error
VERBS: list[str] = list(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.csv"
    path.write_text("prompt,response_tokens\nhello,3\nbye,5\n")
    return path


def test_every_verb_has_help_with_an_example(run: Run) -> None:
    for verb in VERBS:
        ended = run(verb, "--help")
        assert ended.code == 0
        assert f"lengthwise {verb}" in " ".join(ended.out.split())


def test_the_version_is_printed(run: Run) -> None:
    assert run("--version").out.startswith("lengthwise ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bensh"], "bench"),
        (["bench"], "workload"),
        (["bench", "{table}", "--polcy", "fcfs"], "--policy"),
        (["bench", "{table}", "--requests", "0"], "--requests"),
        (["bench", "{table}", "--arrivals", "sometimes"], "poisson"),
        (["bench", "{table}", "--policy", "fcfz"], "did you mean 'fcfs'"),
        (["bench", "{table}", "--policy", "srpt"], "add --predictor DIR"),
        (["bench", "{table}", "--policy", "fcfs,srpt", "--predictor", "no/such"], "no/such"),
        (["bench", "{table}", "--policy", "fcfs", "--load", "much"], "1.05"),
        (["bench", "{table}", "--policy", "fcfs", "--arrivals", "trace", "--load", "1"], "arrival"),
        (["bench", "no/such.csv", "--policy", "fcfs"], "no/such.csv"),
        (["bench", "{table}", "--policy", "fcfs", "--split", "test"], "split"),
        (["bench", "{table}", "--policy", "fcfs", "--where", "model"], "COLUMN=VALUE"),
        (["bench", "{table}", "more.csv", "--policy", "fcfs"], "then -- and vLLM"),
        (["bench", "{table}", "--policy", "fcfs", "--model", "./nothing"], "config.json"),
        (["bench", "{table}", "--policy", "fcfs", "--", "--scheduler-cls", "x"], "--scheduler-cls"),
        (["serve"], "model"),
        (["serve", "reference", "--port", "0"], "--port"),
        (["serve", "reference", "--settings", LONG], "File name too long"),
        (["report", LONG], "File name too long"),
        (["train", f"{LONG}.csv", "--out", "p"], f"{LONG}.csv: File name too long"),
        (["compile"], "--into DIR"),
        (["compile", "--into", "/proc/nothing"], "--into"),
        (["serve", "--policy", "srpt", "--max-num-seqs", "4"], "name the model first"),
        (["serve", "reference", "--policy", "srpd"], "did you mean 'srpt'"),
        (["serve", "reference", "--predictor", "no/such"], "no/such"),
        (["serve", "--emulate", "a100"], "a100:llama-3-8b"),
        (["serve", "--emulate", "a100:gpt-9"], "llama-3-8b"),
        (["serve", "--emulate", "a10g:llama-3-70b"], "does not fit"),
        (["serve", "./nothing", "--emulate", "a100:llama-3-8b"], "names the model already"),
        (["serve", "--emulate", "a100:llama-3-8b", "--tensor-parallel-size", "2"], "2xa100"),
        (["serve", "./nothing"], "config.json"),
        (["serve", "reference", "--policy", "ltr", "--learn"], "add --log DIR"),
        (["serve", "reference", "--log-text"], "add --log DIR"),
        # What nothing would look at.
        (["serve", "reference", "--learn-every", "1000"], "add --learn"),
        (["bench", "reference", "--split", "test"], "--split is for a table"),
        (["bench", "reference", "--skip-malformed"], "--skip-malformed is for a table"),
        (["bench", "{table}", "--cv", "3"], "add --arrivals gamma"),
        (["bench", "{table}", "--speed", "2"], "add --arrivals trace"),
        (["bench", "{table}", "--trace", "{table}", "--arrivals", "gamma"], "add --arrivals trace"),
        (["bench", "{table}", "--policy", "fcfs", "--arrivals", "gamma"], "add --load or --rate"),
        (["simulate", "{table}", *PRESET, "--from", "3"], "--from is for a trace"),
        (["simulate", "{table}", *PRESET, "--to", "3"], "--to is for a trace"),
        (["simulate", "{table}", *PRESET, "--block-tokens", "16"], "--block-tokens is for a trace"),
        (["simulate", "{table}", *PRESET, "--answer-tokens", "9"], "--answer-tokens is for a"),
        (["doctor", "--log", "l", "--seconds", "3"], "--seconds is for a running server"),
        (["doctor", "--url", "http://a", "--slots", "3"], "--slots is for a log"),
        (["doctor", "--url", "http://a", "--jobs", "1"], "--jobs is for a log"),
        (["train", "{table}", "--out", "o", "--epochs", "3"], "add --backbone"),
        (["train", "--from-log", "l", "--out", "o", "--tokenizer", "reference"], "--tokenizer is"),
        (["train", "--from-log", "l", "--out", "o", "--turns", "all"], "--turns is for a table"),
        (["train", "--from-log", "l", "--out", "o", "--quotes"], "--quotes is for a table"),
        (["train", "--from-log", "l", "--out", "o", "--prompts", "p"], "--prompts is for a table"),
        (["train", "--from-log", "l", "--out", "o", "--skip-malformed"], "--skip-malformed is"),
        (["train", "--from-log", "l", "--out", "o", "--where", "a=b"], "--where is for a table"),
        (["evaluate", "p", "--across", "a,b", "--split", "test"], "--split does not go"),
        (["evaluate", "p", "{table}", "--ablation", "rows", "--plot", "p.svg"], "--ablation"),
        (["evaluate", "p", "{table}", "--backbone", "b"], "add --ablation backbone"),
        (["theory", "--no-simulation", "--jobs", "5000"], "--jobs is for the simulation"),
        (["theory", "--policy", "srpt", "--c", "0.8"], "--c is for trail"),
        (["report", "d", "--policy", "fcfs", "--json"], "leave one out"),
        (["collect", "reference", "--prompt-column", "a"], "a table of prompts"),
        (["inspect", ".", "--turns", "last"], "--turns is for a file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    run: Run, table: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    filled = [argument.replace("{table}", str(table)) for argument in arguments]
    if arguments[0] == "bench" and len(arguments) > 1:
        at = filled.index("--") if "--" in filled else len(filled)
        filled[at:at] = ["--out", str(tmp_path / "out")]
    ended = run(*filled)
    lines = ended.err.strip().splitlines()
    assert ended.code == 2
    assert ended.out == ""
    assert words in lines[-1]
    assert [line for line in lines if line.startswith("lengthwise: ")] == lines[-1:]
    assert "Traceback" not in ended.err


def test_malformed_rows_are_refused_unless_left_out(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("prompt,response_tokens\nhello,3\nbye,-5\n")
    ended = run("bench", str(path), "--policy", "fcfs", "--out", str(tmp_path / "out"))
    assert ended.code == 2
    assert "row 2" in ended.err
    assert "--skip-malformed" in ended.err


def test_a_port_in_use_is_refused_at_once(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = str(other.getsockname()[1])
        ended = run("serve", "reference", "--policy", "fcfs", "--port", port)
    assert ended.code == 2
    assert f"port {port}" in ended.err
    assert "--port" in ended.err
    assert not list(tmp_path.iterdir()), "the settings of whoever has the port"


def test_machines_that_share_a_home_do_not_share_the_settings_of_a_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    files = set()
    for machine in ("node-a", "node-b"):
        monkeypatch.setattr(socket, "gethostname", lambda machine=machine: machine)
        files |= {own_settings_file(8000), own_settings_file(8001)}
    assert len(files) == 4
    assert all(path.is_relative_to(tmp_path) for path in files)


def test_a_home_that_cannot_be_written_is_said(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "lengthwise").write_text("no folder")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    ended = run("serve", "reference", "--policy", "fcfs")
    assert ended.code == 2
    assert "--settings" in ended.err


def test_metrics_listen_where_the_server_does() -> None:
    assert AskedFor("srpt:metrics_port=9000").settings(None, "::1").metrics_host == "::1"
    given = AskedFor("srpt:metrics_host=10.0.0.1").settings(None, "127.0.0.1")
    assert given.metrics_host == "10.0.0.1"


def test_serve_refuses_to_overwrite_your_settings_file(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text('{"policy": "fcfs"}')
    ended = run("serve", "reference", "--settings", str(path), "--policy", "srpt")
    assert ended.code == 2
    assert "leave --policy" in ended.err
    assert path.read_text() == '{"policy": "fcfs"}'


def test_serve_refuses_a_broken_settings_file(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text('{"polixy": "fcfs"}')
    ended = run("serve", "reference", "--settings", str(path))
    assert ended.code == 2
    assert "did you mean 'policy'" in ended.err


def test_results_that_cannot_be_written_are_refused(run: Run, table: Path) -> None:
    ended = run("bench", str(table), "--policy", "fcfs", "--out", str(table))
    assert ended.code == 2
    assert "--out" in ended.err


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['lengthwise', '--help']\n"
        "from lengthwise.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'vllm', 'numba', 'matplotlib', 'pyarrow'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip().splitlines()[-1] == "[]"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the full disk is Linux's")
def test_a_full_disk_below_the_output_is_one_line(table: Path) -> None:
    code = (
        f"import sys; sys.argv = ['lengthwise', 'inspect', {str(table)!r}, '--json']\n"
        "from lengthwise.cli.main import main\n"
        "main()"
    )
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert last == "lengthwise: output cannot be written: No space left on device"
    assert "Traceback" not in ended.stderr
