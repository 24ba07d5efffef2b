"""`lengthwise bench --engine virtual`: exact, and told apart from a live engine everywhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from lengthwise.cli.main import app
from lengthwise.compare import virtual
from lengthwise.compare.client import ReplayRequest
from lengthwise.compare.engine_log import read_measured
from lengthwise.compare.virtual import VirtualSession, engine_prompt
from lengthwise.compare.virtual_bench import offload_to, predictor_tokenizer
from lengthwise.emulate.link import BANDWIDTH
from lengthwise.errors import InputError
from lengthwise.measure.metrics import request_metrics
from lengthwise.measure.results import read_results
from lengthwise.predict.kinds import Recipe
from lengthwise.predict.load import load_predictor
from lengthwise.predict.prediction import Prediction, Prompt
from lengthwise.predict.tokenizer import load_tokenizer
from lengthwise.predict.train import train
from lengthwise.reference import model_path
from lengthwise.simulate.presets import preset
from lengthwise.simulate.simulation import simulate
from lengthwise.workload.dataset import load_dataset
from lengthwise.workload.trace import Trace

VIRTUAL = ("--engine", "virtual", "--gpu", "a100")
ROW_KEYS = {
    "policy", "load", "engine", "completed", "failed", "mean_e2el_ms", "p50_e2el_ms",
    "p95_e2el_ms", "p99_e2el_ms", "mean_ttft_ms", "p99_ttft_ms",
    "mean_latency_per_output_token_ms", "max_waiting_time_ms", "preemptions", "recomputed_tokens",
    "gap_closed",
}  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts whose topic tells the answer's length, with lengths of their own counting."""
    generator = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("table") / "prompts.jsonl"
    topics = (("name one river", 6), ("explain the tides", 60), ("write a long story", 200))
    with path.open("w") as file:
        for row in range(240):
            words, mean = topics[row % 3]
            answer = int(generator.integers(mean // 2, 2 * mean))
            prompt = f"{words}, number {row}"
            tokens = int(generator.integers(5, 60))
            line = {"prompt": prompt, "response_tokens": answer, "prompt_tokens": tokens}
            file.write(json.dumps(line | {"split": "test" if row < 60 else "train"}) + "\n")
    return path


@pytest.fixture(scope="module")
def predictor(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A predictor trained on the table's other prompts."""
    folder = tmp_path_factory.mktemp("predictor") / "p"
    learnt = load_dataset(table, split="train")
    train(learnt, load_tokenizer("reference"), Recipe()).save(folder)
    return folder


def bench(table: Path, out: Path, *options: str) -> list[dict[str, Any]]:
    """Run the command in this process and return the rows of its results."""
    words = ["bench", str(table), "--split", "test", *VIRTUAL, "--out", str(out), *options]
    app(words, standalone_mode=False)
    rows: list[dict[str, Any]] = json.loads((out / "results.json").read_text())
    return rows


@pytest.fixture(scope="module")
def options(predictor: Path) -> list[str]:
    """A comparison that queues."""
    return [
        "--requests", "40", "--max-num-seqs", "4", "--load", "1.2,burst", "--policy",
        "fcfs,srpt,oracle", "--predictor", str(predictor),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(table: Path, options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of that comparison."""
    out = tmp_path_factory.mktemp("run")
    bench(table, out, *options)
    return out


def test_the_same_command_gives_the_same_bytes(
    run: Path, table: Path, options: list[str], tmp_path: Path
) -> None:
    words = ["bench", str(table), "--split", "test", *VIRTUAL, "--out", str(tmp_path), *options]
    again = subprocess.run(
        [sys.executable, "-c", "from lengthwise.cli.main import main; main()", *words, "--json"],
        env={**os.environ, "PYTHONHASHSEED": "4711"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert again.stdout == (run / "results.json").read_text()


def test_rows_have_the_promised_keys_and_the_engine(run: Path) -> None:
    rows = json.loads((run / "results.json").read_text())
    assert [(row["policy"], row["load"]) for row in rows] == [
        (policy, load) for load in ("burst", 1.2) for policy in ("fcfs", "srpt", "oracle")
    ]
    for row in rows:
        assert row.keys() >= ROW_KEYS
        assert row["engine"] == "virtual"
        assert (row["completed"], row["failed"]) == (40, 0)
    by_name = {(row["policy"], row["load"]): row["mean_e2el_ms"] for row in rows}
    assert by_name["oracle", "burst"] < by_name["srpt", "burst"] < by_name["fcfs", "burst"]
    offered = [row["offered_load"] for row in rows if row["load"] == 1.2]
    assert offered == pytest.approx([1.2] * 3)


def test_a_round_with_pauses_is_simulated_again_with_them(table: Path, tmp_path: Path) -> None:
    """The record says how many requests the worker holds: else the simulator would pause nobody."""
    policies = ("--policy", "srpt:preemption=greedy,srpt:preemption=never")
    bench(
        table, tmp_path, "--requests", "60", "--max-num-seqs", "4", "--load", "1.2",
        "--predictor", "noisy-oracle:0.5", "--pausing", *policies,
    )  # fmt: skip
    rounds, notes = read_measured(tmp_path)
    assert notes == []
    pauses = []
    for each in rounds:
        assert each.engine.places > each.engine.slots == 4
        records = each.records
        order = np.argsort(records.sent_s, kind="stable")
        trace = Trace(
            each.name,
            records.sent_s[order],
            records.prompt_tokens[order].astype(np.int64),
            records.output_tokens[order].astype(np.int64),
            [],
            "records",
        )
        cost, predictions = preset("a100", "llama-3-8b").cost, each.predictions[order]
        again = simulate(trace, each.discipline, cost, each.engine, predictions=predictions)
        assert again.e2el_s == pytest.approx(request_metrics(records).e2el[order])
        pauses.append(int(again.requests["pauses"].sum()))
    assert pauses[0] > 0 == pauses[1]


def test_where_memory_is_short_kv_is_loaded_from_the_hosts(table: Path, tmp_path: Path) -> None:
    options = (
        "--requests", "60", "--max-num-seqs", "8", "--kv-blocks", "40", "--load", "1.2",
        "--policy", "fcfs,srpt", "--predictor", "noisy-oracle:0.5", "--pausing",
    )  # fmt: skip
    rows = {
        gib: bench(table, tmp_path / gib, *options, *(("--kv-offloading-size", gib) * (gib != "0")))
        for gib in ("0", "1")
    }
    for plain, loaded in zip(*rows.values(), strict=True):
        assert (plain["completed"], loaded["completed"]) == (60, 60)
        assert plain["recomputed_tokens"] > 16 * plain["preemptions"] > 0
        assert 16 * loaded["preemptions"] > loaded["recomputed_tokens"] >= 0
    run = read_results(tmp_path / "1").run
    assert "copied to 1 GiB of host memory" in run.engine_note
    assert run.server["kv_offloading_gib"] == 1.0
    assert "kv_offloading_gib" not in read_results(tmp_path / "0").run.server
    assert read_measured(tmp_path / "0")[1] == []
    (note,) = read_measured(tmp_path / "1")[1]
    assert "which is not simulated" in note


def test_host_memory_and_its_link_are_a_models_however_small_the_engines_tokens_are() -> None:
    """Llama 3 8B has 128 KiB a token, Llama 3 70B 320 KiB, half of it on each of two GPUs."""
    each = {
        gpu: offload_to(10.0, gpu, model, 16).connector["kv_connector_extra_config"]
        for gpu, model in (("a100", "llama-3-8b"), ("2xa100", "llama-3-70b"))
    }
    tokens = {gpu: extra["cpu_bytes_to_use"] / 512 for gpu, extra in each.items()}
    assert tokens == {"a100": 10 * 2**30 / 2**17, "2xa100": 10 * 2**30 / (320 * 2**10)}
    token_s = {gpu: 512 * 8e-9 / extra[BANDWIDTH] for gpu, extra in each.items()}
    expected = {"a100": 2**17 / 25e9, "2xa100": 160 * 2**10 / 25e9}
    assert token_s == pytest.approx(expected)


def test_the_table_and_the_page_say_which_engine_it_was(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app(["report", str(run)], standalone_mode=False)
    page = (run / "report.html").read_text()
    for text in (" ".join(capsys.readouterr().out.split()), page):
        assert "virtual time" in text
        assert "as the data counts them (column prompt_tokens)" in text
    assert "There is no forward pass" in page
    assert "Machines drift" not in page


def test_a_policys_figures_do_not_depend_on_its_company(
    run: Path, table: Path, predictor: Path, tmp_path: Path
) -> None:
    alone = bench(
        table, tmp_path, "--requests", "40", "--max-num-seqs", "4", "--load", "1.2",
        "--policy", "srpt", "--predictor", str(predictor),
    )  # fmt: skip
    rows = json.loads((run / "results.json").read_text())
    same = next(row for row in rows if (row["policy"], row["load"]) == ("srpt", 1.2))
    compared = {name for name in same if name.startswith(("factor_", "gap_"))}
    assert alone[0] == {**same, **dict.fromkeys(compared)}


def test_seeds_draw_requests_and_arrivals_anew(
    table: Path, predictor: Path, tmp_path: Path
) -> None:
    rows = bench(
        table, tmp_path, "--requests", "20", "--max-num-seqs", "4", "--rate", "40",
        "--concurrency", "8", "--policy", "fcfs,ltr", "--predictor", str(predictor),
        "--seeds", "2",
    )  # fmt: skip
    assert {row["load"] for row in rows} == {"rate=40", "concurrency=8"}
    assert all((row["rounds"], row["completed"]) == (2, 40) for row in rows)
    one, other = (
        each.records for each in read_results(tmp_path).rounds
        if (each.info.policy, each.info.load) == ("fcfs", "rate=40")
    )  # fmt: skip
    assert one.output_tokens.tolist() != other.output_tokens.tolist()
    assert one.scheduled_s.tolist() != other.scheduled_s.tolist()


def test_requests_of_another_draw_are_predicted_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though a new list is often where an old one was; one list is asked about once."""
    asked: list[int] = []

    def said(spec: str, requests: list[ReplayRequest]) -> list[Prediction | None]:
        asked.append(requests[0].number)
        return [Prediction(request.number, 1, 1, 1, 1) for request in requests]

    monkeypatch.setattr(virtual, "_predict", said)
    machine = preset("a100", "llama-3-8b")
    session = VirtualSession(machine.cost, machine.engine, tmp_path)
    for number in range(20):
        requests = [ReplayRequest(number, (1,), 1)]
        for _ in range(2):
            foretold = session._foretell(str(tmp_path), requests)
            assert foretold is not None
            assert [each.score for each in foretold if each is not None] == [number]
        del requests, foretold
    assert asked == list(range(20))


def test_prompts_have_the_datas_length_and_are_predicted_from_their_text(
    run: Path, table: Path, predictor: Path
) -> None:
    tokenizer = load_tokenizer("reference")
    rows = load_dataset(table, split="test", prompt_tokens=True)
    assert rows.prompt_tokens is not None
    by_lengths = {
        (int(tokens), int(length)): prompt
        for tokens, length, prompt in zip(
            rows.prompt_tokens, rows.lengths, rows.prompts, strict=True
        )
    }
    trained = load_predictor(str(predictor))
    records = next(each.records for each in read_results(run).rounds if each.info.policy == "srpt")
    for place in range(len(records)):
        lengths = int(records.prompt_tokens[place]), int(records.output_tokens[place])
        ids = tokenizer.encode_chat(by_lengths[lengths])
        expected = trained.predict(Prompt(ids, {})).expected
        assert records.expected_tokens[place] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("counted", "given"), [(None, [5, 6, 7]), (2, [5, 6]), (8, [5, 6, 7, 5, 6, 7, 5, 6])]
)
def test_a_prompt_is_made_as_long_as_the_data_counts_it(
    counted: int | None, given: list[int]
) -> None:
    assert engine_prompt(ReplayRequest(0, [5, 6, 7], 1, counted_tokens=counted)) == given


def test_a_table_without_counts_is_counted_by_the_tokenizer(table: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.csv"
    plain.write_text("prompt,response_tokens,split\nhello there,3,test\nbye,5,test\n")
    bench(plain, tmp_path / "out", "--policy", "fcfs", "--burst")
    assert "counted by the tokenizer of reference" in read_results(tmp_path / "out").run.engine_note


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([*VIRTUAL, "--port", "8000"], "--port makes no sense in virtual time"),
        ([*VIRTUAL, "--repeats", "3"], "--repeats makes no sense in virtual time"),
        ([*VIRTUAL, "--", "--block-size", "32"], "vLLM's flags after -- makes no sense"),
        (["--engine", "virtual"], "add --gpu"),
        (["--engine", "virtual", "--gpu", "a1000"], "unknown GPU 'a1000'.* known are .*a100"),
        ([*VIRTUAL, "--model", "llama"], "unknown model 'llama'.* known are .*llama-3-8b"),
        ([*VIRTUAL, "--kv-blocks", "2"], "needs .* KV blocks"),
        (["--gpu", "a100"], "--gpu is for virtual time: add --engine virtual"),
        (["--seeds", "2"], "--seeds is for virtual time"),
        ([*VIRTUAL, "--kv-offloading-size", "0"], "--kv-offloading-size 0 is no memory"),
        ([*VIRTUAL, "--kv-offloading-size", "inf"], "--kv-offloading-size inf is no memory"),
        ([*VIRTUAL, "--kv-offloading-size", "nan"], "--kv-offloading-size nan is no memory"),
        ([*VIRTUAL, "--kv-offloading-size", "1", "--forward"], "engines that compute nothing"),
        (["--kv-offloading-size", "0"], "--kv-offloading-size is for virtual time"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    options: list[str], words: str, table: Path, tmp_path: Path
) -> None:
    flags = options[: options.index("--")] if "--" in options else options
    behind = options[len(flags) :]
    with pytest.raises(InputError, match=words) as refused:
        app(
            ["bench", str(table), "--policy", "fcfs", "--out", str(tmp_path), *flags, *behind],
            standalone_mode=False,
        )
    assert "\n" not in str(refused.value)


def test_predictors_are_looked_at_before_anything_runs(
    table: Path, predictor: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(predictor, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"tokenizer_fingerprint": "0"}))
    for specs, words in (
        (f"srpt:predictor={predictor},ltr:predictor={other}", "another vocabulary"),
        (f"ltr:predictor={other}", "another vocabulary"),
        ("srpt:predictor=nowhere", "no folder 'nowhere'"),
        (f"srpt:predictor={tmp_path}/nowhere", "does not exist"),
    ):
        with pytest.raises(InputError, match=words):
            bench(table, tmp_path / "out", "--policy", f"fcfs,{specs}")
    assert not (tmp_path / "out").exists()


def test_a_predictor_that_a_policy_names_reads_the_tokens_of_its_own_tokenizer(
    predictor: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(model_path(), tmp_path / "model")
    own = shutil.copytree(predictor, tmp_path / "own")
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(config | {"tokenizer": str(folder)}))
    assert predictor_tokenizer([None, "none", "oracle", str(own)]).name == str(folder)
    assert predictor_tokenizer(["oracle"]).name == "reference"
