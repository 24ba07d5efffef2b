"""Exact tables: what is committed is what the code makes, and vLLM has its say."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vllm")

from bench.figures.__main__ import main
from bench.figures.cell import Cell, Traffic, difference_s, figures
from bench.figures.compared import against_fcfs
from bench.figures.doubt import TABLES, laws
from bench.figures.policies import GPU, SLOTS
from bench.figures.preemption import CUTOFF
from bench.figures.sources import Sources, arriving, noisy_predictions, shared_blocks
from bench.figures.table import RESULTS, WITHIN_S, Table, check, checked_cell, rows_of
from lengthwise.errors import LengthwiseError
from lengthwise.workload.arrivals import synthetic_trace

NO_DATA = Sources(Path("nowhere"))


def small_cell(spec: str = "srpt", **limits: int) -> Cell:
    engine = replace(SLOTS, slots=8, **limits)
    trace = synthetic_trace(60, np.inf, mean_prompt=40, mean_output=30, sigma=0.8, seed=3)
    traffic = Traffic(trace, noisy_predictions(trace, 0.5, seed=3))
    return Cell(
        tags={"policy": spec, "load": "1.2"},
        spec=spec,
        traffic=arriving(traffic, "1.2", GPU.cost, engine, seed=3),
        cost=GPU.cost,
        engine=engine,
    )


def test_a_table_made_anew_is_the_committed_one_digit_by_digit() -> None:
    """A change that alters schedules commits new figures: `make figures`. Made-up lengths, whose
    rows of the table need no data. Long, since each row is simulated whole, as `make figures`
    does."""
    (doubt,) = (table for table in TABLES if table.name == "doubt")
    cells = [cell for cell in laws(NO_DATA, ["agent"]) if cell.tags["load"] == "1.2"]
    made = rows_of(doubt, cells, [figures(cell) for cell in cells])
    committed = json.loads((RESULTS / "doubt.json").read_text(encoding="utf-8"))["rows"]
    same = {"workload": "agent", "load": "1.2"}
    assert made == [row for row in committed if same.items() <= row.items()]


@pytest.mark.parametrize("spec", ["fcfs", "oracle", "trail:c=auto;preemption=greedy"])
def test_vllm_serves_a_cell_as_the_simulator_does(spec: str) -> None:
    cell = small_cell(spec, kv_blocks=60)
    check(CUTOFF, cell, difference_s(cell))


def test_a_cell_that_vllm_serves_in_another_way_is_named() -> None:
    """Prompts that begin alike, and a trace that does not say so."""
    cell = small_cell()
    alike = [[7] * count for count in cell.traffic.trace.prompt_tokens]
    difference = difference_s(replace(cell, traffic=replace(cell.traffic, prompts=alike)))
    assert difference > WITHIN_S
    with pytest.raises(LengthwiseError, match=r"table cutoff, srpt \(policy srpt, load 1.2\): "):
        check(CUTOFF, cell, difference)


@pytest.mark.parametrize("difference", [2 * WITHIN_S, float("inf"), float("nan")])
def test_nothing_but_agreement_passes(difference: float) -> None:
    check(CUTOFF, small_cell(), WITHIN_S / 2)
    with pytest.raises(LengthwiseError, match="differ by"):
        check(CUTOFF, small_cell(), difference)


def test_the_name_of_a_table_chooses_the_cell_that_is_checked() -> None:
    cells = [small_cell(f"srpt:blend=0.{place}") for place in range(1, 9)]
    tables = [Table(name, lambda sources: (), against_fcfs()) for name in "abcdefgh"]
    chosen = [checked_cell(table, cells).spec for table in tables]
    assert chosen == [checked_cell(table, cells).spec for table in tables]
    assert len(set(chosen)) > 1


def test_blocks_are_shared_with_all_that_comes_before_them() -> None:
    hashes, offsets = shared_blocks([[1, 2, 3, 4, 5], [1, 2, 9, 9], [9, 9, 3, 4], [7]], 2)
    assert offsets.tolist() == [0, 2, 4, 6, 6]
    assert hashes.tolist() == [0, 1, 0, 2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["guard"], "did you mean 'guards'"),
        (["comparison", "--data", "nowhere"], "needs prompts_alpaca_vicuna7b.parquet in nowhere"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["figures", *arguments])
    assert main() == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
