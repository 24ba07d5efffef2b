"""Make a trace of any size in the shape of Azure's of 2024, to try what reads such files.

    python bench/make_azure_trace.py build/azure.csv --rows 27303999

The real conversations of a week have 27,303,999 rows and 1.1 GB. Made up here: arrivals at random,
lengths log-normal about those of the real ones, and a few answers of 0 tokens, as there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

_CHUNK = 1 << 20
_START = np.datetime64("2024-05-10T00:00:00.000000", "us")
_WEEK_US = 7 * 24 * 3600 * 10**6
_EMPTY = 1e-4  # share of answers without a token


def write_trace(path: Path, rows: int, seed: int) -> None:
    """Write so many rows, the same for the same seed."""
    import pyarrow
    import pyarrow.csv

    random = np.random.default_rng(seed)
    mean_gap = _WEEK_US / rows
    names = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]
    path.parent.mkdir(parents=True, exist_ok=True)
    at = 0.0
    with path.open("wb") as out:
        out.write((",".join(names) + "\n").encode())
        options = pyarrow.csv.WriteOptions(include_header=False, quoting_style="none")
        for first in range(0, rows, _CHUNK):
            count = min(_CHUNK, rows - first)
            times = at + np.cumsum(random.exponential(mean_gap, count))
            at = float(times[-1])
            stamps = _START + times.astype("timedelta64[us]")
            text = pyarrow.array(stamps).cast(pyarrow.string())
            prompts = np.maximum(1, random.lognormal(6.5, 1.2, count)).astype(np.int64)
            answers = np.maximum(1, random.lognormal(4.6, 1.1, count)).astype(np.int64)
            answers[random.random(count) < _EMPTY] = 0
            zoned = pyarrow.compute.binary_join_element_wise(text, "+00:00", "")
            table = pyarrow.table([zoned, prompts, answers], names=names)
            pyarrow.csv.write_csv(table, out, options)


def main() -> None:
    import pyarrow.compute  # noqa: F401  (used through pyarrow)

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="The .csv file to write.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_trace(options.out, options.rows, options.seed)
    print(f"{options.out}: {options.rows:,} rows, {options.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
