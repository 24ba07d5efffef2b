"""What load generators, evaluation harnesses and batches leave behind.

The answers of OpenAI's batches and of aiperf's runs have their prompts in another file. A batch's
output names the request by its `custom_id`, which the batch's input has with the request in `body`.
aiperf writes lengths to profile_export.jsonl, by conversation and turn, and prompts to inputs.json
beside it (docs/tutorials/working-with-profile-exports.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from lengthwise.errors import InputError
from lengthwise.files import parse_json
from lengthwise.workload.conversation import MalformedError, Turns, is_messages
from lengthwise.workload.prompt_layouts.layout import (
    EMPTY,
    Exchange,
    PromptLayout,
    exchange_of,
    first_cell,
    has,
    mooncake_body,
    no_rows,
    opened,
    read_answer,
    read_length,
)
from lengthwise.workload.records import STATUS, Record, Rejection, UnusableError, open_records

BATCH: Final = "openai batch output"
AIPERF: Final = "aiperf"
_INPUTS: Final = "inputs.json"  # what aiperf calls the file of its prompts
_NO_PROMPT: Final = "its prompt is not in the file of the prompts"

Requests = Mapping[str, Record]  # bodies of requests by key


def read_guidellm(record: Record, turns: Turns) -> Iterator[Exchange | str]:
    """A request of guidellm: its arguments are JSON in a text (schemas/request_stats.py).

    Raises:
        MalformedError: something in it cannot be what it should be.
    """
    if record.get(STATUS, "successful") != "successful":
        yield f"the request is {record[STATUS]}"
        return
    if "request_args" not in record:  # before guidellm 0.4
        yield exchange_of(
            record,
            record.get("output") if isinstance(record.get("output"), str) else None,
            read_length(record.get("output_tokens"), "output_tokens"),
            read_length(record.get("prompt_tokens"), "prompt_tokens"),
        )
        return
    arguments = record.get("request_args")
    if isinstance(arguments, str):
        try:
            arguments = parse_json(arguments)
        except ValueError:
            raise MalformedError("request_args is not JSON") from None
    body = arguments.get("body", arguments) if isinstance(arguments, dict) else None
    if not isinstance(body, dict):
        raise MalformedError("request_args has no body")
    text = record.get("output")
    yield exchange_of(
        body,
        text if isinstance(text, str) else None,
        _counted(record, "output_metrics"),
        _counted(record, "input_metrics"),
    )


def _counted(record: Record, name: str) -> int | None:
    """The tokens that one of guidellm's usage metrics counts."""
    metrics = record.get(name)
    if not isinstance(metrics, dict):
        return None
    tokens = metrics.get("total_tokens") or metrics.get("text_tokens")
    return None if tokens is None else read_length(tokens, f"{name}.total_tokens")


def read_evaluation(record: Record, turns: Turns) -> Iterator[Exchange | str]:
    """A sample of lm-evaluation-harness: arguments.gen_args_0.arg_0 is what the model saw.

    Raises:
        MalformedError: something in it cannot be what it should be.
    """
    arguments = record.get("arguments")
    if isinstance(arguments, dict):  # since 0.4.3; a list of lists before
        first = next(iter(arguments.values()), None)
        prompt = first.get("arg_0") if isinstance(first, dict) else None
        asked = first.get("arg_1") if isinstance(first, dict) else None
    else:
        first = arguments[0] if isinstance(arguments, list) and arguments else None
        prompt = first[0] if isinstance(first, list) and first else None
        asked = first[1] if isinstance(first, list) and len(first) > 1 else None
    if not isinstance(asked, dict):
        yield "it asks how likely an answer is, and generates none"
        return
    resps = record.get("resps")
    answers = resps[0] if isinstance(resps, list) and resps else None
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list) or not answers or not isinstance(answers[0], str):
        raise MalformedError("resps holds no answer")
    if not answers[0].strip():
        yield EMPTY
        return
    others = tuple(answer for answer in answers[1:] if isinstance(answer, str))
    if isinstance(prompt, list) and len(prompt) == 1:  # rendered for a server that chats
        prompt = prompt[0]
    body = {"messages": prompt} if is_messages(prompt) else {"prompt": prompt}
    yield exchange_of(body, answers[0], None, None)._replace(other_answers=others)


def read_spend_log(record: Record, turns: Turns) -> Iterator[Exchange | str]:
    """A row of LiteLLM's LiteLLM_SpendLogs, with what its setting to store prompts keeps.

    Raises:
        MalformedError: something in it cannot be what it should be.
    """
    if record.get("status") not in (None, "", "success"):
        yield "the request failed"
        return
    tokens = read_length(record.get("completion_tokens"), "completion_tokens")
    request = record.get("proxy_server_request")
    messages = record.get("messages")
    for cell in (messages, request):
        asked = opened(cell)
        body = {"messages": asked} if is_messages(asked) else asked
        if isinstance(body, dict) and ("messages" in body or "prompt" in body):
            yield exchange_of(
                body,
                _answer_text(record.get("response")),
                tokens,
                read_length(record.get("prompt_tokens"), "prompt_tokens"),
            )
            return
    yield "its prompt was not stored"


def _answer_text(cell: Any) -> str | None:
    """The text of a stored response, where there is one: its length is known anyway."""
    if cell in (None, "", "{}", {}):
        return None
    try:
        return read_answer(cell, "response").text
    except MalformedError:
        return None


def read_mooncake(record: Record, turns: Turns) -> Iterator[Exchange | str]:
    """A request that aiperf replays: `text_input`, `messages` or a `payload`, and output_length.

    Raises:
        MalformedError: something in it cannot be what it should be.
    """
    if record.get("output_length") is None:
        yield "the length of its answer is not given"
        return
    tokens = read_length(record["output_length"], "output_length")
    yield exchange_of(mooncake_body(record), None, tokens, None)


def _is_guidellm(names: Sequence[str], head: Sequence[Record]) -> bool:
    there = set(names)
    before = {"prompt", "output", "output_tokens", "start_time", STATUS}  # 0.4
    return {"request_args", "output_metrics"} <= there or before <= there


def _is_mooncake(names: Sequence[str], head: Sequence[Record]) -> bool:
    asked = {"text_input", "messages", "payload"} & set(names)
    return bool(asked) and "output_length" in names


LAYOUTS: Final = (
    PromptLayout(
        name="guidellm",
        source="[guidellm](https://github.com/vllm-project/guidellm)",
        prompt="messages or prompt in request_args",
        answer="output, counted in output_metrics",
        matches=_is_guidellm,
        read=read_guidellm,
    ),
    PromptLayout(
        name="lm-eval samples",
        source="[lm-evaluation-harness](https://github.com/EleutherAI/lm-evaluation-harness)",
        prompt="arguments.gen_args_0.arg_0",
        answer="text in resps",
        matches=has("arguments", "resps"),
        read=read_evaluation,
    ),
    PromptLayout(
        name="litellm",
        source="[LiteLLM](https://github.com/BerriAI/litellm), LiteLLM_SpendLogs",
        prompt="messages or proxy_server_request",
        answer="tokens in completion_tokens",
        matches=has("startTime", "completion_tokens"),
        read=read_spend_log,
    ),
    PromptLayout(
        name="mooncake",
        source="[aiperf](https://github.com/ai-dynamo/aiperf)'s traces in Mooncake's layout",
        prompt="text_input, messages or payload",
        answer="tokens in output_length",
        matches=_is_mooncake,
        read=read_mooncake,
    ),
    PromptLayout(
        name="vllm bench",
        source="`vllm bench serve --save-result --save-detailed`",
        prompt="",
        answer="tokens in output_lens",
        matches=lambda names, head: (
            {"input_len", "output_len"} <= set(names) and not {"prompt", "messages"} & set(names)
        ),
        read=no_rows,
        no_prompts="vllm bench does not write its prompts down: learn from the server's own log "
        "(`lengthwise serve --log DIR`), or from the data set that it was given",
    ),
)


def with_prompts(layout: PromptLayout, path: Path, prompts: Path | None) -> PromptLayout:
    """A layout that has no prompts itself, read together with the file that has them.

    Args:
        layout: of the answers.
        path: of the answers.
        prompts: of the prompts; None: inputs.json beside the answers, where aiperf wrote it.

    Raises:
        InputError: there is no such file, or it has no requests.
    """
    readers: dict[str, Callable[[Record, Requests], Iterator[Exchange | str]]] = {
        BATCH: _read_batch,
        AIPERF: _read_aiperf,
    }
    missing = UnusableError(
        f"{path} ({layout.name}): {layout.no_prompts}", layout.name, layout.source
    )
    if layout.name not in readers:
        raise missing
    if prompts is None and layout.name == AIPERF:
        beside = path.with_name(_INPUTS)
        prompts = beside if beside.is_file() else None
    if prompts is None:
        raise missing
    requests = dict(_requests_in(prompts))
    if not requests:
        raise InputError(
            f"{prompts}: no requests in it: give a batch's input (custom_id and body), or aiperf's "
            "inputs.json (session_id and payloads)"
        )
    read = readers[layout.name]

    def reader(record: Record, turns: Turns) -> Iterator[Exchange | str]:
        return read(record, requests)

    return replace(layout, read=reader, no_prompts="", source=f"{layout.source}, with {prompts}")


def _requests_in(path: Path) -> Iterator[tuple[str, Record]]:
    for row in open_records(path):
        if isinstance(row, Rejection):
            continue
        record = row[1]
        payloads = record.get("payloads")
        if isinstance(record.get("body"), dict):
            yield str(record.get("custom_id")), record["body"]
        elif isinstance(payloads, list):
            for turn, payload in enumerate(payloads):
                if isinstance(payload, dict):
                    yield f"{record.get('session_id')}/{turn}", payload


def _read_batch(record: Record, requests: Requests) -> Iterator[Exchange | str]:
    response = record.get("response")
    status = response.get("status_code", 200) if isinstance(response, dict) else None
    if record.get("error") or status != 200:
        yield "the request failed"
        return
    body = requests.get(str(record.get("custom_id")))
    if body is None:
        yield _NO_PROMPT
        return
    answer = read_answer(response, "response")
    yield exchange_of(body, answer.text, answer.tokens, answer.prompt_tokens)._replace(
        other_answers=answer.others
    )


def _read_aiperf(record: Record, requests: Requests) -> Iterator[Exchange | str]:
    metadata, metrics = record.get("metadata"), record.get("metrics")
    if not isinstance(metadata, dict) or not isinstance(metrics, dict):
        raise MalformedError("metadata or metrics is not an object")
    if record.get("error"):
        yield "the request failed"
        return
    body = requests.get(f"{metadata.get('conversation_id')}/{metadata.get('turn_index', 0)}")
    if body is None:
        yield _NO_PROMPT
        return
    yield exchange_of(
        body,
        None,
        read_length(metric(metrics, "output_sequence_length"), "output_sequence_length"),
        read_length(metric(metrics, "input_sequence_length"), "input_sequence_length"),
    )


def metric(metrics: Record, name: str) -> Any:
    """The value of one of aiperf's metrics, which has a unit beside it."""
    cell = metrics.get(name)
    return cell.get("value") if isinstance(cell, dict) else cell


def _is_batch(names: Sequence[str], head: Sequence[Record]) -> bool:
    return {"custom_id", "response"} <= set(names) and "messages" not in names


def _is_aiperf(names: Sequence[str], head: Sequence[Record]) -> bool:
    metadata = first_cell(head, "metadata")
    return "metrics" in names and isinstance(metadata, dict) and "request_start_ns" in metadata


JOINED_LAYOUTS: Final = (
    PromptLayout(
        name=BATCH,
        source="[OpenAI's batch API](https://platform.openai.com/docs/guides/batch)",
        prompt="body of the batch's input, by custom_id",
        answer="response.body and its usage",
        matches=_is_batch,
        read=no_rows,
        no_prompts="a batch's output has no prompts: name its input file with --prompts FILE",
    ),
    PromptLayout(
        name=AIPERF,
        source="[aiperf](https://github.com/ai-dynamo/aiperf), profile_export.jsonl",
        prompt="payloads of inputs.json, by conversation and turn",
        answer="tokens in metrics.output_sequence_length",
        matches=_is_aiperf,
        read=no_rows,
        no_prompts="aiperf writes prompts to a file of their own: name it with "
        "--prompts inputs.json",
    ),
)
