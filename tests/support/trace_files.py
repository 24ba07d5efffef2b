"""Files of requests as tests write them, and how one is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest

from lengthwise.errors import InputError
from lengthwise.workload.trace import load_trace

Row = dict[str, Any]

SUFFIXES = [".parquet", ".jsonl", ".csv"]


def write(folder: Path, suffix: str, columns: dict[str, Sequence[Any]], name: str = "t") -> Path:
    path = folder / f"{name}{suffix}"
    if suffix == ".jsonl":
        rows = zip(*columns.values(), strict=True)
        lines = [json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows]
        path.write_text("".join(lines), encoding="utf-8")
    elif suffix == ".csv":
        pc.write_csv(pa.table({name: pa.array(cells) for name, cells in columns.items()}), path)
    else:
        pq.write_table(pa.table(columns), path)
    return path


def plain(arrival: Sequence[Any], prompt: Sequence[Any], output: Sequence[Any]) -> dict[str, Any]:
    return {"arrival_s": arrival, "prompt_tokens": prompt, "output_tokens": output}


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as raised:
        load_trace(path, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def lines(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
