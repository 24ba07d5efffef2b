"""What a file holds, told row by row without keeping any."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from lengthwise.workload.conversation import Turns
from lengthwise.workload.exchanges import Exchanges
from lengthwise.workload.layouts import CountPrompt
from lengthwise.workload.open_trace import open_trace
from lengthwise.workload.records import Rejection
from lengthwise.workload.trace import load_trace
from lengthwise.workload.trace_rows import TraceState

_SHOWN: Final = 5  #: malformed rows that are listed
_EVERY: Final = 5_000  #: rows between two reports of progress
_SAMPLED: Final = 100_000  #: lengths that quantiles are taken from

Progress = Callable[[int], None]


class Quantiles:
    """Quantiles of a stream of lengths, exact up to 100,000 of them, then of a random sample."""

    def __init__(self) -> None:
        self._kept = np.zeros(_SAMPLED)
        self._random = np.random.default_rng(0)
        self.count = 0
        self._sum = 0.0
        self._most = 0.0

    def add(self, values: Any) -> None:
        """Count some lengths; shape (n,)."""
        array = np.asarray(values, dtype=np.float64)
        if not array.size:
            return
        self._sum += float(array.sum())
        self._most = max(self._most, float(array.max()))
        room = max(0, _SAMPLED - self.count)
        self._kept[self.count : self.count + room][: array.size] = array[:room]
        rest = array[room:]
        # Reservoir sampling: the i-th stays with probability sampled/i.
        places = self.count + min(room, array.size) + 1 + np.arange(rest.size)
        drawn = (self._random.random(rest.size) * places).astype(np.int64)
        self._kept[drawn[drawn < _SAMPLED]] = rest[drawn < _SAMPLED]
        self.count += array.size

    def told(self) -> dict[str, float]:
        """Mean, median, 90th and 99th percentile, and the longest."""
        if not self.count:
            return {}
        kept = self._kept[: min(self.count, _SAMPLED)]
        median, high, top = np.percentile(kept, [50, 90, 99])
        return {
            "mean": round(self._sum / self.count, 3),
            "median": float(median),
            "p90": float(high),
            "p99": float(top),
            "longest": self._most,
        }


def inspect_prompts(
    path: Path,
    *,
    turns: Turns = Turns.ALL,
    quotes: bool = False,
    prompts: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """What `load_dataset` would keep of a file, and what not, by reason.

    Args:
        path: the file.
        turns: which answers of a conversation are rows.
        quotes: keep prompts that hold their own answers.
        prompts: the file of the prompts, where the answers' file has none.
        progress: called with the number of rows read.

    Raises:
        InputError: as from `load_dataset`; but a file without a single usable row is told.
    """
    exchanges = Exchanges(path, turns=turns, quotes=quotes, prompts=prompts)
    words, tokens = Quantiles(), Quantiles()
    rows = chats = attached = called = answers = 0
    for row in exchanges:
        exchange = row.exchange
        rows += 1
        answers += 1 + len(exchange.other_answers)
        if exchange.samples is not None:
            answers += exchange.samples.size - 1
        if exchange.chat is not None:
            messages = exchange.chat.messages()
            chats += 1
            attached += any(message.attachments for message in messages)
            called += any(message.call_count for message in messages)
        if exchange.tokens is not None:
            tokens.add([exchange.tokens])
        elif exchange.answer is not None:
            words.add([len(exchange.answer.split())])
        if progress is not None and rows % _EVERY == 0:
            progress(rows)
    exchanges.check()
    tally = exchanges.tally
    return {
        "layout": exchanges.layout.name,
        "source": exchanges.layout.source,
        "records": tally.records,
        "rows": rows,
        "prompt": exchanges.layout.prompt,
        "answer": exchanges.layout.answer,
        "conversations": chats,
        "with_attachments": attached,
        "with_tool_calls": called,
        "answers": answers,
        "answer_tokens": tokens.told(),
        "answer_words": words.told(),
        "prompts_with_own_answer": tally.holding,
        "left_out": dict(tally.left_out.most_common()),
        "malformed": len(tally.rejected),
        "malformed_rows": [
            {"row": rejection.row, "reason": rejection.reason}
            for rejection in tally.rejected[:_SHOWN]
        ],
    }


def inspect_trace(
    path: Path,
    *,
    block_tokens: int | None = None,
    answer_tokens: int | None = None,
    count_prompt: CountPrompt | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """What `load_trace` would keep of a file or a folder, and what not, by reason.

    Args:
        path: the file or folder.
        block_tokens: tokens of a block in its hash_ids; None: told from the requests.
        answer_tokens: how long answers are, where it does not say.
        count_prompt: how many tokens a prompt has, where the file has prompts, not their lengths.
        progress: called with the number of rows read.

    Raises:
        InputError: as from `load_trace`.
    """
    file = open_trace(path, answer_tokens=answer_tokens, count_prompt=count_prompt)
    state = TraceState(block_tokens)
    prompts, answers = Quantiles(), Quantiles()
    rows = failed = later = malformed = 0
    shown: list[Rejection] = []
    first_s, last_s = np.inf, -np.inf
    whole_seconds = True
    for part in file.parts(state):
        rows += part.rows
        failed += len(part.failed)
        later += 0 if part.delay_s is None else int(np.isfinite(part.delay_s).sum())
        malformed += len(part.rejected)
        shown += part.rejected[: _SHOWN - len(shown)]
        prompts.add(part.prompt_tokens)
        answers.add(part.output_tokens)
        if part.arrival_s.size:
            first_s = min(first_s, float(part.arrival_s.min()))
            last_s = max(last_s, float(part.arrival_s.max()))
            whole_seconds &= bool((part.arrival_s == np.floor(part.arrival_s)).all())
        if progress is not None:
            progress(rows)
    if not answers.count:
        # Said as `load_trace` says it.
        load_trace(
            path,
            block_tokens=block_tokens,
            answer_tokens=answer_tokens,
            count_prompt=count_prompt,
        )
    seconds = last_s - first_s
    size = state.block_tokens or file.layout.block_tokens
    return {
        "layout": file.layout.name,
        "source": file.layout.source,
        "records": rows,
        "rows": answers.count,
        "seconds": round(seconds, 3),
        "requests_per_s": round((answers.count - 1) / seconds, 4) if seconds > 0 else None,
        "prompt_tokens": prompts.told(),
        "answer_tokens": answers.told(),
        "block_tokens": size if state.block_tokens else None,
        "later_turns": later,
        "whole_seconds": whole_seconds and file.layout.whole_seconds,
        "left_out": {file.layout.without_output or "": failed} if failed else {},
        "malformed": malformed,
        "malformed_rows": [{"row": each.row, "reason": each.reason} for each in shown],
        "remarks": list(file.notes),
    }
