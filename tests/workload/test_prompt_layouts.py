"""Prompts and answers in the layouts that people have: every one in every kind of file.

The rows are made up, in layouts as published: the sources are named where the layouts are read.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lengthwise.errors import InputError
from lengthwise.workload.conversation import Turns
from lengthwise.workload.dataset import Dataset, load_dataset
from lengthwise.workload.exchanges import load_prompts
from lengthwise.workload.inspection import inspect_prompts
from lengthwise.workload.records import UnusableError
from tests.support.published_layouts import CASES, Case, Row

SHARED = Path(__file__).parents[3] / "shared" / "fixtures"


def words(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]


#: columns whose cells are of several types, which parquet does not have
MIXED = {"openai log", "lm-eval samples"}
#: JSON in cells is what CSV has instead of lists and objects
NESTED_IN_CSV = {"sharegpt", "lmsys", "wildchat", "openai fine-tuning", "alpaca", "dolly"}


def write_parquet(path: Path, rows: list[Row]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_jsonl(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_json(path: Path, rows: list[Row]) -> None:
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def write_csv(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        for row in rows:
            cells = row.items()
            writer.writerow(
                {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in cells}
            )


WRITERS: dict[str, Callable[[Path, list[Row]], None]] = {
    ".parquet": write_parquet,
    ".jsonl": write_jsonl,
    ".json": write_json,
    ".csv": write_csv,
}


def read(path: Path, **options: Any) -> Dataset:
    return load_dataset(path, count_tokens=words, **options)


def first_prompt(dataset: Dataset) -> list[str]:
    chat = None if dataset.chats is None else dataset.chats[0]
    return [] if chat is None else [message.content for message in chat.messages()]


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.layout)
def test_a_layout_is_recognised_and_read(tmp_path: Path, case: Case, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    if (suffix == ".csv" and case.layout not in NESTED_IN_CSV) or (
        suffix == ".parquet" and case.layout in MIXED
    ):
        suffix, path = ".jsonl", tmp_path / "rows.ndjson"
    WRITERS[suffix](path, case.rows)
    dataset = read(path)
    assert dataset.layout == case.layout
    assert dataset.prompts == case.prompts
    assert dataset.lengths.tolist() == case.lengths
    assert first_prompt(dataset) == list(case.said)
    assert sum(dataset.left_out.values()) == case.left_out
    assert dataset.rejected == []


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_packed_files_are_read(tmp_path: Path, suffix: str, packing: str) -> None:
    case = CASES[0]
    plain = tmp_path / f"rows{suffix}"
    WRITERS[suffix](plain, case.rows)
    packed = plain.with_name(plain.name + packing)
    if packing == ".gz":
        packed.write_bytes(gzip.compress(plain.read_bytes()))
    else:
        with pa.CompressedOutputStream(str(packed), "zstd") as out:
            out.write(plain.read_bytes())
    assert read(packed).prompts == case.prompts
    damaged = packed.read_bytes()[:-9]
    packed.write_bytes(damaged)
    with pytest.raises(InputError) as refused:
        read(packed)
    assert "\n" not in str(refused.value)


def test_a_json_file_may_be_lines_or_one_object(tmp_path: Path) -> None:
    rows = next(case for case in CASES if case.layout == "alpaca").rows * 2
    write_jsonl(tmp_path / "lines.json", rows)
    assert len(read(tmp_path / "lines.json").prompts) == 2
    lines = (tmp_path / "lines.json").read_bytes().replace(b"\n", b"\n\n")
    (tmp_path / "lines.json").write_bytes(b"\xef\xbb\xbf\n" + lines)
    assert read(tmp_path / "lines.json").rows.tolist() == [2, 4]
    for document in (
        {"data": rows},
        {"version": 1, "train": rows},
        {"rows": [{"row_idx": place, "row": row} for place, row in enumerate(rows)]},
        {name: {str(place): row[name] for place, row in enumerate(rows)} for name in rows[0]},
    ):
        path = tmp_path / "document.json"
        path.write_text(json.dumps(document, indent=2))
        assert len(read(path).prompts) == 2
    (tmp_path / "cut.json").write_text(json.dumps(rows)[:-5])
    with pytest.raises(InputError, match="not a readable json file"):
        read(tmp_path / "cut.json")


def test_a_list_may_have_numbers_that_are_none(tmp_path: Path) -> None:
    """Python and pandas write NaN, which is no JSON."""
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{**row, "score": float("nan")} for row in CASES[0].rows]))
    assert read(path).prompts == CASES[0].prompts


def test_conversations_are_read_as_numpy_writes_them(tmp_path: Path) -> None:
    """What pandas' to_csv makes of a parquet file of conversations."""
    path = tmp_path / "rows.csv"
    said = (
        "[{'content': 'how can\\ni', 'role': 'user'}\n {'content': 'You can', 'role': 'assistant'}]"
    )
    with path.open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerows([["conversation_id", "model", "conversation"], ["x", "m", said]])
    dataset = read(path)
    assert (dataset.layout, dataset.prompts) == ("lmsys", ["how can\ni"])


def test_empty_answers_are_left_out(tmp_path: Path) -> None:
    """A text without words has no length to learn from; a length of 0 is what was counted."""
    rows = [{"instruction": "a", "output": text} for text in ("", "x y", "  ")]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert read(tmp_path / "rows.jsonl").left_out == {"the answer is empty": 2}


def test_guidellm_is_read_from_its_report(tmp_path: Path) -> None:
    done = next(case for case in CASES if case.layout == "guidellm").rows[0]
    report = {
        "metadata": {"version": 1},
        "args": {},
        "benchmarks": [{"requests": {"successful": [done, done], "errored": [done]}}],
    }
    path = tmp_path / "benchmarks.json"
    path.write_text(json.dumps(report))
    dataset = read(path)
    assert dataset.prompts == ["Why?"] * 2
    assert dataset.left_out == {"the request is errored": 1}


@pytest.mark.parametrize("turns", list(Turns))
def test_which_turns_are_rows_can_be_said(tmp_path: Path, turns: Turns) -> None:
    write_jsonl(tmp_path / "rows.jsonl", CASES[2].rows)
    dataset = read(tmp_path / "rows.jsonl", turns=turns)
    assert dataset.prompts == {"all": ["Hi", "Bye"], "first": ["Hi"], "last": ["Bye"]}[turns]
    assert ("of each conversation" in dataset.selection) == (turns != "all")


def test_a_call_of_a_tool_is_rendered_as_an_object(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", CASES[4].rows)
    dataset = read(tmp_path / "rows.jsonl")
    assert dataset.chats is not None
    chat = dataset.chats[1]
    assert chat is not None
    (call,) = chat.messages()[1].for_template()["tool_calls"]
    assert call["function"] == {"name": "sum", "arguments": {"of": [40, 2]}}
    found = inspect_prompts(tmp_path / "rows.jsonl")
    assert (found["with_attachments"], found["with_tool_calls"]) == (1, 1)


def test_several_answers_are_samples(tmp_path: Path) -> None:
    row = {"arguments": {"gen_args_0": {"arg_0": "Q:", "arg_1": {}}}, "resps": [["a b", "c", "d"]]}
    write_jsonl(tmp_path / "rows.jsonl", [row])
    dataset = read(tmp_path / "rows.jsonl")
    assert dataset.lengths.tolist() == [2]
    assert dataset.samples is not None
    assert dataset.samples[0].tolist() == [2, 1, 1]


# Answers whose prompts are in another file ----------------------------------------------------

BATCH_OUT = [
    {
        "id": "b1",
        "custom_id": "r1",
        "response": {
            "status_code": 200,
            "body": {
                "choices": [{"message": {"content": "x"}}],
                "usage": {"prompt_tokens": 3, "completion_tokens": 7},
            },
        },
        "error": None,
    },
    {"id": "b2", "custom_id": "r2", "response": {"status_code": 500, "body": {}}, "error": None},
    {"id": "b3", "custom_id": "r3", "response": {"status_code": 200, "body": {}}, "error": None},
]
BATCH_IN = [
    {"custom_id": f"r{n}", "method": "POST", "body": {"messages": [{"role": "user", "content": c}]}}
    for n, c in ((2, "two"), (1, "one"))
]


def test_a_batch_is_read_with_its_input(tmp_path: Path) -> None:
    out, asked = tmp_path / "out.jsonl", tmp_path / "in.jsonl"
    write_jsonl(out, BATCH_OUT)
    write_jsonl(asked, BATCH_IN)
    with pytest.raises(UnusableError, match="--prompts"):
        read(out)
    dataset = read(out, prompts=asked)
    assert dataset.prompts == ["one"]
    assert dataset.lengths.tolist() == [7]
    assert dataset.left_out == {
        "the request failed": 1,
        "its prompt is not in the file of the prompts": 1,
    }
    with pytest.raises(InputError, match="no requests in it"):
        read(out, prompts=out)


def test_a_file_of_prompts_beside_prompts_is_refused(tmp_path: Path) -> None:
    """It would not be looked at, whether there is one or not."""
    path = tmp_path / "t.jsonl"
    write_jsonl(path, [{"prompt": "one", "response_tokens": 3}])
    with pytest.raises(
        InputError, match=r"has prompts of its own: leave --prompts .*in\.jsonl out"
    ):
        read(path, prompts=tmp_path / "in.jsonl")
    write_jsonl(path, [{"instruction": "one", "output": "two"}])
    with pytest.raises(InputError, match="has prompts of its own"):
        read(path, prompts=tmp_path / "in.jsonl")


def test_aiperf_is_read_with_the_inputs_beside_it(tmp_path: Path) -> None:
    def record(turn: int, tokens: int | None) -> Row:
        metrics = {"error_isl": {"value": 5, "unit": "tokens"}}
        if tokens is not None:
            metrics = {
                "input_sequence_length": {"value": 5, "unit": "tokens"},
                "output_sequence_length": {"value": tokens, "unit": "tokens"},
            }
        return {
            "metadata": {
                "conversation_id": "c1",
                "turn_index": turn,
                "request_start_ns": 1759813207532900363 + turn * 10**9,
            },
            "metrics": metrics,
            "error": None if tokens is not None else {"code": 499, "message": "cancelled"},
        }

    run = tmp_path / "profile_export.jsonl"
    write_jsonl(run, [record(0, 9), record(1, 4), record(2, None)])
    with pytest.raises(UnusableError, match=r"--prompts inputs\.json"):
        read(run)
    payloads = [{"messages": [{"role": "user", "content": text}]} for text in ("one", "two", "x")]
    inputs = {"data": [{"session_id": "c1", "payloads": payloads}]}
    (tmp_path / "inputs.json").write_text(json.dumps(inputs))
    dataset = read(run)
    assert dataset.prompts == ["one", "two"]
    assert dataset.lengths.tolist() == [9, 4]
    assert dataset.left_out == {"the request failed": 1}


def test_what_has_no_prompts_says_so(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps({"input_lens": [1, 2], "output_lens": [3, 4], "ttfts": [0.1]}))
    with pytest.raises(UnusableError, match="does not write its prompts down"):
        read(path)


# Prompts alone --------------------------------------------------------------------------------


def test_prompts_are_read_without_answers(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, CASES[0].rows)
    prompts = load_prompts(path, limit=2)
    assert prompts.texts == ["Why?", "And?"]
    assert [message["role"] for message in prompts.conversations()[0]] == ["system", "user"]
    write_jsonl(path, [{"question": "Why?"}, {"question": ""}])
    prompts = load_prompts(path)
    assert prompts.texts == ["Why?"]
    assert prompts.conversations() == [[{"role": "user", "content": "Why?"}]]
    assert [rejection.row for rejection in prompts.rejected] == [2]


@pytest.mark.parametrize(
    ("name", "layout", "rows"),
    [
        ("ShareGPT_V3.json", "sharegpt", 3),
        ("sharegpt.jsonl", "sharegpt", 3),
        ("alpaca.json", "alpaca", 1),
        ("alpaca_input.jsonl", "alpaca", 1),
        ("dolly.jsonl", "dolly", 1),
        ("lmsys.jsonl", "lmsys", 1),
        ("openai_finetune.jsonl", "openai log", 1),
        ("openai_messages.jsonl", "openai log", 2),
        ("samples_gsm8k.jsonl", "lm-eval samples", 1),
        ("vllm_ltr.jsonl", "vllm-ltr", 1),
    ],
)
def test_files_as_people_have_them_are_read(name: str, layout: str, rows: int) -> None:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"the file is not there: {name}")
    found = inspect_prompts(path)
    assert (found["layout"], found["rows"], found["malformed"]) == (layout, rows, 0)
