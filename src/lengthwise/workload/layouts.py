"""The layouts that traces of LLM servers are published in, told apart by their columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lengthwise.errors import InputError
from lengthwise.workload.rejections import UnknownLayoutError, UnusableError


@dataclass(frozen=True)
class Layout:
    """Which column of a table says what."""

    name: str
    arrival: str  # when a request arrived: a number, or a date and time
    prompt: str  # tokens of the prompt
    output: str  # tokens of the answer
    unit_s: float = 1.0  # what a number in the column of arrivals counts, in s
    marks: tuple[str, ...] = ()  # further columns that tell the layout from others
    blocks: str | None = None  # ids of the prompt's blocks, where the table has the column
    block_tokens: int = 0  # tokens of one such block
    block_size: str | None = None  # column that says so of a file, where it has it
    timeless: bool = False  # whether the column of arrivals may be missing: all come at once
    blocks_vary: bool = False  # whether others write the layout with blocks of another size
    without_output: str | None = None  # what it means that there is no answer, where it is known
    by_arrival: bool = True  # False where rows were written in another order, to be sorted
    whole_seconds: bool = False  # True where times were cut to seconds, so that many are the same
    session: str | None = None  # whose request it is, where the next one waits for this one's end
    delay: str | None = None  # from that end to the next one's arrival, in the unit of arrivals
    source: str = ""  # whose it is, in Markdown

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a table must have to be of this layout."""
        times = () if self.timeless else (self.arrival,)
        return (*self.marks, *times, self.prompt, self.output)


# The first whose columns are all there is taken.
LAYOUTS: Final = (
    Layout(
        name="azure",
        arrival="TIMESTAMP",
        prompt="ContextTokens",
        output="GeneratedTokens",
        without_output="the request has no answer",
        source="[Azure LLM inference 2023 and 2024](https://github.com/Azure/AzurePublicDataset)",
    ),
    Layout(
        name="bailian",
        arrival="timestamp",
        prompt="input_length",
        output="output_length",
        marks=("chat_id",),
        blocks="hash_ids",
        block_tokens=16,
        without_output="the request has no answer",
        source="[Qwen on Bailian](https://github.com/alibaba-edu/qwen-bailian-usagetraces-anon)",
    ),
    Layout(
        name="servegen offline",
        arrival="timestamp",
        prompt="input_length",
        output="output_length",
        marks=("request_id", "duration"),
        without_output="the request has no answer",
        timeless=True,
        source="[ServeGen](https://github.com/alibaba/ServeGen), its traces of batches",
    ),
    Layout(
        name="mooncake",
        arrival="timestamp",
        prompt="input_length",
        output="output_length",
        unit_s=1e-3,
        blocks="hash_ids",
        block_tokens=512,
        blocks_vary=True,
        timeless=True,
        without_output="the request has no answer",
        session="session_id",
        delay="delay",
        source="[Mooncake](https://github.com/kvcache-ai/Mooncake), and what Dynamo and aiperf "
        "write in its layout",
    ),
    Layout(
        name="burstgpt",
        arrival="Timestamp",
        prompt="Request tokens",
        output="Response tokens",
        without_output="the request failed",
        whole_seconds=True,
        source="[BurstGPT](https://github.com/HPMLL/BurstGPT)",
    ),
    Layout(
        name="servegen",
        arrival="timestamp",
        prompt="input_tokens",
        output="output_tokens",
        marks=("request_id",),
        source="[ServeGen](https://github.com/alibaba/ServeGen), what it generates",
    ),
    Layout(
        name="litellm",
        arrival="startTime",
        prompt="prompt_tokens",
        output="completion_tokens",
        marks=("endTime",),
        without_output="the request failed",
        by_arrival=False,
        source="[LiteLLM](https://github.com/BerriAI/litellm), LiteLLM_SpendLogs, whose rows are "
        "in the order in which requests ended",
    ),
    Layout(
        name="vllm bench",
        arrival="start_time",
        prompt="input_len",
        output="output_len",
        without_output="the request failed",
        by_arrival=False,
        source="`vllm bench serve --save-result --save-detailed`",
    ),
    Layout(
        name="lengthwise log",
        arrival="arrival_s",
        prompt="prompt_tokens",
        output="output_tokens",
        marks=("queue_s",),
        without_output="it ended before its first token",
        by_arrival=False,
        source="a folder that the setting `record` names",
    ),
    Layout(
        name="lengthwise bench",
        arrival="sent_s",
        prompt="prompt_tokens",
        output="output_tokens",
        marks=("scheduled_s",),
        without_output="the request failed",
        by_arrival=False,
        source="a folder that `lengthwise bench` wrote",
    ),
)

# Any other table: the first of each that is there.
PLAIN: Final = "plain"
ARRIVAL_COLUMNS: Final = (
    "arrival_s",
    "arrival_time",
    "arrival_timestamp",
    "arrived_at",
    "arrival",
    "timestamp",
    "time",
)
PROMPT_COLUMNS: Final = (
    "prompt_tokens",
    "input_tokens",
    "num_prefill_tokens",
    "prompt_len",
    "prompt_length",
    "input_len",
    "input_length",
    "prompt_size",
)
OUTPUT_COLUMNS: Final = (
    "output_tokens",
    "response_tokens",
    "completion_tokens",
    "generated_tokens",
    "num_decode_tokens",
    "output_len",
    "output_length",
    "token_size",
)


def recognise(path: Path, names: Sequence[str], has_answers: bool = False) -> Layout:
    """The layout of a table with these columns.

    Args:
        path: of the table.
        names: its columns.
        has_answers: whether it is said how long answers are, so that no column has to.

    Raises:
        InputError: none that is known; lists the columns that there are and the layouts.
    """
    there = {*names, *(_OUTPUTS if has_answers else ())}
    layout = next((each for each in LAYOUTS if set(each.columns) <= there), None)
    if layout is None:
        guesses = [
            next((name for name in known if name in names), None)
            for known in (ARRIVAL_COLUMNS, PROMPT_COLUMNS, OUTPUT_COLUMNS)
        ]
        arrival, prompt, output = guesses
        if output is None and has_answers:
            output = OUTPUT_COLUMNS[0]
        if arrival is None or prompt is None or output is None:
            raise _unknown(path, names, *guesses)
        layout = Layout(PLAIN, arrival, prompt, output)
    for column in layout.columns:
        if list(names).count(column) > 1:
            raise InputError(f"{path}: several columns are called {column!r}: rename all but one")
    return layout


_OUTPUTS: Final = frozenset(layout.output for layout in LAYOUTS)


def _unknown(
    path: Path, names: Sequence[str], arrival: str | None, prompt: str | None, output: str | None
) -> InputError:
    """That a table is of no known layout; what is missing, where only one thing is."""
    if arrival is not None and prompt is not None and output is None:
        layout = next(
            (each for each in LAYOUTS if {*each.columns} - {each.output} <= {*names}), None
        )
        return UnusableError(
            f"{path}: no column of answer lengths; the columns are {', '.join(names)}: say how "
            "long answers are with --answer-tokens",
            PLAIN if layout is None else layout.name,
            "" if layout is None else layout.source,
        )
    known = "; ".join(f"{each.name}: {', '.join(each.columns)}" for each in LAYOUTS)
    return UnknownLayoutError(
        f"{path}: the columns {', '.join(names)} are those of no known trace: rename them "
        f"to {ARRIVAL_COLUMNS[0]} (in s), {PROMPT_COLUMNS[0]} and {OUTPUT_COLUMNS[0]}, "
        f"or give one of these layouts: {known}"
    )
