"""What `bench/presets.py` says, as Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any

from scripts.columns import Row, table

Rows = list[Mapping[str, Any]]


def steps_table(kept: Row) -> list[str]:
    """What a step of each preset takes, and what fits."""
    heads = "preset,layers,1 decode,64 decodes,prompt of 2 048,ns/token of context,KV blocks,"
    rows = [
        [
            f"`{row['preset']}`",
            "derived" if row["derived"] else "measured",
            *(f"{row[name]:.1f} ms" for name in ("one_ms", "full_ms", "prompt_ms")),
            f"{row['kv_ns']:.0f}",
            f"{row['kv_blocks']:,}",
            f"{row['slots']:,} / {row['token_budget']:,}",
        ]
        for row in _of(kept, "steps")
    ]
    return table((heads + "slots / token budget").split(","), rows)


def left_out_table(kept: Row) -> list[str]:
    """Mean and worst error at numbers of tokens that were left out."""
    rows = [
        [gpu, model, *(f"{100 * row['mean']:.1f} / {100 * row['worst']:.0f}" for row in each)]
        for gpu, model, each in _pairs(kept, "left out")
    ]
    everything = _of(kept, "method")
    shares = sorted({row["in_steps"] for row in everything})
    means = [
        " / ".join(f"{100 * row['mean']:.1f}" for row in everything if row["in_steps"] == share)
        for share in shares
    ]
    beyond = sum(row["beyond"] for row in _of(kept, "left out"))
    count = sum(row["count"] for row in _of(kept, "left out"))
    return [
        *table(_heads("GPU", "model"), rows),
        "",
        f"Mean / worst error in %. {beyond} of {count} left-out times are more than 10 % off.",
        "",
        *table(
            ["share of the rise in whole tiles", *(f"{share:g}" for share in shares)],
            [["mean error in %, one half left out / the other", *means]],
        ),
    ]


def derived_table(kept: Row) -> list[str]:
    """Mean and worst error of measured pairs as if nobody had measured them."""
    rows = [
        [
            f"{gpu}, {model}",
            f"{each[0]['source_gpu']}, {each[0]['source_model']}",
            *(f"{100 * row['mean']:.1f} / {100 * row['worst']:.0f}" for row in each),
        ]
        for gpu, model, each in _pairs(kept, "derived")
    ]
    return [*table(_heads("derived", "from"), rows), "", "Mean / worst error in %."]


def _heads(*first: str) -> list[str]:
    return [*first, "1 GPU", "2 GPUs", "4 GPUs", "8 GPUs"]


def _of(kept: Row, name: str) -> Rows:
    return [row for row in kept["rows"] if row["table"] == name]


def _pairs(kept: Row, name: str) -> list[tuple[str, str, Rows]]:
    groups = groupby(_of(kept, name), key=lambda row: (row["gpu"], row["model"]))
    return [(gpu, model, list(rows)) for (gpu, model), rows in groups]


PRESET_TABLES: dict[str, Callable[[Row], list[str]]] = {
    "presets": steps_table,
    "presets-left-out": left_out_table,
    "presets-derived": derived_table,
}
