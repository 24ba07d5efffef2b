"""The command line of a bench that simulates a few rows for each seed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]


def print_rows(
    says: str | None, measurements: Callable[[int], list[Row]], line: Callable[[Row], str]
) -> None:
    """Print what was measured: a line a row, or JSON.

    Args:
        says: the bench's docstring, for --help.
        measurements: the rows of one seed.
        line: a row in words.
    """
    parser = argparse.ArgumentParser(
        description=says, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    rows = [row for seed in range(given.seeds) for row in measurements(seed)]
    print(json.dumps(rows) if given.json else "\n".join(map(line, rows)))
