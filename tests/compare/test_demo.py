"""The demo: its exact part with its own prompts and with a table, and its live part."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from lengthwise.cli.demo import PRESET
from lengthwise.compare import demonstration
from lengthwise.compare.own_answers import corpus_table
from lengthwise.compare.progress import Silent
from lengthwise.compare.rounds import keeping
from lengthwise.measure.report import write_report
from lengthwise.measure.results import ResultsWriter, read_results
from lengthwise.measure.twins import LIVE_FOLDER, read_twins
from lengthwise.predict.tokenizer import load_tokenizer
from lengthwise.simulate.presets import parse_preset
from lengthwise.workload.dataset import TEST, TRAIN, split_of
from tests.support.measure_rounds import RUN

ROOT = Path(__file__).parents[2]


def test_prompts_of_the_corpus_are_of_the_part_asked_for_and_always_the_same() -> None:
    tokenizer = load_tokenizer("reference")
    table = corpus_table(tokenizer, 50, TEST, seed=3)
    again = corpus_table(tokenizer, 50, TEST, seed=3)
    assert (table.prompts, table.lengths.tolist()) == (again.prompts, again.lengths.tolist())
    assert {split_of(prompt) for prompt in table.prompts} == {TEST}
    assert len(set(table.lengths.tolist())) > 10
    assert not set(table.prompts) & set(corpus_table(tokenizer, 50, TRAIN, seed=3).prompts)


class Notes(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demonstration, "REQUESTS", 40)
    monkeypatch.setattr(demonstration, "_LEARNT_FROM", 300)


@pytest.mark.parametrize("source", [pytest.param("built-in", marks=pytest.mark.slow), "table"])
def test_the_demo_compares_four_policies_at_four_loads(
    source: str, tmp_path: Path, small: None
) -> None:
    """Long, since sixteen rounds run in vLLM itself: it is what everybody tries first."""
    data = None
    if source == "table":
        data = tmp_path / "answers.jsonl"
        tokenizer = load_tokenizer("reference")
        with data.open("w") as file:
            for split, part, count in (("train", TRAIN, 300), ("test", TEST, 60)):
                file.write(json.dumps({"prompt": "", "output_tokens": -1, "split": split}) + "\n")
                table = corpus_table(tokenizer, count, part, seed=1)
                for prompt, length in zip(table.prompts, table.lengths.tolist(), strict=True):
                    line = {"prompt": prompt, "output_tokens": length, "split": split}
                    file.write(json.dumps(line) + "\n")
    out, notes = tmp_path / "out", Notes()
    out.mkdir()
    (out / LIVE_FOLDER).write_text("no server's folder can be here")
    demonstration.run_demo(out, parse_preset(PRESET), slots=8, data=data, seed=0, progress=notes)
    assert [line for line in notes.lines if "live part is left out: cannot write" in line]
    results = read_results(out)
    assert sum("1 malformed rows" in line for line in notes.lines) == 2 * (source == "table")
    assert ("1 malformed rows were left out" in results.run.notes) == (source == "table")
    assert read_twins(out, results) == []
    write_report(out, results)
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["load"] for row in rows[::4]] == ["burst", 0.9, 1.05, 1.2]
    assert [row["policy"] for row in rows[:4]] == ["fcfs", "ltr", "srpt", "oracle"]
    assert all((row["engine"], row["completed"]) == ("virtual", 40) for row in rows)
    assert not any(row["flagged_rounds"] for row in rows)
    assert rows[3]["factor_mean_e2el"] > 1.0
    page = (tmp_path / "out" / "report.html").read_text()
    assert ("answers.jsonl" in page) == (source == "table")


def test_whoever_stops_the_live_part_stops_the_demo(tmp_path: Path) -> None:
    writer = ResultsWriter(tmp_path, RUN)
    live_part = demonstration._or_leave_out(Silent())
    with pytest.raises(KeyboardInterrupt), live_part, keeping(writer, 2):
        raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.engine
def test_the_demo_measures_the_table_of_the_readme_and_answers_a_burst_live(tmp_path: Path) -> None:
    demonstration.run_demo(tmp_path, parse_preset(PRESET), data=None, seed=0, progress=Silent())
    results = read_results(tmp_path)
    twins = read_twins(tmp_path, results)
    write_report(tmp_path, results, twins=twins)
    rows = json.loads((tmp_path / "results.json").read_text())

    kept = json.loads((ROOT / "docs/results/demo.json").read_text())
    assert rows[: len(kept["rows"])] == kept["rows"]

    assert [(row["policy"], row["load"], row["engine"]) for row in rows[len(kept["rows"]) :]] == [
        (policy, f"burst={demonstration.LIVE_REQUESTS}", engine)
        for policy in demonstration.LIVE_POLICIES
        for engine in ("live", "virtual")
    ]
    for twin in twins:
        live, exact = twin.live.summary(), twin.exact.summary()
        assert (live["completed"], live["failed"]) == (demonstration.LIVE_REQUESTS, 0)
        for same in ("total_input_tokens", "total_output_tokens"):
            assert live[same] == exact[same]
        assert "requests reached the scheduler over" in twin.remarks[0]
    assert "256 at once, live beside virtual time" in (tmp_path / "report.html").read_text()
