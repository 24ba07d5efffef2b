"""The requests of a comparison, chosen from a table of prompts and answer lengths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lengthwise.compare.client import ReplayRequest
from lengthwise.errors import InputError
from lengthwise.predict.extract import ChatTokenizer, encode_prompts
from lengthwise.workload.dataset import Dataset

_ENCODED_AT_ONCE = 512


def choose_requests(
    table: Dataset, tokenizer: ChatTokenizer, *, count: int, max_model_len: int, seed: int
) -> tuple[list[ReplayRequest], list[str]]:
    """Choose requests at random, those that fit the model's context and have an answer.

    Args:
        table: prompts and answer lengths in tokens.
        tokenizer: of the served model; prediction and serving see its ids.
        count: how many; all that fit where the table has fewer.
        max_model_len: the context in tokens; prompt and answer must fit together.
        seed: same seed, same requests.

    Returns:
        The requests, numbered from 0, and notes on what was left out, for the reader of the
        results.

    Raises:
        InputError: no row of the table fits.
    """
    chosen: list[ReplayRequest] = []
    too_long = empty = 0
    order = np.random.default_rng(seed).permutation(len(table.prompts))
    for start in range(0, len(order), _ENCODED_AT_ONCE):
        rows = order[start : start + _ENCODED_AT_ONCE]
        encoded = encode_prompts(table, tokenizer, rows.tolist())
        for row, prompt_ids in zip(rows.tolist(), encoded, strict=True):
            if len(chosen) == count:
                break
            counted = None if table.prompt_tokens is None else int(table.prompt_tokens[row])
            request = ReplayRequest(
                len(chosen), prompt_ids, int(table.lengths[row]), counted_tokens=counted
            )
            if request.answer_tokens < 1:
                empty += 1
            elif request.prompt_tokens + request.answer_tokens > max_model_len:
                too_long += 1
            else:
                chosen.append(request)
        if len(chosen) == count:
            break
    if not chosen:
        raise InputError(
            f"none of the {len(table.prompts):,} rows of {table.name} fits: prompt and answer "
            f"together may have {max_model_len:,} tokens (vLLM's --max-model-len), and the answer "
            "must have at least one"
        )
    notes = []
    if too_long:
        notes.append(
            f"{too_long} of {len(chosen) + too_long + empty} rows were left out: longer than the "
            f"model's context of {max_model_len:,} tokens"
        )
    if empty:
        notes.append(f"{empty} rows were left out: an answer of 0 tokens")
    if len(chosen) < count:
        notes.append(f"{count:,} requests were asked for, {len(chosen):,} rows fit")
    return chosen, notes


def describe_requests(requests: Sequence[ReplayRequest]) -> str:
    """One line: how many requests, and how long."""
    prompts = np.array([request.prompt_tokens for request in requests])
    answers = np.array([request.answer_tokens for request in requests])
    return (
        f"{len(requests):,} requests: prompts of {prompts.mean():.0f} tokens on average, answers "
        f"of {answers.mean():.0f} (median {np.median(answers):.0f}, "
        f"p99 {np.percentile(answers, 99):.0f}, longest {answers.max()})"
    )
