"""Which rows a model is asked about that it was not trained on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lengthwise.predict.calibration import cross_fit, groups_of, hold_out
from lengthwise.predict.extract import extract_features, token_text_of
from lengthwise.predict.features import FeatureRows
from lengthwise.predict.train import train
from lengthwise.workload.conversation import Chat, Message
from lengthwise.workload.dataset import Dataset
from tests.support.length_logs import REFERENCE


def asked(rows: NDArray[np.int64]) -> list[tuple[set[int], set[int]]]:
    """Of each fold, the rows of the file that were learnt from and those that were asked about."""
    found: list[tuple[set[int], set[int]]] = []

    def fit(
        learnt: NDArray[np.int64], held_out: NDArray[np.int64], seed: int
    ) -> NDArray[np.float64]:
        found.append((set(rows[learnt].tolist()), set(rows[held_out].tolist())))
        return np.zeros((held_out.size, 1))

    assert np.isfinite(cross_fit(rows, 0, fit, lambda part: None)).all()
    return found


def test_every_row_is_asked_about_once() -> None:
    folds = asked(np.arange(1, 101))
    assert sorted(row for _, held_out in folds for row in held_out) == list(range(1, 101))
    assert all(not learnt & held_out for learnt, held_out in folds)


def test_answers_of_one_conversation_are_asked_about_together() -> None:
    """Else a model would have seen a prompt's beginning, and its first answer, in another row."""
    rows = np.repeat(np.arange(1, 61), np.arange(60) % 4 + 1)
    folds = asked(rows)
    assert sorted(row for _, held_out in folds for row in held_out) == list(range(1, 61))
    assert all(not learnt & held_out for learnt, held_out in folds)


def copies(prompts: int, of_each: int) -> Dataset:
    """Prompts whose lengths have nothing to do with their words; copies have about the same."""
    random = np.random.default_rng(5)
    words = np.array([f"{first}{last}" for first in "bdfgklmnprst" for last in "aeiou"])
    texts = [" ".join(random.choice(words, 12)) for _ in range(prompts)]
    lengths = np.ceil(random.lognormal(4.5, 1.0, prompts)).astype(np.int64)
    order = random.permutation(np.repeat(np.arange(prompts), of_each))
    noise = random.integers(0, 4, order.size)
    rows = np.arange(1, order.size + 1)
    return Dataset("t", [texts[each] for each in order], lengths[order] + noise, None, rows, [])


def features(table: Dataset) -> FeatureRows:
    text = token_text_of(REFERENCE)
    return extract_features(table, REFERENCE, text.vocabulary, text.template, lambda part: None)


def test_copies_of_a_prompt_do_not_show_in_what_was_held_out() -> None:
    """Lengths that cannot be told from words: a model that does tell them has seen the answers."""
    held_out = train(copies(80, 5), REFERENCE).metadata.held_out
    assert held_out.tau is not None
    assert abs(held_out.tau) < 0.3


def test_copies_are_one_group_by_their_text_and_by_the_features_of_a_log() -> None:
    table = copies(30, 3)
    groups = groups_of(table)
    assert len(set(groups.tolist())) == 30
    assert all(
        len({groups[place] for place, text in enumerate(table.prompts) if text == each}) == 1
        for each in set(table.prompts)
    )
    logged = Dataset("log", [], table.lengths, None, table.rows, [])
    np.testing.assert_array_equal(groups_of(logged, features(table)), groups)


def test_who_asks_makes_no_other_prompt() -> None:
    table = copies(20, 2)
    tenants = [str(row) for row in table.rows]
    asked = Dataset("t", table.prompts, table.lengths, None, table.rows, [], tenants=tenants)
    logged = Dataset("log", [], table.lengths, None, table.rows, [])
    np.testing.assert_array_equal(groups_of(logged, features(asked)), groups_of(table))


def test_prompts_that_occur_once_are_groups_of_their_own() -> None:
    table = copies(30, 1)
    np.testing.assert_array_equal(groups_of(table), np.arange(30))
    np.testing.assert_array_equal(groups_of(table, features(table)), np.arange(30))


def test_conversations_that_begin_alike_are_one_group() -> None:
    def chat(*said: str) -> Chat:
        roles = "user", "assistant"
        messages = [Message(roles[place % 2], text) for place, text in enumerate(said)]
        return Chat(messages, len(messages))

    chats = [
        chat("Hi"),
        chat("Hi", "Hello", "Bye"),
        chat("hi "),
        chat("No"),
        chat("No", "So", "Bye"),
    ]
    table = Dataset(
        "t",
        [each.question for each in chats],
        np.arange(1, 6),
        None,
        np.array([1, 1, 2, 3, 3]),
        [],
        chats=list(chats),
    )
    assert groups_of(table).tolist() == [0, 0, 0, 1, 1]


def test_a_few_prompts_or_one_are_folds_too() -> None:
    few = np.arange(60) % 3
    folds = asked(few)
    assert len(folds) == 3
    assert all(not learnt & held_out for learnt, held_out in folds)
    assert len(asked(np.zeros(40, dtype=np.int64))) == 5
    assert train(copies(1, 40), REFERENCE).metadata.held_out.rows == 40
    assert train(copies(2, 40), REFERENCE).metadata.held_out.rows == 80


def test_no_group_is_held_out_and_learnt_from() -> None:
    groups = np.concatenate([np.zeros(70, dtype=np.int64), np.arange(1, 11).repeat(3)])
    held_out, learnt = hold_out(groups, 20, 0)
    assert sorted([*held_out, *learnt]) == list(range(100))
    assert 20 <= held_out.size < 24
    assert not set(groups[held_out]) & set(groups[learnt])


def test_rows_that_are_alone_are_held_out_in_the_order_of_the_draw() -> None:
    order = np.random.default_rng(3).permutation(50)
    held_out, learnt = hold_out(np.arange(50), 5, 3)
    np.testing.assert_array_equal(np.concatenate([held_out, learnt]), order)
    assert held_out.size == 5
