"""TRAIL's cutoff: which prediction it follows, and how "auto" sets it."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.advise.sweep import Cell, Workload, run_cell
from lengthwise.errors import InputError
from lengthwise.policy import get_policy
from lengthwise.policy.discipline import make_discipline
from lengthwise.policy.prices import cutoff, observed, share_lost
from lengthwise.request import RUNNING, WAITING, new_table
from lengthwise.settings import Settings, parse_settings, parse_spec
from lengthwise.simulate.engine import EngineSettings, StepCost
from lengthwise.simulate.predictions import trace_predictions
from lengthwise.simulate.simulation import simulate
from lengthwise.workload.arrivals import synthetic_trace

COST = StepCost(7e-3, 32e-6, 32e-6, 0.04e-6)


def rank(policy: str, c: float, **columns: float) -> float:
    table = new_table(1)
    for name, value in columns.items():
        table[name] = value
    parameters = get_policy(policy).parameter_record({"c": c})
    return plain_rank(policy, table, parameters)


def plain_rank(policy: str, table: np.ndarray, parameters: np.ndarray) -> float:
    """The rank function as plain Python, on the first row."""
    row, values = (array.view(np.recarray)[0] for array in (table, parameters))
    return float(get_policy(policy).rank.py_func(row, 0.0, values))


@pytest.mark.parametrize("policy", ["trail", "trail-bert", "trail+"])
def test_the_cutoff_follows_the_first_prediction(policy: str) -> None:
    # What is expected now has grown to ten times the first prediction.
    columns = {"age": 9.0, "initial": 10.0, "expected": 100.0, "remaining": 91.0}
    assert rank(policy, 0.8, state=RUNNING, **columns) == -math.inf
    assert rank(policy, 1.0, state=RUNNING, **columns) == 91.0
    assert rank(policy, 0.8, state=WAITING, **columns) == 91.0


def test_sjf_bert_puts_the_preempted_last() -> None:
    fresh, served = {"age": 0.0, "expected": 500.0}, {"age": 3.0, "expected": 5.0}
    parameters = get_policy("sjf-bert").parameter_record({})

    def value(**columns: float) -> float:
        table = new_table(1)
        for name, number in columns.items():
            table[name] = number
        return plain_rank("sjf-bert", table, parameters)

    assert value(**fresh) < value(**served)
    assert value(age=0.0, expected=4.0) < value(**fresh)


def test_only_policies_that_may_listen_to_the_probe_do() -> None:
    listening = {name: make_discipline(name).refines for name in ("trail", "srpt", "sjf", "fcfs")}
    assert listening == {"trail": True, "srpt": True, "sjf": True, "fcfs": False}
    for name in ("trail-bert", "sjf-bert", "trail+", "oracle"):
        assert not make_discipline(name).refines


@settings(deadline=None)
@given(
    prompt=st.floats(0, 1e5),
    predicted=st.floats(0, 1e5),
    requests=st.integers(1, 10**6),
    lost=st.floats(0, 1),
    thrown_out=st.floats(0, 1),
    step_s=st.floats(0, 10),
    prefill_s=st.floats(0, 1),
)
def test_the_cutoff_is_between_0_and_1(
    prompt: float,
    predicted: float,
    requests: int,
    lost: float,
    thrown_out: float,
    step_s: float,
    prefill_s: float,
) -> None:
    c = cutoff(prompt, predicted, requests, lost, thrown_out, step_s, prefill_s)
    assert 0.0 <= c <= 1.0


def test_it_falls_with_the_price_of_a_preemption() -> None:
    assert cutoff(100, 200, 50, 0.0, 0.0, 1e-2, 3e-5) == 1.0
    by_loss = [cutoff(100, 200, 50, lost, 0.0, 1e-2, 3e-5) for lost in (0.0, 0.2, 0.5, 1.0)]
    by_queue = [cutoff(100, 200, requests, 0.5, 0.0, 1e-2, 3e-5) for requests in (1, 10, 100, 1000)]
    by_pressure = [cutoff(100, 200, 50, 0.5, share, 1e-2, 3e-5) for share in (0.0, 0.3, 0.9)]
    for falling in (by_loss, by_queue, by_pressure):
        assert all(later < earlier for earlier, later in itertools.pairwise(falling))


def test_at_the_cutoff_cost_and_gain_are_even() -> None:
    prompt, predicted, requests, lost, step_s, prefill_s = 60.0, 180.0, 20, 0.6, 9e-3, 3.2e-5
    c = cutoff(prompt, predicted, requests, lost, 0.0, step_s, prefill_s)
    gain = (1 - c) * predicted / 2 * step_s
    cost = requests * lost * (prompt + c * predicted) * prefill_s
    assert 0.0 < c < 1.0
    assert gain == pytest.approx(cost)


def test_what_is_observed_follows_what_happens() -> None:
    share = 1.0
    for _ in range(400):
        share = observed(share, share_lost(100, 25))
    assert share == pytest.approx(0.25, abs=1e-3)
    assert share_lost(0, 0) == 0.0
    assert share_lost(10, 40) == 1.0


def test_auto_is_a_setting_where_it_has_a_meaning() -> None:
    spec = parse_spec("trail:c=auto", Settings(predictor="oracle"))
    assert spec.parameters == {"c": "auto"}
    discipline = make_discipline(**spec.discipline_arguments(8))
    assert discipline.adapts == 0
    assert make_discipline("trail", parameters={"c": 0.5}).adapts == -1
    with pytest.raises(InputError, match="quantum of policy 'mlfq' must be a number, not 'auto'"):
        parse_settings({"policy": "mlfq", "parameters": {"quantum": "auto"}})
    with pytest.raises(InputError, match=r"parameters\.c"):
        parse_settings({"policy": "trail", "predictor": "oracle", "parameters": {"c": "often"}})


def cell(c: float | str, **engine: int | bool) -> Cell:
    return Cell(
        label=f"c={c}",
        discipline={"policy": "trail", "parameters": {"c": c}},
        load="1.1",
        cost=COST,
        engine=EngineSettings(slots=16, block_size=16, **engine),  # type: ignore[arg-type]
        predictor="noisy-oracle:0.6",
        seed=1,
    )


def test_auto_preempts_freely_where_kv_survives_and_hardly_where_it_is_lost() -> None:
    trace = synthetic_trace(1500, 9.0, mean_prompt=200, mean_output=200, sigma=0.8, seed=0)
    lost = {"kv_blocks": 400, "prefix_caching": False}
    kept = {"kv_blocks": 200_000, "prefix_caching": True}
    figures = {
        (name, c): run_cell(cell(c, **engine), Workload(trace))
        for name, engine in (("lost", lost), ("kept", kept))
        for c in ("auto", 1.0, 0.0)
    }
    assert figures["lost", "auto"]["recomputed_tokens"] < figures["lost", 1.0]["recomputed_tokens"]
    assert figures["kept", "auto"]["preemptions"] > 0.5 * figures["kept", 1.0]["preemptions"]
    for name in ("lost", "kept"):
        best = min(figures[name, c]["mean_e2el_ms"] for c in (0.0, 1.0))
        assert figures[name, "auto"]["mean_e2el_ms"] < 1.05 * best, name


def test_a_simulation_does_not_change_its_discipline() -> None:
    trace = synthetic_trace(400, 9.0, mean_prompt=100, mean_output=100, sigma=0.8, seed=0)
    discipline = make_discipline("trail", parameters={"c": "auto"})
    before = discipline.parameters.copy()
    predictions = trace_predictions(trace, "noisy-oracle:0.6")
    engine = EngineSettings(slots=4)
    first, second = (
        simulate(trace, discipline, COST, engine, predictions=predictions) for _ in range(2)
    )
    assert (discipline.parameters == before).all()
    assert np.array_equal(first.requests["finish_s"], second.requests["finish_s"])
    fixed = simulate(trace, replace(discipline, adapts=-1), COST, engine, predictions=predictions)
    assert not np.array_equal(first.requests["finish_s"], fixed.requests["finish_s"])
