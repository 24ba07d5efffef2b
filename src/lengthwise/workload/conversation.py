"""What a request says: who said what, and what it asks of its answer.

Conversations stand in files, and it is told where each of their answers begins. Read are the
messages of ShareGPT (`from`, `value`), of OpenAI's chats (`role`, `content`, which may be text, a
list of parts, or null beside tool calls) and of LMSYS-Chat-1M and WildChat, which have further
keys. A prompt is a conversation up to where an answer begins, so that it cannot hold it.

Beside its prompt a request says how its answer is sampled, and where it is cut. The same few facts
are told from a row of a table, from the body of a request, and by the scheduler from a request of
vLLM, so that a predictor is trained on what it will see. What is at the API's own default is no
fact: most requests, and most logs, do not write it.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple

from lengthwise.files import parse_json

USER: Final = "user"
ASSISTANT: Final = "assistant"
SYSTEM: Final = "system"
TOOL: Final = "tool"

#: what roles are called in files, and what chat templates call them
ROLES: Final = {
    **dict.fromkeys(("user", "human", "prompter"), USER),
    **dict.fromkeys(
        ("assistant", "gpt", "chatgpt", "model", "bot", "ai", "bing", "bard", "function_call"),
        ASSISTANT,
    ),
    **dict.fromkeys(("system", "developer"), SYSTEM),
    **dict.fromkeys(("tool", "function", "observation", "tool_response"), TOOL),
}
_ROLE_KEYS: Final = ("role", "from")
_CONTENT_KEYS: Final = ("content", "value", "text")
#: how a list of messages begins
_MESSAGES: Final = re.compile(r"""\s*\[\s*\{\s*['"](?:role|from|content|value|text)['"]\s*:""")
_TEXT_PARTS: Final = ("text", "input_text", "output_text")


class Turns(StrEnum):
    """Which answers of a conversation are rows."""

    FIRST = "first"
    LAST = "last"
    ALL = "all"


class MalformedError(Exception):
    """Something in a row that cannot be what it should be; the message says why."""


class Message(NamedTuple):
    """What one side said at once."""

    role: str  #: one of the values of ROLES
    content: str  #: its text; parts of it are joined by line breaks, as vLLM does
    attachments: int = 0  #: images, sounds and files beside the text
    calls: tuple[Mapping[str, Any], ...] = ()  #: tools that an answer asks for
    call_count: int = 0  #: how many it asks for, those that cannot be rendered included

    def for_template(self) -> dict[str, Any]:
        """As chat templates want it."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.calls:
            message["tool_calls"] = [dict(call) for call in self.calls]
        return message


class Chat(NamedTuple):
    """The prompt of one answer: the beginning of a conversation, which other answers share."""

    conversation: Sequence[Message]
    length: int  #: how many messages of it come before the answer
    tools: tuple[Mapping[str, Any], ...] = ()  #: what it may call, as OpenAI's API has them

    def messages(self) -> list[Message]:
        """The messages that the model is to answer, in order."""
        return list(self.conversation[: self.length])

    @property
    def roles(self) -> tuple[str, ...]:
        """Who speaks, message by message."""
        return tuple(message.role for message in self.messages())

    @property
    def question(self) -> str:
        """The text of the last message: what is asked."""
        return self.conversation[self.length - 1].content


def read_tools(cell: Any) -> tuple[Mapping[str, Any], ...]:
    """The tools that a request offers, perhaps as JSON; none where it offers none."""
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            cell = parse_json(cell)
        except ValueError:
            return ()
    known = isinstance(cell, list) and all(
        isinstance(tool, dict) and isinstance(tool.get("function"), dict) for tool in cell
    )
    return tuple(cell) if known else ()


def read_messages(cell: Any) -> list[Message]:
    """The messages of a cell: a list of objects, or such a list as JSON.

    Raises:
        MalformedError: it is no such list, or something in it is no message.
    """
    if isinstance(cell, str):
        cell = _unpacked(cell)
    if isinstance(cell, str):
        raise MalformedError("the conversation is text, not a list of messages")
    if not isinstance(cell, list):
        raise MalformedError("there is no conversation")
    return [_message(each) for each in cell]


def is_messages(cell: Any) -> bool:
    """Whether a cell is a conversation, perhaps as text."""
    if isinstance(cell, str):
        cell = _unpacked(cell)
    return (
        isinstance(cell, list)
        and bool(cell)
        and all(isinstance(each, dict) and any(key in each for key in _ROLE_KEYS) for each in cell)
    )


def looks_like_messages(text: str) -> bool:
    """Whether a text was meant as a list of messages, whether it can be read as one or not."""
    return bool(_MESSAGES.match(text))


def before_the_answer(conversation: Sequence[Message]) -> Chat:
    """A logged conversation up to where the answer that was logged beside it begins.

    Some logs put that answer at the end of the conversation as well: it is cut off.

    Raises:
        MalformedError: nobody asks anything.
    """
    length = len(conversation)
    while length and conversation[length - 1].role not in (USER, TOOL):
        length -= 1
    if not length:
        raise MalformedError("nobody asks anything: there is no message of a user before an answer")
    # Without an assistant's turn behind it, what the system says last is part of the prompt.
    if all(message.role == SYSTEM for message in conversation[length:]):
        length = len(conversation)
    chat = Chat(conversation, length)
    if not any(message.content.strip() or message.attachments for message in chat.messages()):
        raise MalformedError("the prompt is empty")
    return chat


def answers_of(conversation: Sequence[Message], turns: Turns) -> Iterator[tuple[Chat, int] | str]:
    """The answers of a conversation, each with its prompt.

    What comes before the first user's turn, other than what the system says, answers something that
    is not there, and is left out.

    Yields:
        A prompt and the place of its answer in the prompt's conversation, or why an answer is left
        out.
    """
    if not conversation:
        yield "the conversation is empty"
        return
    start = next((i for i, each in enumerate(conversation) if each.role in (USER, TOOL)), None)
    early = conversation if start is None else conversation[:start]
    for message in early:
        if message.role == ASSISTANT:
            yield "an answer without a prompt before it"
    if start is None:
        if all(message.role != ASSISTANT for message in conversation):
            yield "the conversation has no answer"
        return
    conversation = [
        *(each for each in early if each.role != ASSISTANT),
        *conversation[start:],
    ]
    found: list[tuple[Chat, int] | str] = [
        _answer(conversation, place)
        for place, message in enumerate(conversation)
        if message.role == ASSISTANT
    ]
    if not found:
        yield "the conversation has no answer"
    elif turns is Turns.ALL:
        yield from found
    else:
        yield found[0 if turns is Turns.FIRST else -1]


def _answer(conversation: Sequence[Message], place: int) -> tuple[Chat, int] | str:
    answer, before = conversation[place], conversation[place - 1]
    if before.role == ASSISTANT:
        return "an answer that follows another answer"
    if not (before.content.strip() or before.attachments):
        return "the prompt is empty"
    if not answer.content.strip():
        return (
            "the answer is a tool call without text, and its length is not given"
            if answer.call_count
            else "the answer is empty"
        )
    return Chat(conversation, place), place


def _unpacked(text: str) -> Any:
    """The list of messages that a text is: as JSON, or as Python or NumPy write it."""
    if not looks_like_messages(text):
        return text
    for read in (parse_json, ast.literal_eval, _numpy_list):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return text


def _numpy_list(text: str) -> Any:
    """A list as NumPy writes an array of objects: without commas, each on a line of its own."""
    return ast.literal_eval(re.sub(r"\}\s*\n\s*\{", "}, {", text))


def _message(cell: Any) -> Message:
    if not isinstance(cell, dict):
        raise MalformedError("the prompt is a list, but not of messages with a role")
    named = next((cell[key] for key in _ROLE_KEYS if cell.get(key) is not None), None)
    if not isinstance(named, str):
        raise MalformedError("the prompt is a list, but not of messages with a role")
    role = ROLES.get(named.strip().casefold())
    if role is None:
        raise MalformedError(
            f"a message is of {named!r}, of whom it is not known whether they ask or answer: known "
            f"are {', '.join(ROLES)}"
        )
    content = next((cell[key] for key in _CONTENT_KEYS if cell.get(key) is not None), None)
    text, attachments = _content(content)
    asked = cell.get("tool_calls") or ([cell["function_call"]] if cell.get("function_call") else [])
    asked = asked if isinstance(asked, list) else []
    calls = tuple(call for call in map(_call, asked) if call is not None)
    if content is None and role == USER:
        raise MalformedError("the prompt is a list, but not of messages with a text content")
    return Message(role, text, attachments, calls, len(asked))


def _content(content: Any) -> tuple[str, int]:
    """The text of a message, and how many other things are in it."""
    if content is None:
        return "", 0
    if isinstance(content, str):
        return content, 0
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        raise MalformedError("the prompt is a list, but not of messages with a text content")
    texts: list[str] = []
    others = 0
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif isinstance(part, dict) and part.get("type") not in _TEXT_PARTS:
            others += 1
        else:
            raise MalformedError("a message has a part that is neither text nor an attachment")
    return "\n".join(texts), others


def _call(call: Any) -> Mapping[str, Any] | None:
    """A tool call as templates read it: arguments as an object, as vLLM gives them."""
    if not isinstance(call, dict):
        return None
    function = call.get("function", call)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return None
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = parse_json(arguments) if arguments.strip() else {}
        except ValueError:
            return None
    return {
        "id": str(call.get("id", "")),
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }


#: columns, and names in a request's body, that say where the answer is cut
LIMITS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")
SETTINGS: Final = ("temperature", "top_p", *LIMITS)  #: what is looked for in rows and bodies
#: names in a body that ask for an answer of some form
STRUCTURED: Final = (
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
)
_MOST_ATTACHMENTS: Final = 3  # more count as this many


class Facts(NamedTuple):
    """All that is known beside a prompt; each field at its default says nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    most_tokens: int = 0  #: where the answer is cut, 0 for nowhere
    attachments: int = 0  #: images, sounds and files
    structured: bool = False  #: whether it has to be JSON, or to match a pattern

    def names(self) -> tuple[str, ...]:
        """The facts as features: what is nearly the same has the same name."""
        named = []
        if self.temperature != 1.0:
            named.append(f"temperature {self.temperature:.1f}")
        if self.top_p != 1.0:
            named.append(f"top_p {self.top_p:.1f}")
        if self.most_tokens > 0:  # two steps for each doubling
            named.append(f"limit {round(2 * math.log2(self.most_tokens))}")
        if self.attachments > 0:
            named.append(f"attachments {min(self.attachments, _MOST_ATTACHMENTS)}")
        if self.structured:
            named.append("structured")
        return tuple(named)


NOTHING: Final = Facts()


def facts_of(body: Mapping[str, Any]) -> Facts:
    """The facts in the body of a request to OpenAI's API, or in a row with columns of its names.

    With `ignore_eos` a limit is the answer's very length: a replay, and nobody's word.
    """
    limit = next((number for name in LIMITS if (number := _number(body.get(name)))), 0.0)
    return Facts(
        _or_one(body.get("temperature")),
        _or_one(body.get("top_p")),
        0 if body.get("ignore_eos") else int(min(max(limit, 0.0), 1e9)),
        structured=any(_is_structured(body.get(name)) for name in STRUCTURED),
    )


def _is_structured(cell: Any) -> bool:
    if isinstance(cell, dict) and cell.get("type") == "text":
        return False
    return bool(cell)


def _or_one(cell: Any) -> float:
    number = _number(cell)
    return 1.0 if number is None or number < 0 else number


def _number(cell: Any) -> float | None:
    if isinstance(cell, bool) or not isinstance(cell, int | float | str):
        return None
    try:
        number = float(cell)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
