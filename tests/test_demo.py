"""The demo's exact part: with its own prompts and with a table, at every load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from lengthwise.cli.virtual_bench import choose_gpu
from lengthwise.compare import demo
from lengthwise.compare.corpus_table import corpus_table
from lengthwise.compare.progress import Silent
from lengthwise.measure.report import write_report
from lengthwise.measure.results import read_results
from lengthwise.predict.tokenizer import load_tokenizer
from lengthwise.workload.split import TEST, TRAIN, split_of


def test_prompts_of_the_corpus_are_of_the_part_asked_for_and_always_the_same() -> None:
    tokenizer = load_tokenizer("reference")
    table = corpus_table(tokenizer, 50, TEST, seed=3)
    again = corpus_table(tokenizer, 50, TEST, seed=3)
    assert (table.prompts, table.lengths.tolist()) == (again.prompts, again.lengths.tolist())
    assert {split_of(prompt) for prompt in table.prompts} == {TEST}
    assert len(set(table.lengths.tolist())) > 10
    assert not set(table.prompts) & set(corpus_table(tokenizer, 50, TRAIN, seed=3).prompts)


@pytest.mark.parametrize("source", ["built-in", "table"])
def test_the_demo_compares_four_policies_at_four_loads(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "REQUESTS", 40)
    monkeypatch.setattr(demo, "_LEARNT_FROM", 300)
    data = None
    if source == "table":
        data = tmp_path / "answers.jsonl"
        tokenizer = load_tokenizer("reference")
        with data.open("w") as file:
            for split, part, count in (("train", TRAIN, 300), ("test", TEST, 60)):
                table = corpus_table(tokenizer, count, part, seed=1)
                for prompt, length in zip(table.prompts, table.lengths.tolist(), strict=True):
                    line = {"prompt": prompt, "output_tokens": length, "split": split}
                    file.write(json.dumps(line) + "\n")
    machine = choose_gpu("a100", None, slots=8, kv_blocks=None)
    scale = demo.Scale("a100:llama-3-8b", machine.cost, machine.engine)
    demo.run_demo(tmp_path / "out", scale, data=data, seed=0, progress=Silent())
    write_report(tmp_path / "out", read_results(tmp_path / "out"))
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["load"] for row in rows[::4]] == ["burst", 0.9, 1.05, 1.2]
    assert [row["policy"] for row in rows[:4]] == ["fcfs", "ltr", "srpt", "oracle"]
    assert all((row["engine"], row["completed"]) == ("virtual", 40) for row in rows)
    assert not any(row["flagged_rounds"] for row in rows)
    assert rows[3]["factor_mean_e2el"] > 1.0
    page = (tmp_path / "out" / "report.html").read_text()
    assert ("answers.jsonl" in page) == (source == "table")
