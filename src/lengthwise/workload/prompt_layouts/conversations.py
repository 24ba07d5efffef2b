"""Files of whole conversations: every answer in one may be a row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from lengthwise.workload.conversation import (
    MalformedError,
    Turns,
    answers_of,
    is_messages,
    read_messages,
    read_tools,
)
from lengthwise.workload.prompt_layouts.layout import (
    Answer,
    Exchange,
    PromptLayout,
    exchange_of,
    first_cell,
    has,
    one_of,
    opened,
    read_answer,
    read_length,
    read_usage,
)
from lengthwise.workload.prompt_layouts.named_columns import (
    ANSWER_COLUMNS,
    LENGTH_COLUMNS,
    ColumnNames,
    refuse_other_answer,
)
from lengthwise.workload.records import Record


def dialogue(column: str) -> Any:
    """A reader of conversations in a column, all of whose answers were given."""

    def read(record: Record, turns: Turns) -> Iterator[Exchange | str]:
        try:
            conversation = read_messages(record.get(column))
        except MalformedError as error:
            yield str(error)  # broken dialogues are common in these sets, and no fault of a user's
            return
        tools = read_tools(record.get("tools"))
        for found in answers_of(conversation, turns):
            if isinstance(found, str):
                yield found
            else:
                chat, place = found[0]._replace(tools=tools), found[1]
                yield Exchange(chat, chat.question, chat.conversation[place].content)

    return read


def read_logged(record: Record, turns: Turns) -> Iterator[Exchange | str]:
    """A logged request: messages or a prompt, and beside it the answer, its usage or its length.

    Where nothing of an answer is beside a conversation, its own answers are rows.

    Raises:
        MalformedError: something in it cannot be what it should be.
    """
    record = _opened(record)
    if record.get("error"):
        yield "the request failed"
        return
    length_column = one_of(list(record), *LENGTH_COLUMNS)
    answer_column = next(
        (name for name in _ANSWERS if record.get(name) not in (None, "", [], {})), None
    )
    tokens, prompt_tokens = read_usage(record.get("usage"))
    answer = Answer(None, None)
    if answer_column is not None:
        answer = read_answer(record[answer_column], answer_column)
    elif isinstance(record.get("choices"), list):  # a response with its request in it
        answer = read_answer(record, "choices")
    if length_column is not None:
        tokens = read_length(record[length_column], length_column)
    tokens = answer.tokens if tokens is None else tokens
    messages = record.get("messages")
    if answer.text is None and tokens is None:
        if messages is None:
            yield "it has no answer"
        else:
            yield from dialogue("messages")(record, turns)
        return
    found = exchange_of(
        record,
        answer.text,
        tokens,
        answer.prompt_tokens if prompt_tokens is None else prompt_tokens,
    )
    if found.chat is not None:
        refuse_other_answer(found.chat, answer.text)
    yield found._replace(other_answers=answer.others)


_REQUESTS: Final = ("request", "body", "kwargs", "request_body")  #: what a log may call a request
_ANSWERS: Final = (*ANSWER_COLUMNS, "response_body")


def _opened(record: Record) -> Record:
    """A log whose requests are objects of their own, perhaps as JSON, as one row."""
    for name in _REQUESTS:
        inner = _request_in(record.get(name))
        if inner is not None:
            return {**{key: value for key, value in record.items() if key != name}, **inner}
    return record


def _request_in(cell: Any) -> Record | None:
    """The body of a request to OpenAI's API that a cell holds; None where it holds none."""
    cell = opened(cell)
    if isinstance(cell, dict) and isinstance(cell.get("body"), dict | str):
        return _request_in(cell["body"])
    known = isinstance(cell, dict) and any(name in cell for name in ("messages", "prompt", "input"))
    return cell if known else None


def _is_logged(names: Sequence[str], head: Sequence[Record]) -> bool:
    wrapped = any(_request_in(first_cell(head, name)) is not None for name in _REQUESTS)
    return "messages" in names or wrapped or is_messages(first_cell(head, "input"))


def _is_fine_tuning(names: Sequence[str], head: Sequence[Record]) -> bool:
    beside = {*LENGTH_COLUMNS, *ANSWER_COLUMNS, "usage"} & set(names)
    return "messages" in names and not beside


_CONVERSATIONS: Final = (
    PromptLayout(
        name="wildchat",
        source="[WildChat](https://huggingface.co/datasets/allenai/WildChat-1M)",
        prompt="conversation, up to an answer",
        answer="each assistant's turn",
        matches=has("conversation", "conversation_hash"),
        read=dialogue("conversation"),
    ),
    PromptLayout(
        name="lmsys",
        source="[LMSYS-Chat-1M](https://huggingface.co/datasets/lmsys/lmsys-chat-1m)",
        prompt="conversation, up to an answer",
        answer="each assistant's turn",
        matches=has("conversation", "conversation_id"),
        read=dialogue("conversation"),
    ),
    PromptLayout(
        name="sharegpt",
        source="[ShareGPT](https://huggingface.co/datasets/anon8231489123/"
        "ShareGPT_Vicuna_unfiltered)",
        prompt="conversations, up to an answer",
        answer="each turn of gpt",
        matches=has("conversations"),
        read=dialogue("conversations"),
    ),
    PromptLayout(
        name="openai fine-tuning",
        source="[OpenAI's chat format](https://platform.openai.com/docs/guides/"
        "supervised-fine-tuning)",
        prompt="messages, up to an answer",
        answer="each assistant's turn",
        matches=_is_fine_tuning,
        read=dialogue("messages"),
    ),
    PromptLayout(
        name="openai log",
        source="requests and responses of OpenAI's API",
        prompt="messages, without an answer at their end",
        answer="response, its usage, or a length",
        matches=_is_logged,
        read=read_logged,
    ),
)


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


_INSTRUCTIONS: Final = (
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

LAYOUTS: Final = (*_INSTRUCTIONS, *_CONVERSATIONS)
