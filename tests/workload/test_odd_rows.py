"""Whatever stands in a file of a known layout: it is read, counted, or refused in one line."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lengthwise.errors import InputError
from lengthwise.predict.tokenizer import load_tokenizer
from lengthwise.workload.dataset import load_dataset
from lengthwise.workload.exchanges import load_prompts
from lengthwise.workload.inspection import inspect_prompts, inspect_trace
from lengthwise.workload.open_trace import is_trace
from lengthwise.workload.trace import load_trace
from tests.support.published_layouts import CASES, Row

REFERENCE = load_tokenizer("reference")

TRACES: list[list[Row]] = [
    [{"id": "c", "requests": [{"t": 0, "in": 5, "out": 2, "hash_ids": [1]}]}],
    [
        {
            "metadata": {"request_start_ns": 5},
            "metrics": {
                "input_sequence_length": {"value": 3},
                "output_sequence_length": {"value": 3},
            },
        }
    ],
    [
        {"session_id": "a", "timestamp": 0, "input_length": 5, "output_length": 2, "hash_ids": [1]},
        {"session_id": "a", "delay": 5, "input_length": 5, "output_length": 2, "hash_ids": [1]},
    ],
    [{"timestamp": 1, "data": {"input_tokens": 3, "output_tokens": 3}}],
    [
        {
            "startTime": "2026-11-01T10:00:00Z",
            "endTime": "",
            "prompt_tokens": 1,
            "completion_tokens": 2,
        }
    ],
]

ODD: list[Any] = [
    None,
    True,
    -1,
    3.5,
    float("nan"),
    10**400,
    "",
    "x",
    "\ud800",
    "[{",
    "[" * 100_000,
    '{"a":',
    '[{"role": "user", "content": "a"}]',
    [],
    {},
    [None],
    [[]],
    {"a": {}},
    [{"role": None}],
    [{"role": "user"}],
    [{"role": "user", "content": 5}],
]


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where everything in a row is, however deep."""
    if place:
        yield place
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(each, (*place, key))


def changed(row: Row, chance: random.Random) -> Row:
    """The row with one thing in it gone, or something odd in its place."""
    copied: Row = json.loads(json.dumps(row))
    *way, last = chance.choice(list(places(copied)))
    value: Any = copied
    for key in way:
        value = value[key]
    if chance.random() < 0.2:
        del value[last]
    else:
        value[last] = chance.choice(ODD)
    return copied


READERS: list[Callable[[Path], object]] = [
    lambda path: load_dataset(path, count_tokens=REFERENCE.count_tokens, refuses=REFERENCE.refuses),
    load_prompts,
    inspect_prompts,
    load_trace,
    inspect_trace,
    is_trace,
]


@pytest.mark.parametrize("seed", range(12))
def test_odd_rows_are_read_counted_or_refused(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    for rows in [case.rows for case in CASES] + TRACES:
        odd = [changed(row, chance) if chance.random() < 0.8 else row for row in rows * 2]
        path = tmp_path / chance.choice(["rows.jsonl", "rows.json", "one.json"])
        if path.name == "rows.jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in odd))
        else:
            path.write_text(json.dumps(odd if path.name == "rows.json" else {"data": odd}))
        for read in READERS:
            try:
                read(path)
            except InputError as refusal:
                assert "\n" not in str(refusal)  # noqa: PT017  (it may be refused, or not)
