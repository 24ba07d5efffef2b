"""The layouts that prompts with answers come in, told apart by their columns.

layout.py         what a layout is; an answer as a text, a message, or a server's response
named_columns.py  any table
conversations.py  Alpaca, Dolly, vLLM-LTR; ShareGPT, LMSYS-Chat-1M, WildChat, OpenAI's chats
benchmarks.py     guidellm, lm-eval, LiteLLM, vLLM's benchmark; OpenAI's batches and aiperf, whose
                  prompts are in another file
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from lengthwise.workload.prompt_layouts import benchmarks, conversations
from lengthwise.workload.prompt_layouts.layout import PromptLayout
from lengthwise.workload.records import Record

__all__ = ["LAYOUTS", "recognise"]

LAYOUTS: Final = (
    *benchmarks.JOINED_LAYOUTS,
    *benchmarks.LAYOUTS,
    *conversations.LAYOUTS,
)


def recognise(names: Sequence[str], head: Sequence[Record]) -> PromptLayout | None:
    """The published layout of a table with these columns and first rows; None for any other."""
    return next((layout for layout in LAYOUTS if layout.matches(names, head)), None)
