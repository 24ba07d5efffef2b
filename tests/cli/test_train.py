"""The verbs `train` and `evaluate`, from the command line to their output and exit codes."""

from __future__ import annotations

import json
import math
import runpy
from pathlib import Path

import numpy as np
import pytest

from tests.support.command_line import Command, Run

BENCH = Path(__file__).parents[2] / "bench"
SHARED = Path(__file__).parents[3] / "shared" / "data"
VICUNA = SHARED / "prompts_alpaca_vicuna7b.parquet"
CASTILLO = SHARED / "prompts_castillo.parquet"
LLAMA = "model=meta-llama/Llama-3.1-8B-Instruct"

needs_data = pytest.mark.skipif(
    not (VICUNA.exists() and CASTILLO.exists()),
    reason="the shared tables of real answers are not beside the project",
)


@pytest.fixture
def command(run: Run) -> Command:
    return Command(run)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    path = tmp_path / "answers.jsonl"
    with path.open("w") as lines:
        for row in range(300):
            long = bool(random.integers(2))
            tokens = int(random.lognormal(6 if long else 3, 0.5)) + 1
            prompt = f"{'Write a story' if long else 'Say one word'} about number {row}"
            split = "test" if row % 3 == 0 else "train"
            lines.write(json.dumps({"prompt": prompt, "tokens": tokens, "split": split}) + "\n")
    return path


def test_train_then_evaluate(command: Command, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "p"
    columns = ("--length-column", "tokens")
    trained = command.json("train", table, *columns, "--split", "train", "--out", out)
    assert trained["schema"] == "lengthwise.predictor/2"
    assert trained["training"]["rows"] == 200
    result = command.json("evaluate", out, table, *columns, "--split", "test")
    assert result["rows"] == 100
    assert result["tau_low"] < result["tau"] < result["tau_high"]
    assert result["tau"] > 0.4
    assert result["ceiling_tau"] is None
    assert result["microseconds_p50"] <= result["microseconds_p99"]
    assert {"mae", "coverage_80", "prompt_length_tau"} <= result.keys()


def test_tables_for_people(command: Command, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "p"
    code, printed, shown = command("train", table, "--length-column", "tokens", "--out", out)
    assert code == 0
    assert "trained on 300 prompts" in printed
    assert "training" in shown
    code, printed, _ = command("evaluate", out, table, "--length-column", "tokens")
    assert code == 0
    assert "Kendall tau-b" in printed


@pytest.mark.parametrize("name", ["oracle", "noisy-oracle:0.5", "prompt-length", "declared"])
def test_baselines_are_evaluated_too(command: Command, table: Path, name: str) -> None:
    result = command.json("evaluate", name, table, "--length-column", "tokens", "--limit", 90)
    assert result["rows"] == 90
    assert result["unpredicted"] == (90 if name == "declared" else 0)
    if name == "oracle":
        assert result["tau"] == pytest.approx(1)
        assert result["mae"] == 0


def test_malformed_rows_are_refused_or_left_out_and_counted(
    command: Command, table: Path, tmp_path: Path
) -> None:
    with table.open("a") as lines:
        lines.write(json.dumps({"prompt": "Hi", "tokens": -4}) + "\n")
        lines.write(json.dumps({"prompt": "Hi", "tokens": math.nan}) + "\n")
    arguments = ("train", table, "--length-column", "tokens", "--out", tmp_path / "p")
    refusal = command.refusal(*arguments)
    assert "row 301: tokens is negative: -4" in refusal
    assert "malformed rows in all: 2" in refusal
    assert not (tmp_path / "p").exists()
    code, _, shown = command(*arguments, "--skip-malformed")
    assert code == 0
    assert "left out 2 malformed rows" in shown
    assert "row 302: tokens is NaN" in shown


def test_bad_input_is_one_line(command: Command, table: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "p")
    assert "no such file" in command.refusal("train", tmp_path / "none.csv", *out)
    assert "--length-column" in command.refusal("train", table, *out)
    assert "no column 'toks'" in command.refusal("train", table, "--length-column", "toks", *out)
    assert "COLUMN=VALUE" in command.refusal("train", table, "--where", "split", *out)
    assert "--limit" in command.refusal("train", table, "--limit", 0, *out)
    assert "--out" in command.refusal("train", table)
    assert "does not exist" in command.refusal("evaluate", tmp_path / "p", table)
    assert "unknown predictor 'orcale'" in command.refusal("evaluate", "orcale", table)
    # A picture that cannot be is refused first: predicting may take long.
    plot = ("evaluate", "orcale", table, "--plot")
    assert "a picture is one of" in command.refusal(*plot, tmp_path / "p.txt")
    assert "no such folder" in command.refusal(*plot, tmp_path / "none" / "p.svg")
    assert "holds no tokenizer" in command.refusal("train", table, "--tokenizer", tmp_path, *out)


@needs_data
def test_real_answers_of_vicuna_are_ranked(command: Command, tmp_path: Path) -> None:
    """The bar: tau 0.52 on the test split after 10,000 training rows."""
    out = tmp_path / "p"
    command.json("train", VICUNA, "--split", "train", "--limit", 10_000, "--out", out)
    result = command.json("evaluate", out, VICUNA, "--split", "test")
    assert result["tau"] >= 0.52
    assert result["tau"] > result["prompt_length_tau"] + 0.3
    assert result["coverage_80"] == pytest.approx(0.8, abs=0.03)
    assert result["mean_expected"] == pytest.approx(result["mean_length"], rel=0.05)


@needs_data
@pytest.mark.slow
def test_real_answers_of_llama_are_ranked(command: Command, tmp_path: Path) -> None:
    """The bar: tau 0.44 on the test split of CASTILLO, what words and characters can reach."""
    out = tmp_path / "p"
    trained = command.json("train", CASTILLO, "--where", LLAMA, "--split", "train", "--out", out)
    assert trained["training"]["answers"] == 10 * trained["training"]["rows"]
    result = command.json("evaluate", out, CASTILLO, "--where", LLAMA, "--split", "test")
    assert result["tau"] >= 0.44
    assert result["tau"] < result["ceiling_tau"] < 1
    assert result["coverage_80"] == pytest.approx(0.8, abs=0.05)


def test_every_part_of_an_evaluation_is_printed(
    command: Command, table: Path, tmp_path: Path
) -> None:
    out, picture = tmp_path / "p", tmp_path / "calibration.svg"
    columns = ("--length-column", "tokens")
    command.json("train", table, *columns, "--split", "train", "--out", out)
    result = command.json("evaluate", out, table, *columns, "--split", "test", "--plot", picture)
    assert result["kind"] == "lexical"
    assert result["loss"] == "listmle"
    assert {part["name"] for part in result["tau_by_task"]} == {"write", "say"}
    assert [timed["batch"] for timed in result["latency"]] == [1, 8, 64]
    assert len(result["tau_by_decile"]) == len(result["calibration"]) == 10
    assert result["training_seconds"] > 0
    assert picture.read_text().startswith("<?xml")
    code, printed, _ = command("evaluate", out, table, *columns, "--split", "test")
    assert code == 0
    assert "By task" in printed


@pytest.mark.parametrize("kind", ["lexical", "classify", "regress", "quantile"])
def test_every_kind_is_trained_by_name(
    command: Command, table: Path, tmp_path: Path, kind: str
) -> None:
    arguments = ("--length-column", "tokens", "--kind", kind, "--bucket", "20")
    trained = command.json("train", table, *arguments, "--out", tmp_path / "p")
    assert (trained["kind"], trained["bucket"]) == (kind, 20)


def test_an_ablation_trains_on_train_and_chooses_by_valid(
    command: Command, table: Path, tmp_path: Path
) -> None:
    lines = [json.loads(line) for line in table.read_text().splitlines()]
    for number, line in enumerate(lines):
        line["split"] = ("train", "train", "test", "valid")[number % 4]
    table.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "p"
    columns = ("--length-column", "tokens")
    command.json("train", table, *columns, "--split", "train", "--out", out)
    result = command.json(
        "evaluate", out, table, *columns, "--split", "test", "--ablation", "list-size,rows"
    )
    first = result["ablation"][0]
    assert (first["ablation"], first["setting"], first["rows"]) == ("list-size", "8", 150)
    assert first["taus"]["valid"]["rows"] == first["taus"]["test"]["rows"] == 75
    assert result["ablation"][-1]["ablation"] == "rows"
    refusal = command.refusal("evaluate", out, table, *columns, "--ablation", "features")
    assert "--split test" in refusal
    refusal = command.refusal(
        "evaluate", "oracle", table, *columns, "--split", "test", "--ablation", "rows"
    )
    assert "learns nothing" in refusal


def test_the_transfer_matrix_of_two_tables(command: Command, table: Path, tmp_path: Path) -> None:
    """One with a split of its own, one divided by a hash of its prompts."""
    lines = [json.loads(line) for line in table.read_text().splitlines()]
    other = tmp_path / "other.jsonl"
    rows = [
        {"prompt": line["prompt"], "tokens": line["tokens"], "model": "ab"[number % 2]}
        for number, line in enumerate(lines)
    ]
    other.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out, columns = tmp_path / "p", ("--length-column", "tokens")
    command.json("train", table, *columns, "--out", out)
    result = command.json("evaluate", out, "--across", f"{table},{other}:model=a", *columns)
    names = [table.stem, "other:model=a"]
    assert "no row has" in command.refusal(
        "evaluate", out, "--across", f"{table},{other}:model=c", *columns
    )
    found = result["across"]
    assert [list(each["taus"]) for each in found] == [names] * len(found)
    assert (found[0]["trained_on"], found[0]["rows"]) == (str(out), 300)
    assert {each["trained_on"] for each in found[1:]} == set(names)
    (tmp_path / "b").mkdir()
    same_name = tmp_path / "b" / table.name
    same_name.write_bytes(table.read_bytes())
    result = command.json("evaluate", out, "--across", f"{table},{same_name}", *columns)
    assert list(result["across"][0]["taus"]) == [str(table), str(same_name)]
    assert "twice: give each table once" in command.refusal(
        "evaluate", out, "--across", f"{table},{table}", *columns
    )
    assert "give a table" in command.refusal("evaluate", out)
    assert "learns nothing" in command.refusal(
        "evaluate", "oracle", "--across", f"{table}", *columns
    )


def test_conversations_are_trained_on_and_told(command: Command, tmp_path: Path) -> None:
    """From a file in ShareGPT's layout, with what is left out said and no flag given."""
    made = runpy.run_path(str(BENCH / "make_sharegpt.py"))
    path = tmp_path / "ShareGPT.json"
    path.write_text(json.dumps(list(made["dialogues"](60, 0))))
    code, _, shown = command("train", path, "--out", tmp_path / "p")
    assert code == 0
    assert "ShareGPT.json, read as sharegpt: " in shown
    assert "an answer without a prompt before it" in shown
    result = command.json("evaluate", tmp_path / "p", path, "--turns", "last")
    assert result["layout"] == "sharegpt"
    found = command.json("inspect", path)
    assert found["prompts"]["layout"] == "sharegpt"
    assert found["prompts"]["left_out"]["the conversation is empty"] >= 1
    code, told, _ = command("inspect", path)
    assert code == 0
    assert "Left out: the conversation is empty" in told
    refusal = command.refusal("inspect", BENCH / "make_sharegpt.py")
    assert "not from .py" in refusal


def test_evaluate_warns_of_prompts_that_hold_their_answers(
    command: Command, table: Path, tmp_path: Path
) -> None:
    command.json("train", table, "--length-column", "tokens", "--out", tmp_path / "p")
    answers = [f"{number} " * 25 for number in range(40)]
    rows = [{"prompt": f"Say: {answer}", "response": answer} for answer in answers]
    path = tmp_path / "leak.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, _, shown = command("evaluate", tmp_path / "p", path)
    assert code == 0
    assert "warning: 40 of 40 prompts hold their own answers" in shown
    assert command.json("evaluate", tmp_path / "p", path)["prompts_with_own_answer"] == 40
    assert "hold their own answers" in command.refusal("train", path, "--out", tmp_path / "q")


def test_recipes_that_cannot_be_are_one_line(command: Command, table: Path, tmp_path: Path) -> None:
    start = ("train", table, "--length-column", "tokens", "--out", tmp_path / "p")
    assert "did you mean 'lexical'" in command.refusal(*start, "--kind", "lexicl")
    assert "did you mean 'listmle'" in command.refusal(*start, "--loss", "listmel")
    refusal = command.refusal(*start, "--kind", "quantile", "--loss", "listmle")
    assert "choose from pinball" in refusal
    refusal = command.refusal(*start, "--kind", "classify", "--bucket", 100_000)
    assert "give a smaller --bucket" in refusal
    assert "holds nothing" in command.refusal(*start, "--bucket", 0)
    assert not (tmp_path / "p").exists()
