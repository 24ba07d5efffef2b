"""Make src/lengthwise/simulate/layer_times.json, the measured layer times of the presets.

    python scripts/measured_layers.py linear_layer_times.csv

The table has the columns gpu, model, layers, tensor_parallel, tokens and ms_per_layer: medians of
the kernel times in the profiles of microsoft/vidur, summed over the linear layers, norms,
activation and residual of one transformer layer.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Final

TARGET: Final = Path(__file__).parents[1] / "src/lengthwise/simulate/layer_times.json"
SOURCE: Final = "kernel profiles of microsoft/vidur @7d47513 (MIT)"

#: Names of the profiles, and ours.
NAMES: Final = {
    "meta-llama/Llama-2-7b-hf": "llama-2-7b",
    "meta-llama/Llama-2-70b-hf": "llama-2-70b",
    "meta-llama/Meta-Llama-3-8B": "llama-3-8b",
    "meta-llama/Meta-Llama-3-70B": "llama-3-70b",
}


def main(path: Path) -> None:
    """Write the table of `path` as one list of times for each GPU, model and tensor parallel."""
    curves: dict[tuple[str, str, int], dict[int, float]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            key = (row["gpu"], NAMES[row["model"]], int(row["tensor_parallel"]))
            curves.setdefault(key, {})[int(row["tokens"])] = float(row["ms_per_layer"])
    tokens = sorted(next(iter(curves.values())))
    for key, curve in curves.items():
        if sorted(curve) != tokens:
            raise SystemExit(f"{path}: {key} was measured at other numbers of tokens")
    lines = [
        json.dumps(
            {
                "gpu": gpu,
                "model": model,
                "tensor_parallel": count,
                "ms_per_layer": [curve[each] for each in tokens],
            }
        )
        for (gpu, model, count), curve in sorted(curves.items())
    ]
    # One curve a line: readable, and a change shows which.
    text = (
        f'{{"source": {json.dumps(SOURCE)},\n "tokens": {json.dumps(tokens)},\n "curves": [\n  '
        + ",\n  ".join(lines)
        + "\n ]}\n"
    )
    TARGET.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
