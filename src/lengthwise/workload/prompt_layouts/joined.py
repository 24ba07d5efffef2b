"""Answers whose prompts are in another file: OpenAI's batches, and aiperf's runs.

A batch's output names the request by its `custom_id`, which the batch's input has with the request
in `body`. aiperf writes lengths to profile_export.jsonl, by conversation and turn, and prompts to
inputs.json beside it (docs/tutorials/working-with-profile-exports.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from lengthwise.errors import InputError
from lengthwise.workload.conversation import MalformedError, Turns
from lengthwise.workload.file_kinds import Record
from lengthwise.workload.prompt_layouts.answer_fields import read_answer, read_length
from lengthwise.workload.prompt_layouts.layout import (
    Exchange,
    PromptLayout,
    exchange_of,
    first_cell,
    no_rows,
)
from lengthwise.workload.records import open_records
from lengthwise.workload.rejections import Rejection, UnusableError

BATCH: Final = "openai batch output"
AIPERF: Final = "aiperf"
_INPUTS: Final = "inputs.json"  # what aiperf calls the file of its prompts

Requests = Mapping[str, Record]  # bodies of requests by key


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
        yield "its prompt is not in the file of the prompts"
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
        yield "its prompt is not in the file of the prompts"
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


LAYOUTS: Final = (
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
