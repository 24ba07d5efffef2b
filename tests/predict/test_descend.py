"""Training: lists, Adam, and models that learn what there is to learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.predict.descent import (
    PENALTY,
    Adam,
    Linear,
    Network,
    Schedule,
    SparseRows,
    deal_lists,
    descend,
    fit_ridge,
    normal_scores,
)
from lengthwise.predict.losses import LOSSES, QUANTILES

FAST = Schedule(epochs=5, rate=0.05)


def one_hot(groups: np.ndarray) -> SparseRows:
    return SparseRows(
        np.arange(groups.size + 1), groups.astype(np.int32), np.ones(groups.size, np.float32)
    )


def four_tasks(count: int = 4_000) -> tuple[np.ndarray, np.ndarray]:
    """The task of each prompt, and its answer's length: four times as long from task to task."""
    random = np.random.default_rng(0)
    tasks = random.integers(0, 4, count)
    return tasks, random.exponential(np.array([10.0, 40.0, 160.0, 640.0])[tasks])


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 5))
def test_lists_are_dealt_without_repeats(count: int, size: int, seed: int) -> None:
    size = min(size, count)
    lists = deal_lists(count, size, np.random.default_rng(seed))
    assert lists.shape[1] == size
    assert np.unique(lists).size == lists.size
    assert lists.size > count - size


def test_ties_fall_in_random_order() -> None:
    orders = {tuple(deal_lists(2, 2, np.random.default_rng(seed))[0]) for seed in range(20)}
    assert orders == {(0, 1), (1, 0)}


@pytest.mark.parametrize("name", ["listmle", "listnet", "pairwise", "huber"])
@pytest.mark.parametrize("hidden", [False, True])
def test_every_loss_learns_an_order_from_nothing(name: str, hidden: bool) -> None:
    tasks, lengths = four_tasks()
    rows = one_hot(tasks)
    model: Linear | Network = (
        Network(rows, 4, 8, 1, np.random.default_rng(0))
        if hidden
        else Linear(rows, np.zeros((4, 1)), np.zeros(1))
    )
    targets = LOSSES[name].targets(lengths, 1)
    descend(model, LOSSES[name], lambda epoch: targets, FAST, seed=1)
    each = one_hot(np.arange(4))
    learnt: Linear | Network
    if isinstance(model, Network):
        learnt = Network(each, 4, 8, 1, np.random.default_rng(0))
        learnt.embedding, learnt.hidden_bias = model.embedding, model.hidden_bias
        learnt.output, learnt.output_bias = model.output, model.output_bias
        # Entries are dropped at random in training, so the mean of many is looked at.
        scores = np.mean([learnt.outputs(np.arange(4))[:, 0] for _ in range(400)], axis=0)
    else:
        scores = Linear(each, model.weights, model.bias).outputs(np.arange(4))[:, 0]
    assert (np.diff(scores) > 0).all()


def test_pinball_learns_the_quantiles_of_each_task() -> None:
    tasks, lengths = four_tasks(20_000)
    model = Linear(one_hot(tasks), np.zeros((4, 3)), np.full(3, 4.0))
    targets = LOSSES["pinball"].targets(lengths, 1)
    descend(model, LOSSES["pinball"], lambda epoch: targets, FAST, seed=1)
    for task in range(4):
        found = model.weights[task] + model.bias
        assert found == pytest.approx(np.quantile(targets[tasks == task], QUANTILES), abs=0.25)


def test_a_network_learns_to_name_buckets() -> None:
    tasks, _ = four_tasks()
    model = Network(one_hot(tasks), 4, 8, 4, np.random.default_rng(0))
    descend(model, LOSSES["cross-entropy"], lambda epoch: tasks.astype(float), FAST, seed=0)
    hidden = np.maximum(0, model.embedding + model.hidden_bias)
    assert (hidden @ model.output + model.output_bias).argmax(axis=1).tolist() == [0, 1, 2, 3]


def test_the_same_seed_gives_the_same_weights() -> None:
    tasks, lengths = four_tasks(300)

    def weights(seed: int) -> np.ndarray:
        model = Network(one_hot(tasks), 4, 5, 1, np.random.default_rng(seed))
        descend(model, LOSSES["listmle"], lambda epoch: lengths, FAST, seed)
        return model.embedding

    assert np.array_equal(weights(3), weights(3))
    assert not np.array_equal(weights(3), weights(4))


def test_the_number_of_steps_is_bounded_by_longer_lists() -> None:
    tasks, lengths = four_tasks(900)

    class Counted(Linear):
        steps = 0
        longest = 0

        def step(self, gradient: np.ndarray, rate: float) -> None:
            self.steps += 1
            self.longest = max(self.longest, gradient.shape[0])
            assert rate > 0
            super().step(gradient, rate)

    model = Counted(one_hot(tasks), np.zeros((4, 1)), np.zeros(1))
    schedule = Schedule(epochs=3, rate=0.1, list_length=10, most_steps=30)
    descend(model, LOSSES["listmle"], lambda epoch: lengths, schedule, seed=0)
    assert model.steps == 30
    assert model.longest == 90


def test_few_rows_make_one_list() -> None:
    tasks, lengths = four_tasks(7)
    model = Linear(one_hot(tasks), np.zeros((4, 1)), np.zeros(1))
    descend(model, LOSSES["listmle"], lambda epoch: lengths, FAST, seed=0)
    assert np.isfinite(model.weights).all()


def test_adam_is_its_published_formula() -> None:
    random = np.random.default_rng(0)
    weights = random.normal(size=(3, 2))
    expected = weights.copy()
    mean = square = np.zeros_like(weights)
    adam = Adam(weights, decay=0.1)
    for step in range(1, 5):
        slope = random.normal(size=weights.shape)
        towards = slope + 0.1 * expected
        mean = 0.9 * mean + 0.1 * towards
        square = 0.999 * square + 0.001 * towards**2
        expected = expected - 0.01 * (mean / (1 - 0.9**step)) / (
            np.sqrt(square / (1 - 0.999**step)) + 1e-8
        )
        adam.step(slope, 0.01)
    assert weights == pytest.approx(expected)


def test_adam_on_rows_is_adam_on_those_rows() -> None:
    random = np.random.default_rng(0)
    weights = random.normal(size=(5, 3)).astype(np.float32)
    start, few = weights.copy(), weights[[1, 3]].copy()
    rows_adam, adam = Adam(weights), Adam(few)
    for _ in range(3):
        slope = np.zeros_like(weights)
        slope[[1, 3]] = random.normal(size=(2, 3))
        adam.step(slope[[1, 3]], 0.1)
        rows_adam.step_rows(slope, np.array([3, 1, 3], dtype=np.int32), 0.1)
        assert not slope.any()
    assert weights[[1, 3]] == pytest.approx(few, abs=1e-5)
    assert np.array_equal(weights[[0, 2, 4]], start[[0, 2, 4]])


def test_ridge_solves_its_normal_equations() -> None:
    random = np.random.default_rng(0)
    dense = random.normal(size=(60, 9)).astype(np.float32)
    rows = SparseRows(
        np.arange(0, 60 * 9 + 1, 9), np.tile(np.arange(9, dtype=np.int32), 60), dense.ravel()
    )
    targets = random.normal(size=60)
    exact = np.linalg.solve(
        dense.T @ dense + PENALTY * np.eye(9), dense.T @ (targets - targets.mean())
    )
    assert fit_ridge(rows, 9, targets) == pytest.approx(exact, abs=0.01)


def test_normal_scores_are_ranks_on_a_bell_curve() -> None:
    scores = normal_scores(np.array([5.0, 1e9, 5.0, 1.0]))
    assert scores[0] == scores[2]
    assert scores[3] < scores[0] < scores[1] < 2
    assert normal_scores(np.arange(1_000.0)).std() == pytest.approx(1.0, abs=0.01)
