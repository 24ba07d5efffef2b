"""JSON of others: whatever it is, it is read, left out, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lengthwise.errors import InputError
from lengthwise.files import json_objects, parse_json, read_json
from lengthwise.measure import read_results
from lengthwise.serve.command import take_additional_config
from lengthwise.workload.conversation import read_messages, read_tools
from lengthwise.workload.dataset import load_dataset
from tests.support.published_layouts import CASES

DEEP = "[" * 100_000  # deeper than Python's reader goes


def test_what_is_nested_too_deeply_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(DEEP)
    path = tmp_path / "a.json"
    path.write_text(DEEP)
    with pytest.raises(InputError, match=r"a\.json is not JSON: it is nested too deeply"):
        read_json(path)
    path.write_text(f'{DEEP}\n{{"a": 1}}\n')
    assert list(json_objects(path)) == [{"a": 1}]


def test_cells_that_are_nested_too_deeply_are_left_out(tmp_path: Path) -> None:
    assert read_tools(DEEP) == ()
    call = {"function": {"name": "a", "arguments": DEEP}}
    (message,) = read_messages([{"role": "user", "content": "x", "tool_calls": [call]}])
    assert message.call_count == 1
    guidellm = next(case for case in CASES if "request_args" in case.rows[0])
    path = tmp_path / "rows.jsonl"
    deep = {**guidellm.rows[0], "request_args": DEEP}
    path.write_text("".join(json.dumps(row) + "\n" for row in (*guidellm.rows, deep)))
    dataset = load_dataset(path)
    assert "request_args is not JSON" in str(dataset.rejected)
    assert dataset.lengths.tolist() == guidellm.lengths


def test_files_and_flags_that_are_nested_too_deeply_are_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(DEEP)
    with pytest.raises(InputError, match=r"run\.json is damaged"):
        read_results(tmp_path)
    with pytest.raises(InputError, match="--additional-config is not JSON: it is nested too"):
        take_additional_config(["--additional-config", DEEP])
