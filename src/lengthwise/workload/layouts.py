"""The layouts that traces of LLM servers are published in, flat or as objects within objects.

The flat ones are told apart by their columns. Of those whose requests are objects within objects,
rows are made that have the columns of a layout:

weka        {"id", "requests": [{"t", "in", "out", "hash_ids"}, …]}, one agent's conversation;
            a request of type "subagent" holds requests of its own (guidellm's trace_weka.py,
            aiperf's docs/tutorials/weka-trace.md)
guidellm    info.timings.request_start, input_metrics and output_metrics (schemas/info.py,
            schemas/request_stats.py)
aiperf      metadata.request_start_ns, metrics.input_sequence_length and
            output_sequence_length (docs/tutorials/working-with-profile-exports.md)
vllm bench  runs of `vllm bench serve --append-result`, one a line
mooncake    prompts as text instead of lengths: `text_input`, `messages` or a `payload` (aiperf)
servegen    what ServeGen generates: lengths under `data` (servegen/construct.py)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from lengthwise.errors import InputError
from lengthwise.workload.conversation import Chat, MalformedError
from lengthwise.workload.prompt_layouts.layout import exchange_of, mooncake_body
from lengthwise.workload.records import (
    STATUS,
    Record,
    Rejection,
    UnknownLayoutError,
    UnusableError,
    is_vllm_bench,
    of_arrays,
)

WEKA_BLOCK: Final = 64  #: tokens, as recommended where the traces are from
BLOCK_SIZE: Final = "block_size"  #: tokens of a block, where one of WEKA's conversations says
MOONCAKE_TEXT: Final = "mooncake with prompts"

Numbered = tuple[int, Record]

#: How many tokens a prompt has: a conversation, or else a text.
CountPrompt = Callable[[Chat | None, str], int]


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


class Nested(NamedTuple):
    """A layout of rows whose requests are objects within objects."""

    layout: Layout
    matches: Callable[[Record], bool]  #: whether the first row of a file is such a one
    rows: Callable[[Record], Iterator[Record]]  #: the requests in a row, in the layout's columns


def nested_layout(head: Sequence[Record], count_prompt: CountPrompt | None = None) -> Nested | None:
    """The layout of a file with these first rows; None where it is none of these.

    Args:
        head: the first rows.
        count_prompt: how many tokens a prompt has, for layouts that have the prompt itself; without
            it all have one.
    """
    found = next((each for each in NESTED if head and each.matches(head[0])), None)
    if found is None and head and _is_text(head[0]):
        return _texts(count_prompt or (lambda chat, text: 1))
    return found


def flattened(
    nested: Nested, records: Iterator[Numbered | Rejection]
) -> Iterator[Numbered | Rejection]:
    """The requests of a file, each with the number of the row that it is from."""
    for record in records:
        if isinstance(record, Rejection):
            yield record
            continue
        number, row = record
        try:
            requests = list(nested.rows(row))
        except (TypeError, ValueError, AttributeError, KeyError):
            yield Rejection(number, f"it is no row of {nested.layout.name}")
            continue
        yield from ((number, request) for request in requests)


def _is_weka(record: Record) -> bool:
    requests = record.get("requests")
    return isinstance(requests, list) and any(
        isinstance(request, dict) and {"t", "in", "out"} <= request.keys() for request in requests
    )


def _weka(record: Record) -> Iterator[Record]:
    session = str(record.get("id", ""))
    scope = "" if record.get("hash_id_scope") == "global" else f"{session}/"
    size = record.get(BLOCK_SIZE)
    yield from _weka_requests(record["requests"], session, scope, size)


def _weka_requests(requests: list[Any], session: str, scope: str, size: Any) -> Iterator[Record]:
    for number, request in enumerate(requests):
        if isinstance(request.get("requests"), list):
            yield from _weka_requests(request["requests"], f"{session}/{number}", scope, size)
        elif "in" in request:
            yield {
                "session": session,
                BLOCK_SIZE: size,
                "t": request.get("t"),
                "in": request.get("in"),
                "out": request.get("out"),
                "hash_ids": [f"{scope}{block}" for block in request.get("hash_ids") or ()],
            }


def _is_guidellm(record: Record) -> bool:
    before = {"start_time", "prompt_tokens", "output_tokens", STATUS} <= record.keys()  # 0.4
    return before or (isinstance(record.get("info"), dict) and "output_metrics" in record)


def _guidellm(record: Record) -> Iterator[Record]:
    if "info" not in record:
        failed = record[STATUS] != "successful"
        yield {
            "request_start": record["start_time"],
            "prompt_tokens": record["prompt_tokens"],
            "output_tokens": 0 if failed else record["output_tokens"],
        }
        return
    timings = record["info"].get("timings") or {}
    start = timings.get("request_start")
    failed = record.get(STATUS, "successful") != "successful"
    yield {
        "request_start": timings.get("resolve_start") if start is None else start,
        "prompt_tokens": _counted(record.get("input_metrics")),
        "output_tokens": 0 if failed else _counted(record.get("output_metrics")),
    }


def _counted(metrics: Any) -> Any:
    return metrics.get("total_tokens") or metrics.get("text_tokens")


def _is_aiperf(record: Record) -> bool:
    metadata = record.get("metadata")
    return isinstance(metadata, dict) and "request_start_ns" in metadata and "metrics" in record


def _aiperf(record: Record) -> Iterator[Record]:
    metrics = record.get("metrics") or {}
    failed = bool(record.get("error"))
    prompt = metrics.get("input_sequence_length") or metrics.get("error_isl") or {}
    output = metrics.get("output_sequence_length") or metrics.get("output_token_count") or {}
    yield {
        "request_start_ns": record["metadata"]["request_start_ns"],
        "input_sequence_length": prompt.get("value"),
        "output_sequence_length": 0 if failed else output.get("value"),
    }


def _is_servegen(record: Record) -> bool:
    data = record.get("data")
    return isinstance(data, dict) and "output_tokens" in data and "timestamp" in record


def _servegen(record: Record) -> Iterator[Record]:
    data = record["data"]
    prompt = data.get("input_tokens", data.get("text_tokens", 0))
    for name in ("image_tokens", "audio_tokens", "video_tokens"):
        others = data.get(name) or 0
        prompt += sum(others) if isinstance(others, list) else others
    yield {
        "timestamp": record["timestamp"],
        "input_tokens": prompt,
        "output_tokens": data["output_tokens"],
    }


def _is_text(record: Record) -> bool:
    asked = any(record.get(name) for name in ("text_input", "messages", "payload"))
    return asked and {"output_length"} <= record.keys() and "input_length" not in record


def _texts(count_prompt: CountPrompt) -> Nested:
    """Mooncake's layout with prompts instead of their lengths."""

    def rows(record: Record) -> Iterator[Record]:
        length = record.get("input_length")
        if length is None:
            try:
                asked = exchange_of(mooncake_body(record), None, None, None)
            except MalformedError as error:
                raise ValueError(str(error)) from None
            length = max(1, count_prompt(asked.chat, asked.prompt))
        yield {**record, "input_length": length}

    layout = next(layout for layout in LAYOUTS if layout.name == "mooncake")
    return Nested(replace(layout, name=MOONCAKE_TEXT), _is_text, rows)


NESTED: Final = (
    Nested(
        next(layout for layout in LAYOUTS if layout.name == "vllm bench"),
        is_vllm_bench,
        of_arrays,
    ),
    Nested(
        Layout(
            name="weka",
            arrival="t",
            prompt="in",
            output="out",
            blocks="hash_ids",
            block_tokens=WEKA_BLOCK,
            block_size=BLOCK_SIZE,
            without_output="the request has no answer",
            by_arrival=False,
            session="session",
            source="[WEKA's agent traces](https://github.com/callanjfox/kv-cache-tester)",
        ),
        _is_weka,
        _weka,
    ),
    Nested(
        Layout(
            name="guidellm",
            arrival="request_start",
            prompt="prompt_tokens",
            output="output_tokens",
            without_output="the request failed",
            by_arrival=False,
            source="[guidellm](https://github.com/vllm-project/guidellm)",
        ),
        _is_guidellm,
        _guidellm,
    ),
    Nested(
        Layout(
            name="aiperf",
            arrival="request_start_ns",
            prompt="input_sequence_length",
            output="output_sequence_length",
            unit_s=1e-9,
            without_output="the request failed",
            by_arrival=False,
            source="[aiperf](https://github.com/ai-dynamo/aiperf), profile_export.jsonl",
        ),
        _is_aiperf,
        _aiperf,
    ),
    Nested(
        Layout(
            name="servegen",
            arrival="timestamp",
            prompt="input_tokens",
            output="output_tokens",
            without_output="the request has no answer",
            source="[ServeGen](https://github.com/alibaba/ServeGen), what it generates",
        ),
        _is_servegen,
        _servegen,
    ),
)
