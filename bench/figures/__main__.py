"""Make the tables that need no wall clock: python -m bench.figures [NAME …]."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from bench.figures import (
    doubt,
    drift,
    memory,
    papers,
    policies,
    preemption,
    published,
    service_time,
)
from bench.figures.sources import Sources
from bench.figures.table import Table, make_tables, write
from lengthwise.errors import InputError, LengthwiseError, unknown_name
from lengthwise.simulate.simulation import warm_up

ROOMS = (policies, papers, preemption, memory, doubt, service_time, drift, published)
TABLES: dict[str, Table] = {each.name: each for room in ROOMS for each in room.TABLES}


def chosen(names: list[str], sources: Sources) -> list[Table]:
    """The tables asked for; all whose data is at hand where none was.

    Raises:
        InputError: an unknown name, or one whose data is missing.
    """
    for name in names:
        if name not in TABLES:
            raise unknown_name("table", name, TABLES)
        if not sources.has(TABLES[name].files):
            raise InputError(
                f"table {name} needs {' and '.join(TABLES[name].files)} in {sources.data}: name "
                "the folder that holds them with --data"
            )
    if names:
        return [TABLES[name] for name in dict.fromkeys(names)]
    missing = [each.name for each in TABLES.values() if not sources.has(each.files)]
    if missing:
        sources.say(f"left as they are, their data is not in {sources.data}: {', '.join(missing)}")
    return [each for each in TABLES.values() if each.name not in missing]


def main() -> int:
    """Make and keep tables; exit code 1 if vLLM disagrees, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m bench.figures", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TABLES)}")
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="folder of tables"
    )
    arguments = parser.parse_args()
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {line}", file=sys.stderr, flush=True)

    sources = Sources(arguments.data, say)
    try:
        tables = chosen(arguments.names, sources)
        warm_up()  # once here rather than in each process at the same time
        for name, result in make_tables(tables, sources, say):
            write(name, result)
    except LengthwiseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
