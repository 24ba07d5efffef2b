"""A trace on disk, opened: its layout, and its sound requests part by part.

The folders that Lengthwise itself leaves behind are traces as well:

    requests.jsonl, steps.jsonl      what the scheduler writes where the setting `record` says
    lengths-00000001.jsonl, …        what it writes where the setting `length_log` says
    rounds.jsonl, round-000.parquet  what `lengthwise bench` writes

Their formats are described in docs/reference/records.md.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.files import json_objects
from lengthwise.workload.column_files import Columns, columns_of_records, open_parts
from lengthwise.workload.layouts import CountPrompt, Layout, flattened, nested_layout, recognise
from lengthwise.workload.length_log import segments
from lengthwise.workload.prompt_layouts.named_columns import PROMPT_COLUMNS
from lengthwise.workload.records import Rejection, cell_is, open_records, require_column
from lengthwise.workload.servegen import LAYOUT, Client, draw, is_client, open_clients
from lengthwise.workload.trace_rows import TraceRows, TraceState

_TEXT_KINDS: Final = (".jsonl", ".json", ".gz", ".zst", ".ndjson")  # whose rows may be nested


def is_recorded(folder: Path) -> bool:
    """Whether a folder is one of Lengthwise's own."""
    return any((folder / name).is_file() for name in ("requests.jsonl", "rounds.jsonl")) or bool(
        segments(folder)
    )


def recorded_requests(folder: Path) -> Path:
    """The file of a folder that says when requests arrived and how long they were.

    That is the scheduler's own record, or the first round of a benchmark under fcfs (the first of
    all where there is none). A length log has several files: for one it is the folder itself.

    Raises:
        InputError: the folder is neither, or no round of the benchmark was finished.
    """
    log = folder / "requests.jsonl"
    if log.is_file():
        return log
    if segments(folder):
        return folder
    rounds = folder / "rounds.jsonl"
    if not rounds.is_file():
        raise InputError(
            f"{folder}: no folder that the setting `record` names (no requests.jsonl) or "
            "`length_log` (no lengths-*.jsonl), nor one that `lengthwise bench` wrote (no "
            "rounds.jsonl): give such a folder, or a file"
        )
    finished = [
        (policy, path)
        for number, policy in _rounds(rounds)
        if (path := folder / f"round-{number:03d}.parquet").is_file()
    ]
    if not finished:
        raise InputError(f"{folder}: no finished round: run `lengthwise bench` again")
    return next((path for policy, path in finished if policy == "fcfs"), finished[0][1])


def _rounds(path: Path) -> list[tuple[int, str]]:
    """Number and policy of every round that has a whole line."""
    return [
        (value["round"], str(value.get("policy")))
        for value in json_objects(path)
        if isinstance(value.get("round"), int)
    ]


@dataclass(frozen=True)
class TracePart:
    """Some sound requests of a trace, in the order of its rows."""

    numbers: NDArray[np.int64]  #: shape (n,), of the rows
    arrival_s: NDArray[np.float64]  #: shape (n,), s from some origin
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    rows: int  #: how many rows were read for it
    failed: NDArray[np.int64]  #: numbers of the rows of requests without an answer
    rejected: list[Rejection]  #: malformed rows
    sessions: NDArray[np.object_] | None = None  #: shape (n,), whose requests they are, or None
    delay_s: NDArray[np.float64] | None = None  #: shape (n,), see `TraceRows.delay_s`
    blocks: Any = None  #: pyarrow list array of shape (n,), where the trace has blocks

    def take(self, places: NDArray[np.intp]) -> TracePart:
        """The requests at some places, in that order."""
        return replace(
            self,
            numbers=self.numbers[places],
            arrival_s=self.arrival_s[places],
            prompt_tokens=self.prompt_tokens[places],
            output_tokens=self.output_tokens[places],
            sessions=None if self.sessions is None else self.sessions[places],
            delay_s=None if self.delay_s is None else self.delay_s[places],
            blocks=None if self.blocks is None else self.blocks.take(places),
        )


@dataclass(frozen=True)
class TraceFile:
    """A trace on disk, read from its start by each call of `parts`."""

    path: Path
    layout: Layout
    parts: Callable[[TraceState], Iterator[TracePart]]
    in_order: bool  #: whether its rows are in the order in which requests arrived
    notes: tuple[str, ...] = ()


def open_trace(
    path: str | Path,
    *,
    where: Mapping[str, str] | None = None,
    answer_tokens: int | None = None,
    count_prompt: CountPrompt | None = None,
    seed: int = 0,
) -> TraceFile:
    """Open a trace and tell its layout; see `load_trace`.

    Raises:
        InputError: no such file, not a table, or no known layout.
    """
    path = Path(path)
    if is_client(path):
        clients = open_clients(path)
        notes = (f"requests are drawn from what {len(clients)} clients do, with seed {seed}",)
        return TraceFile(path, LAYOUT, lambda state: _drawn_parts(clients, seed), True, notes)
    is_others = path.is_dir() and any(path.glob("*.json")) and not is_recorded(path)
    file = recorded_requests(path) if path.is_dir() and not is_others else path
    source, layout, names = _open_columns(file, answer_tokens is not None, count_prompt)
    conditions = dict(where or {})
    return TraceFile(
        path,
        layout,
        lambda state: _parts(source(), layout, state, conditions, answer_tokens),
        in_order=layout.by_arrival and layout.session not in names,
    )


def is_trace(path: Path) -> bool:
    """Whether a file is a trace: one that says when requests arrived, and has no prompts.

    Raises:
        InputError: no such file, or not a table.
    """
    if is_client(path):
        return True
    records = open_records(path)
    if nested_layout(records.head) is not None:
        return True
    try:
        recognise(path, records.names, has_answers=True)
    except InputError:
        return False
    # A log may have both, and prompts are what a predictor can be asked about.
    return not set(PROMPT_COLUMNS) & set(records.names)


def _open_columns(
    file: Path, has_answers: bool, count_prompt: CountPrompt | None
) -> tuple[Callable[[], Iterator[Columns]], Layout, list[str]]:
    """The columns of a table, their layout and their names; nested rows are made into columns."""
    if file.is_dir() and not is_recorded(file):
        return _open_conversations(sorted(file.glob("*.json")))
    if file.is_file() and file.suffix.lower() in _TEXT_KINDS:
        records = open_records(file)
        nested = nested_layout(records.head, count_prompt)
        if nested is not None:
            return (
                lambda: columns_of_records(file, flattened(nested, iter(records))),
                nested.layout,
                records.names,
            )
    table = open_parts(file)
    return table.parts, recognise(table.path, table.names, has_answers), table.names


def _open_conversations(
    files: list[Path],
) -> tuple[Callable[[], Iterator[Columns]], Layout, list[str]]:
    """A folder with a file for each conversation, as WEKA's traces are published."""
    records = [open_records(each) for each in files]
    nested = nested_layout(records[0].head)
    if nested is None:
        raise InputError(
            f"{files[0].parent}: its .json files are no conversations of agents, each with its "
            "requests: give one file"
        )
    return (
        lambda: columns_of_records(
            files[0].parent, flattened(nested, itertools.chain.from_iterable(records))
        ),
        nested.layout,
        records[0].names,
    )


def _parts(
    columns: Iterator[Columns],
    layout: Layout,
    state: TraceState,
    where: Mapping[str, str],
    answer_tokens: int | None,
) -> Iterator[TracePart]:
    seen: dict[str, Counter[str]] = {name: Counter() for name in where}
    chosen = 0
    for columns_of_part in columns:
        count = len(columns_of_part.numbers) + len(columns_of_part.unreadable)
        part = _selected(columns_of_part, where, seen)
        rows = TraceRows(part, layout, state, answer_tokens)
        chosen += len(part.numbers)
        sound = rows.sound
        sessions = None if rows.delay_s is None else rows.sessions()
        yield TracePart(
            numbers=part.numbers[sound],
            arrival_s=rows.arrival_s[sound],
            prompt_tokens=rows.prompt_tokens[sound].astype(np.int64),
            output_tokens=rows.output_tokens[sound].astype(np.int64),
            rows=count,
            failed=part.numbers[rows.failed],
            rejected=rows.rejected,
            sessions=None if sessions is None else np.array(sessions, np.object_)[sound],
            delay_s=None if sessions is None or rows.delay_s is None else rows.delay_s[sound],
            blocks=None if rows.blocks is None else rows.blocks.take(sound),
        )
    if not chosen:
        for name, found in seen.items():
            if where[name] not in found and found:
                listed = ", ".join(sorted(found)[:10])
                raise InputError(f"no row has {name}={where[name]}: there are {listed}")


def _selected(columns: Columns, where: Mapping[str, str], seen: dict[str, Counter[str]]) -> Columns:
    """The rows that meet all conditions; notes what was there."""
    import pyarrow
    import pyarrow.compute as pc

    for name, value in where.items():
        require_column(columns.path, columns.names, name)
        cells = columns.read(name)
        try:
            text = cells.cast(pyarrow.string())
        except pyarrow.ArrowException:
            raise InputError(
                f"--where {name}={value}: this column of {columns.path} holds neither texts nor "
                "numbers: name another"
            ) from None
        if not pyarrow.types.is_floating(cells.type):
            cells = text
        wanted = []
        for each in pc.value_counts(cells).to_pylist():
            if cell_is(each["values"], value):
                wanted.append(each["values"])
            else:
                seen[name][str(each["values"])] += each["counts"]
        mask = pc.or_(
            # The nearest number of 32 bits is another one than that of 64.
            pc.equal(text, value).fill_null(False),
            pc.is_in(cells, pyarrow.array(wanted, cells.type)),
        )
        if pc.any(mask).as_py():
            seen[name][value] += 1
        columns = replace(
            columns,
            numbers=columns.numbers[mask.to_numpy(zero_copy_only=False)],
            read=_filtered(columns.read, mask),
        )
    return columns


def _filtered(read: Callable[[str], Any], mask: Any) -> Callable[[str], Any]:
    return lambda name: read(name).filter(mask)


def _drawn_parts(clients: list[Client], seed: int) -> Iterator[TracePart]:
    done = 0
    for drawn in draw(clients, seed):
        numbers = np.arange(done + 1, done + drawn.arrival_s.size + 1)
        done += numbers.size
        yield TracePart(numbers, *drawn, numbers.size, np.zeros(0, np.int64), [])
