"""From the probe's predictions to the columns that policies read."""

from __future__ import annotations

import numpy as np
import pytest

from lengthwise.counters import Counters
from lengthwise.policy.discipline import make_discipline
from lengthwise.policy.prepass import StepOrder
from lengthwise.probe.refine import refine, start, summarise
from lengthwise.request import RUNNING, LiveTable
from lengthwise.vllm.hidden_states import ProbeOutput
from lengthwise.vllm.predictions import Refinement
from tests.support.made_up_probe import BINS, LONGEST, made_up_probe
from tests.support.step_facts import facts_of

PROBE = made_up_probe()
LOW = np.array([0.9, 0.1, 0.0, 0.0, 0.0], np.float32)
HIGH = LOW[::-1].copy()


class Followed:
    """A live table with a refinement, and short ways to feed it."""

    def __init__(self) -> None:
        self.live = LiveTable()
        self.counters = Counters()
        self.refinement = Refinement(self.live, self.counters, PROBE, 1)

    def add(self, *names: str) -> None:
        for name in names:
            self.refinement.forget(self.live.add(name, object()))

    def prompt(self, *names: str, likely: np.ndarray = HIGH) -> None:
        output = ProbeOutput(prompt_ids=list(names), prompt=np.stack([likely] * len(names)))
        self.refinement.take([output])

    def decode(self, ages: dict[str, int], likely: np.ndarray = LOW) -> None:
        output = ProbeOutput(
            decode_ids=list(ages),
            ages=np.array(list(ages.values()), np.int64),
            decode=np.stack([likely] * len(ages)),
        )
        self.refinement.take([output])

    def row(self, name: str) -> np.void:
        return self.live.table[self.live.row(name)]


def expected(steps: list[tuple[np.ndarray, int]], age: int) -> list[float]:
    """Mean and quantiles of what is left, computed directly: the first starts, others refine."""
    posteriors, rows = np.zeros((1, BINS)), np.zeros(1, np.int64)
    start(posteriors, rows, steps[0][0][None])
    for likely, elapsed in steps[1:]:
        refine(posteriors, rows, likely[None], np.array([elapsed]), PROBE.filter(1))
    summary = np.empty((1, 4))
    summarise(posteriors, rows, np.array([float(LONGEST - age)]), PROBE.filter(1), summary)
    return list(summary[0])


def columns(row: np.void) -> list[float]:
    """Mean and quantiles of what is left, as the table has them."""
    made = int(row["predicted_age"])
    return [float(row[name]) - made for name in ("expected", "low", "median", "high")]


def test_a_prompt_starts_and_decode_states_refine() -> None:
    followed = Followed()
    followed.add("a")
    followed.prompt("a")
    assert columns(followed.row("a")) == pytest.approx(expected([(HIGH, 0)], 0))
    first = float(followed.row("a")["expected"])
    assert float(followed.row("a")["initial"]) == first
    followed.decode({"a": 3}, HIGH)
    followed.decode({"a": 11})
    steps = [(HIGH, 0), (HIGH, 3), (LOW, 8)]
    assert columns(followed.row("a")) == pytest.approx(expected(steps, 11))
    assert followed.row("a")["predicted_age"] == 11
    assert float(followed.row("a")["remaining"]) == pytest.approx(expected(steps, 11)[0])
    assert float(followed.row("a")["initial"]) == first, "the cutoff follows the first prediction"
    assert followed.counters.probe_predictions == 3


def test_without_a_prompt_prediction_the_first_decode_state_starts() -> None:
    followed = Followed()
    followed.add("a")
    followed.decode({"a": 5})
    assert columns(followed.row("a")) == pytest.approx(expected([(LOW, 0)], 5))


def test_what_comes_late_or_twice_changes_nothing() -> None:
    followed = Followed()
    followed.add("a")
    followed.decode({"a": 5})
    before = followed.row("a").copy()
    followed.decode({"a": 5}, HIGH)
    followed.decode({"a": 4}, HIGH)
    followed.prompt("a", likely=HIGH)
    assert followed.row("a") == before


def test_no_numbers_are_dropped_and_counted() -> None:
    followed = Followed()
    followed.add("a", "b")
    followed.prompt("a", "b", likely=np.full(BINS, np.nan, np.float32))
    followed.decode({"a": 1, "b": 1}, np.full(BINS, np.inf, np.float32))
    followed.decode({"a": 2}, np.zeros(BINS, np.float32))
    assert followed.counters.probe_dropped == 5
    assert followed.counters.probe_predictions == 0
    assert followed.row("a")["predicted"] == 0


def test_requests_that_have_gone_are_passed_over() -> None:
    followed = Followed()
    followed.add("a", "b")
    followed.live.release("a")
    followed.prompt("a", "b")
    followed.decode({"a": 1, "b": 2, "unknown": 3})
    assert followed.row("b")["predicted_age"] == 2


def test_a_row_that_is_used_again_starts_anew() -> None:
    followed = Followed()
    followed.add("a")
    followed.decode({"a": 9}, HIGH)
    followed.live.release("a")
    followed.add("b")
    followed.decode({"b": 2})
    assert columns(followed.row("b")) == pytest.approx(expected([(LOW, 0)], 2))


def test_it_grows_with_the_table() -> None:
    followed = Followed()
    names = [str(number) for number in range(700)]
    followed.add(*names)
    followed.prompt(*names)
    followed.decode(dict.fromkeys(names, 4))
    assert len({tuple(columns(followed.row(name))) for name in names}) == 1
    assert followed.counters.probe_predictions == 1400


def test_failures_and_partial_prompts_are_counted_and_never_raised() -> None:
    followed = Followed()
    followed.add("a")
    followed.refinement.take([ProbeOutput(partial=2), ProbeOutput(failed="out of order")])
    # Another number of bins than the probe's: nonsense from a worker must not end the engine.
    output = ProbeOutput(prompt_ids=["a"], prompt=np.ones((0, 3), np.float32))
    followed.refinement.take([output])
    assert followed.counters.probe_partial_prompts == 2
    assert followed.counters.probe_failures == 2


def test_between_predictions_the_rank_counts_down_from_the_last_one() -> None:
    followed = Followed()
    followed.add("a")
    followed.decode({"a": 10}, HIGH)
    table, row = followed.live.table, followed.live.row("a")
    table["state"][row] = RUNNING
    left = float(table["remaining"][row])
    order, discipline = StepOrder(), make_discipline("srpt")
    ranks = []
    for age in (10, 12, 30):
        table["age"][row] = age
        order.rank(discipline, table, facts_of(followed.live.count, step=1))
        ranks.append(float(order.ranks[row]))
    assert ranks[0] == pytest.approx(left), "at the token it was made at: the prediction itself"
    assert ranks[0] > ranks[1] > ranks[2]
