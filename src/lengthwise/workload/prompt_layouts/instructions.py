"""Sets of instructions with one answer each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from lengthwise.workload.documents import Record
from lengthwise.workload.prompt_layouts.layout import PromptLayout
from lengthwise.workload.prompt_layouts.named_columns import LENGTH_COLUMNS, ColumnNames


def _layout(name: str, source: str, columns: ColumnNames) -> PromptLayout:
    needed = {columns.prompt, columns.answer or ""}

    def matches(names: Sequence[str], head: Sequence[Record]) -> bool:
        # What counts tokens as well is read as any table, by its lengths.
        return needed <= set(names) and not set(LENGTH_COLUMNS) & set(names) - {"generated_len"}

    beside = f", then {columns.beside}" if columns.beside else ""
    reader: Any = columns.read
    return PromptLayout(
        name, source, f"{columns.prompt}{beside}", f"text in {columns.answer}", matches, reader
    )


LAYOUTS: Final = (
    _layout(
        "alpaca",
        "[Alpaca](https://github.com/tatsu-lab/stanford_alpaca)",
        ColumnNames("instruction", beside="input", answer="output"),
    ),
    _layout(
        "dolly",
        "[Dolly](https://huggingface.co/datasets/databricks/databricks-dolly-15k)",
        ColumnNames("instruction", beside="context", answer="response"),
    ),
    _layout(
        "vllm-ltr",
        "[vLLM-LTR](https://github.com/hao-ai-lab/vllm-ltr), the paper's training data",
        ColumnNames("prompt", answer="generated"),
    ),
)
