"""Requests in OpenAI's form: what a length is predicted from, and hints written into them.

A length is predicted from the prompts of a request as OpenAI's API writes them. It is written into
the request's body as hints; what the client wrote itself is never changed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

from lengthwise.errors import InputError, one_line, unknown_name
from lengthwise.predict.load import EXPECTED_TOKENS
from lengthwise.predict.prediction import FACTS, MOST_TOKENS, TENANT, TTFT_DEADLINE_MS
from lengthwise.workload.conversation import (
    SETTINGS,
    STRUCTURED,
    Chat,
    MalformedError,
    facts_of,
    read_messages,
    read_tools,
)

MOST_PROMPTS: Final = 4096  #: of one body
MOST_MESSAGES: Final = 8192  #: of one conversation
MOST_ANSWERS: Final = 1 << 20  #: of one request; more count as this many
MOST_ANSWER_TOKENS: Final = 2**31 - 1
_HIGHEST_ID: Final = 2**31 - 1

XARGS: Final = "vllm_xargs"
NVEXT: Final = "nvext"
PRIORITY: Final = "priority"

#: where hints may be written, and who reads them there
TARGETS: Final = {
    XARGS: f"`vllm_xargs.{EXPECTED_TOKENS}`: Lengthwise's scheduler, predictor `declared`",
    NVEXT: "`nvext.agent_hints.osl`: Dynamo's router",
    PRIORITY: "`priority`, the expected tokens: lower runs sooner in vLLM and LiteLLM",
}
DEFAULT_TARGETS: Final = (XARGS, NVEXT)

#: the keys that a prediction depends on, of all that a request may have
READ: Final = (
    "messages",
    "prompt",
    "max_tokens",
    "max_completion_tokens",
    "ignore_eos",
    XARGS,
    "tools",
    *SETTINGS,
    *STRUCTURED,
)


class Question(NamedTuple):
    """One prompt whose answer's length is asked for; in one of three forms."""

    prompt: Chat | str | Sequence[int]  #: a conversation, plain text, or the model's own token ids
    hints: Mapping[str, object]  #: `vllm_xargs`, {} if none
    most_tokens: int  #: the answer is cut there; 0: it is not, as far as the request says

    @property
    def characters(self) -> int:
        """How much there is to be tokenised."""
        if not isinstance(self.prompt, Chat):
            return len(self.prompt) if isinstance(self.prompt, str) else 0
        messages, tools = self.prompt.messages(), self.prompt.tools
        offered = [*tools, *(call for message in messages for call in message.calls)]
        said = sum(len(message.content) for message in messages)
        return said + (len(json.dumps(offered)) if offered else 0)


def read_body(body: object) -> list[Question]:
    """The questions of a body: a request, or `{"requests": [request, …]}`.

    A request is what `/v1/chat/completions` (`messages`) and `/v1/completions` (`prompt`: text,
    token ids, or a list of either) take; keys that no prediction depends on are ignored.

    Raises:
        InputError: something in it cannot be read; the message says what, and in which request.
    """
    if not isinstance(body, dict):
        raise InputError("the body must be a JSON object with messages, a prompt, or requests")
    if "requests" not in body:
        return read_request(body)
    requests = body["requests"]
    if not isinstance(requests, list) or not requests:
        raise InputError("requests must be a list of at least one request")
    questions: list[Question] = []
    for place, request in enumerate(requests):
        try:
            if not isinstance(request, dict):
                raise InputError("it must be an object with messages or a prompt")
            questions += read_request(request)
        except InputError as error:
            raise InputError(f"requests[{place}]: {error}") from None
        _refuse_beyond_limit(len(questions))
    return questions


def read_request(request: Mapping[str, Any]) -> list[Question]:
    """The questions of one request: one for each prompt.

    Raises:
        InputError: it has no prompt, or one that cannot be read.
    """
    hints = request.get(XARGS) or {}
    if not isinstance(hints, dict):
        raise InputError(f"{XARGS} must be an object")
    most_tokens = _most_tokens(request)
    prompts = _prompts(request)
    chats = [prompt for prompt in prompts if isinstance(prompt, Chat)]
    attachments = sum(each.attachments for chat in chats for each in chat.messages())
    # One for all its prompts: a small body may have thousands.
    said = {**hints, FACTS: facts_of(request)._replace(attachments=attachments)}
    return [Question(prompt, said, most_tokens) for prompt in prompts]


def answers_of(request: Mapping[str, Any]) -> int:
    """How many answers a request asks for, of all its prompts; 1 where it cannot be told."""
    prompt, messages = request.get("prompt"), request.get("messages")
    sampling = request.get("sampling_params")  # where /inference/v1/generate has it
    n = request.get("n", sampling.get("n") if isinstance(sampling, dict) else None)
    prompts = 1
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        prompts = len(prompt)
    elif isinstance(messages, list) and messages and isinstance(messages[0], list):
        prompts = len(messages)  # the conversations of /v1/chat/completions/batch
    return min(prompts * max(n if type(n) is int else 1, 1), MOST_ANSWERS)


def _prompts(request: Mapping[str, Any]) -> list[Chat | str | Sequence[int]]:
    messages, prompt = request.get("messages"), request.get("prompt")
    if (messages is None) == (prompt is None):
        raise InputError("give either messages or a prompt")
    if messages is not None:
        if not isinstance(messages, list):  # text may hold some, but the API takes none
            raise InputError("messages must be a list")
        if len(messages) > MOST_MESSAGES:
            raise InputError(f"messages: more than {MOST_MESSAGES:,}")
        try:
            conversation = read_messages(messages)
        except MalformedError as error:
            raise InputError(f"messages: {error}") from None
        if not conversation:
            raise InputError("messages: there are none")
        for message in conversation:
            _require_text("messages", message.content)
        return [Chat(conversation, len(conversation), read_tools(request.get("tools")))]
    if isinstance(prompt, str):
        return [_require_text("prompt", prompt)]
    if not isinstance(prompt, list) or not prompt:
        raise InputError("prompt must be text, token ids, or a list of texts or of token ids")
    if type(prompt[0]) is int:
        return [_token_ids(prompt)]
    # Before anything is made of them: this may be the thread that serves everybody else.
    _refuse_beyond_limit(len(prompt))
    if isinstance(prompt[0], list):
        return [_token_ids(each) for each in prompt]
    if not all(isinstance(each, str) for each in prompt):
        raise InputError("prompt must be text, token ids, or a list of texts or of token ids")
    return [_require_text("prompt", each) for each in prompt]


def _require_text(name: str, text: str) -> str:
    """JSON can write half of a character, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{name}: the text holds half of a surrogate pair") from None
    return text


def _token_ids(ids: object) -> Sequence[int]:
    if not isinstance(ids, list) or not ids or set(map(type, ids)) != {int}:
        raise InputError("prompt: a list of token ids must hold integers, and at least one")
    if min(ids) < 0 or max(ids) > _HIGHEST_ID:
        raise InputError(f"prompt: token ids are from 0 to {_HIGHEST_ID}")
    return ids


def _most_tokens(request: Mapping[str, Any]) -> int:
    """Where the answer is cut; with `ignore_eos` that is no bound but a length, as vLLM has it."""
    for name in ("max_completion_tokens", "max_tokens"):
        most = request.get(name)
        if most is None:
            continue
        if type(most) is not int or most < 1:
            raise InputError(f"{name} must be a number of tokens, not {one_line(most, repr)}")
        return 0 if request.get("ignore_eos") else min(most, MOST_ANSWER_TOKENS)
    return 0


def _refuse_beyond_limit(prompts: int) -> None:
    if prompts > MOST_PROMPTS:
        raise InputError(f"more than {MOST_PROMPTS:,} prompts: send them in several requests")


def parse_targets(text: str) -> tuple[str, ...]:
    """Names of targets separated by commas.

    Raises:
        InputError: there is no such target, or none at all.
    """
    names = tuple(name for name in map(str.strip, text.split(",")) if name)
    for name in names:
        if name not in TARGETS:
            raise unknown_name("hint", name, TARGETS)
    if not names:
        raise InputError(f"no hint is named: choose from {', '.join(TARGETS)}")
    return names


def declared_tokens(body: Mapping[str, Any]) -> set[float]:
    """The lengths that a request's own hints name; more than one contradict each other.

    Raises:
        InputError: a hint is there and is no number of tokens, or its place holds something else.
    """
    found = set()
    for value in (_within(body, XARGS).get(EXPECTED_TOKENS), _agent_hints(body).get("osl")):
        if value is not None:
            found.add(_tokens(value))
    return found


def missing_targets(body: Mapping[str, Any], targets: Collection[str]) -> set[str]:
    """The targets where a request has no hint yet."""
    there = {
        XARGS: _within(body, XARGS).get(EXPECTED_TOKENS),
        NVEXT: _agent_hints(body).get("osl"),
        PRIORITY: body.get(PRIORITY),
    }
    return {name for name in targets if there[name] is None}


def write_hints(
    body: Mapping[str, Any], tokens: float, targets: Collection[str] = DEFAULT_TARGETS
) -> dict[str, Any]:
    """A request with an expected length written where it has none.

    Args:
        body: of `/v1/chat/completions` or `/v1/completions`; it stays as it is.
        tokens: the expected length of the answer.
        targets: of `TARGETS`.

    Raises:
        InputError: `vllm_xargs`, `nvext` or `nvext.agent_hints` is there and no object.
    """
    length = max(1, round(tokens))
    missing = missing_targets(body, targets)
    written = dict(body)
    if XARGS in missing:
        written[XARGS] = {**_within(body, XARGS), EXPECTED_TOKENS: length}
    if NVEXT in missing:
        hints = {**_agent_hints(body), "osl": length}
        written[NVEXT] = {**_within(body, NVEXT), "agent_hints": hints}
    if PRIORITY in missing:
        written[PRIORITY] = length
    return written


def write_deadline(body: Mapping[str, Any], milliseconds: float) -> dict[str, Any]:
    """A request with the deadline of its first token in `vllm_xargs`, where it has none yet.

    Raises:
        InputError: `vllm_xargs` is there and no object.
    """
    return {**body, XARGS: {TTFT_DEADLINE_MS: milliseconds, **_within(body, XARGS)}}


def write_tenant(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A request with the name of its tenant in `vllm_xargs`, whatever stood there: whose a request
    is, whoever let it in says, and not the client.

    Raises:
        InputError: `vllm_xargs` is there and no object.
    """
    return {**body, XARGS: {**_within(body, XARGS), TENANT: name}}


def _within(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{name} must be an object")
    return value


def _agent_hints(body: Mapping[str, Any]) -> Mapping[str, Any]:
    return _within(_within(body, NVEXT), "agent_hints")


def _tokens(value: object) -> float:
    try:
        # Values in vllm_xargs may be text.
        tokens = float(value) if isinstance(value, int | float | str) else -1.0
    except (ValueError, OverflowError):
        tokens = -1.0
    if not 0 <= tokens <= MOST_TOKENS:
        raise InputError("a hint that is there is no number of tokens")
    return tokens
