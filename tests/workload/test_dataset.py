"""Tables: what is read, what is guessed, and what becomes of malformed rows."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings

from lengthwise.errors import InputError
from lengthwise.workload.dataset import load_dataset
from tests.support.strange_rows import strange_rows

ROWS: list[dict[str, Any]] = [
    {"prompt": "One?", "response_tokens": 5, "model": "m", "split": "train"},
    {"prompt": "Two?", "response_tokens": 8, "model": "m", "split": "test"},
    {"prompt": "Three, or four?", "response_tokens": 13, "model": "n", "split": "train"},
]


def write(folder: Path, suffix: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"table{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as lines:
            writer = csv.DictWriter(lines, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_every_format_gives_the_same(tmp_path: Path, suffix: str) -> None:
    dataset = load_dataset(write(tmp_path, suffix, ROWS))
    assert dataset.prompts == ["One?", "Two?", "Three, or four?"]
    assert dataset.lengths.tolist() == [5, 8, 13]
    assert dataset.lengths.dtype == np.int64
    assert dataset.rows.tolist() == [1, 2, 3]
    assert dataset.rejected == []
    assert dataset.samples is None
    assert dataset.model is None


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_rows_are_selected(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, suffix, ROWS)
    dataset = load_dataset(path, split="train", where={"model": "n"})
    assert dataset.rows.tolist() == [3]
    assert dataset.model == "n"
    assert dataset.selection == "model=n, split=train"
    assert load_dataset(path, limit=2).rows.tolist() == [1, 2]


def test_columns_are_guessed_or_named(tmp_path: Path) -> None:
    rows = [{"question": "Why?", "output_tokens": 3, "other": "How?", "n": 4, "length": 9}]
    path = write(tmp_path, ".jsonl", rows)
    assert load_dataset(path).prompts == ["Why?"]
    assert load_dataset(path).lengths.tolist() == [3]
    named = load_dataset(path, prompt_column="other", length_column="n")
    assert named.prompts == ["How?"]
    assert named.lengths.tolist() == [4]


def test_answers_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path, ".csv", [{"prompt": "Hi", "answer": "a b c"}])
    dataset = load_dataset(path, count_tokens=lambda texts: [len(text.split()) for text in texts])
    assert dataset.lengths.tolist() == [3]
    with pytest.raises(InputError, match="holds answers as text"):
        load_dataset(path)


def test_an_answer_column_goes_before_a_guessed_length(tmp_path: Path) -> None:
    path = write(tmp_path, ".jsonl", [{"prompt": "Hi", "response_tokens": 9, "draft": "a b"}])
    dataset = load_dataset(path, answer_column="draft", count_tokens=lambda texts: [2] * len(texts))
    assert dataset.lengths.tolist() == [2]


def test_a_chat_is_kept_whole(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    path = write(tmp_path, ".jsonl", [{"messages": messages, "length": 1}])
    dataset = load_dataset(path)
    assert dataset.prompts == ["Why?"]
    assert dataset.chats is not None
    (chat,) = dataset.chats
    assert chat is not None
    assert [message.for_template() for message in chat.messages()] == messages


def test_samples_are_read_with_a_guessed_length_only(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi", "response_tokens": 3, "other": 7, "samples": [3, 5, 4]}]
    path = write(tmp_path, ".parquet", rows)
    samples = load_dataset(path).samples
    assert samples is not None
    assert samples[0].tolist() == [3, 5, 4]
    assert load_dataset(path, length_column="other").samples is None


MALFORMED = [
    ({"response_tokens": -1}, "negative: -1"),
    ({"response_tokens": 2.5}, "not a whole number of tokens: 2.5"),
    ({"response_tokens": float("nan")}, "NaN"),
    ({"response_tokens": float("inf")}, "too large"),
    ({"response_tokens": 10**400}, "too large"),
    ({"response_tokens": None}, "missing"),
    ({"response_tokens": "many"}, "not a number"),
    ({"response_tokens": True}, "not a number"),
    ({"response_tokens": [4]}, "not a number"),
    ({"prompt": None}, "no prompt"),
    ({"prompt": "  \n"}, "empty"),
    ({"prompt": 7}, "not text"),
    ({"prompt": [{"role": "user"}]}, "not of messages"),
    ({"prompt": []}, "not of messages"),
]


@pytest.mark.parametrize(("change", "reason"), MALFORMED)
def test_a_malformed_row_is_left_out_with_its_reason(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    path = write(tmp_path, ".jsonl", [ROWS[0], {**ROWS[1], **change}, ROWS[2]])
    dataset = load_dataset(path)
    assert dataset.rows.tolist() == [1, 3]
    (rejection,) = dataset.rejected
    assert rejection.row == 2
    assert reason in rejection.reason
    with pytest.raises(InputError, match=r"table\.jsonl, row 2: .*--skip-malformed"):
        dataset.refuse_rejected()


@pytest.mark.parametrize("samples", [None, [], [3, -1], "3"])
def test_malformed_samples_are_left_out(tmp_path: Path, samples: object) -> None:
    good = {**ROWS[0], "samples": [5, 6]}
    path = write(tmp_path, ".jsonl", [good, {**ROWS[1], "samples": samples}])
    dataset = load_dataset(path)
    assert dataset.rows.tolist() == [1]
    assert "samples" in dataset.rejected[0].reason


def test_lines_that_are_no_json_objects_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "table.jsonl"
    path.write_text('{"prompt": "Hi", "length": 2}\n{"prompt"\n\n[1]\n', encoding="utf-8")
    dataset = load_dataset(path)
    assert dataset.rows.tolist() == [1]
    assert [(row, reason[:5]) for row, reason in dataset.rejected] == [(2, "not J"), (4, "not a")]


def test_a_short_line_of_csv_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("prompt,length\nHi\nHo,2\n", encoding="utf-8")
    dataset = load_dataset(path)
    assert dataset.rows.tolist() == [2]
    assert dataset.rejected[0].row == 1


def test_nothing_usable_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, ".jsonl", [{"prompt": "Hi", "length": -2}] * 3)
    with pytest.raises(InputError, match="none of 3 rows is usable; row 1: length is negative"):
        load_dataset(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(strange_rows("prompt", "length"))
def test_every_row_is_kept_or_rejected(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    """Whatever is in a table: one line, or all of its rows accounted for."""
    path = write(tmp_path, ".jsonl", rows)
    try:
        dataset = load_dataset(path)
    except InputError:
        _refused(path)
        return
    accounted = [*dataset.rows.tolist(), *(rejection.row for rejection in dataset.rejected)]
    assert sorted(accounted) == list(range(1, len(rows) + 1))
    assert (dataset.lengths >= 0).all()


def _refused(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as raised:
        load_dataset(path, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    assert "no such file" in _refused(tmp_path / "none.csv")
    assert "not a file" in _refused(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    assert "not from .txt" in _refused(tmp_path / "a.txt")
    (tmp_path / "a.parquet").write_text("x")
    assert "not a readable parquet file" in _refused(tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_bytes(b"prompt,length\n\xff\xfe,1\n")
    assert "not UTF-8" in _refused(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("prompt,length\n")
    assert "empty" in _refused(tmp_path / "b.csv")
    (tmp_path / "b.jsonl").write_text("\n")
    assert "empty" in _refused(tmp_path / "b.jsonl")


def test_columns_and_rows_that_are_not_there_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, ".jsonl", ROWS)
    listed = "the columns are prompt, response_tokens, model, split"
    assert f"did you mean 'prompt'? {listed}" in _refused(path, prompt_column="promt")
    assert listed in _refused(path, length_column="x")
    assert listed in _refused(path, where={"size": "1"})
    assert "there are test, train" in _refused(path, split="valid")
    assert "at least 1" in _refused(path, limit=0)
    other = write(tmp_path, ".csv", [{"a": 1, "response_tokens": 2}])
    assert "no column of prompts found; the columns are a, response_tokens" in _refused(other)
    third = write(tmp_path, ".csv", [{"prompt": "Hi", "b": 2}])
    assert "no column of answer lengths found; the columns are prompt, b" in _refused(third)


def test_several_columns_of_lengths_are_several_answers(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "a", "served": 5, "cold": 7, "warm": 9}, {"prompt": "b", "served": 1}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = load_dataset(path, length_column="served,cold,warm")
    assert dataset.lengths.tolist() == [5]
    assert dataset.samples is not None
    assert dataset.samples[0].tolist() == [5, 7, 9]
    assert [(each.row, each.reason) for each in dataset.rejected] == [(2, "cold is missing")]
    with pytest.raises(InputError, match="no column 'hot'"):
        load_dataset(path, length_column="served,hot")


def test_a_line_of_csv_with_too_many_cells_is_left_out(tmp_path: Path) -> None:
    """A comma that is not quoted would cut the prompt short; one at the end of lines is empty."""
    path = tmp_path / "t.csv"
    path.write_text("response_tokens,prompt\n5,Hello\n6,Hello, how are you\n7,Bye,\n")
    dataset = load_dataset(path)
    assert (dataset.prompts, dataset.lengths.tolist()) == (["Hello", "Bye"], [5, 7])
    assert [tuple(each) for each in dataset.rejected] == [
        (2, "it has 3 cells, the header has 2"),
    ]
    path.write_text("theirs,others\n1,2\n3,4,5\n")
    with pytest.raises(InputError, match="no column of prompts found; the columns are theirs, oth"):
        load_dataset(path)


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    """Which of them is meant nobody knows; empty names, of commas at the end of lines, are none."""
    path = tmp_path / "t.csv"
    path.write_text("prompt,response_tokens,response_tokens,,\nHello,3,4,,\n")
    with pytest.raises(InputError, match="several columns are called 'response_tokens': rename al"):
        load_dataset(path)
    path.write_text("prompt,response_tokens,,\nHello,3,,\n")
    assert load_dataset(path).lengths.tolist() == [3]


def test_columns_of_times_are_read_beside_prompts(tmp_path: Path) -> None:
    """Python has no nanoseconds, and no year 100,000; neither is asked for here."""
    path = tmp_path / "t.parquet"
    prompts = {"prompt": ["a", "b"], "response_tokens": [5, 6]}
    nanoseconds = pa.array([1_000_000_000_000_000_001, None], pa.timestamp("ns", "UTC"))
    nested = pa.array(
        [{"at": 1, "took": [1_001]}, None],
        pa.struct({"at": pa.timestamp("ns"), "took": pa.list_(pa.duration("ns"))}),
    )
    pq.write_table(pa.table({**prompts, "at": nanoseconds, "nested": nested}), path)
    assert load_dataset(path).lengths.tolist() == [5, 6]
    assert load_dataset(path, where={"at": "2001-09-09 01:46:40+00:00"}).prompts == ["a"]
    late = pa.array([2**62, 0], pa.timestamp("us"))
    pq.write_table(pa.table({**prompts, "at": late}), path)
    with pytest.raises(InputError, match="not a readable parquet file: date value out of range"):
        load_dataset(path)


def test_lengths_may_be_decimals_of_a_database(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    lengths = pa.array([5, None, 7], pa.decimal128(38, 0))
    pq.write_table(pa.table({"prompt": ["a", "b", "c"], "response_tokens": lengths}), path)
    dataset = load_dataset(path)
    assert dataset.lengths.tolist() == [5, 7]
    assert [tuple(each) for each in dataset.rejected] == [(2, "response_tokens is missing")]
