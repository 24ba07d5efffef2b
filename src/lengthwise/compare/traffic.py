"""What is simulated: a trace, or a table of prompts whose lengths are predicted or given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lengthwise.advise.cell import Workload
from lengthwise.compare.progress import Progress
from lengthwise.errors import InputError
from lengthwise.predict.extract import encode_prompts, prompt_counter
from lengthwise.predict.load import load_predictor
from lengthwise.predict.prediction import PredictionError, Prompt
from lengthwise.predict.tokenizer import REFERENCE, load_tokenizer
from lengthwise.workload.dataset import load_dataset, parse_where
from lengthwise.workload.load_trace import load_trace
from lengthwise.workload.open_trace import is_trace
from lengthwise.workload.trace import Trace


def parse_load(text: str) -> str:
    """How requests arrive, as `Cell.load` has it.

    Raises:
        InputError: neither a share above 0 nor `burst`, `trace` or rate=R.
    """
    text = text.strip()
    if text in ("burst", "trace"):
        return text
    try:
        positive = float(text.removeprefix("rate=")) > 0.0
    except ValueError:
        positive = False
    if not positive:
        raise InputError(
            f"load {text!r} must be a number above 0, `burst`, `trace` or rate=R, such as 0.9"
        )
    return text


def read_workload(
    path: Path,
    *,
    requests: int | None,
    split: str | None,
    where: Sequence[str] | None,
    predictor: str | None,
    skip_malformed: bool,
    progress: Progress,
    reading: Mapping[str, Any] | None = None,
) -> tuple[Workload, str | None]:
    """A trace, or a table of prompts whose requests arrive all at once until a load is given.

    Args:
        path: of the trace or the table.
        requests: how many at most, the first ones.
        split: of a table: only rows of this split.
        where: only rows with COLUMN=VALUE.
        predictor: as cells name it, or the folder of one.
        skip_malformed: leave malformed rows out and say how many, instead of refusing them.
        progress: told what is read and left out.
        reading: of a trace: further arguments of `load_trace`.

    Returns:
        The workload, and the predictor as cells name it: "given" where it has read the prompts.
    """
    progress.stage(f"reading {path.name}")
    if path.is_file() and not is_trace(path):
        return _from_prompts(path, requests, split, where, predictor, skip_malformed, progress)
    if split:
        raise InputError(f"{path} is a trace without prompts: --split does not apply")
    conditions = parse_where(list(where) if where else None)
    trace = load_trace(
        path,
        limit=requests,
        where=conditions,
        count_prompt=prompt_counter(REFERENCE),
        **(reading or {}),
    )
    if not skip_malformed:
        trace.refuse_rejected()
    progress.note(f"{trace.name}, read as {trace.layout}: {len(trace):,} requests")
    for reason, count in trace.left_out.items():
        progress.note(f"  left out {count:,}: {reason}")
    if trace.rejected:
        progress.note(f"  left out {len(trace.rejected):,} malformed rows")
    for note in trace.notes:
        progress.note(f"  {note}")
    return Workload(trace), predictor


def _from_prompts(
    path: Path,
    requests: int | None,
    split: str | None,
    where: Sequence[str] | None,
    predictor: str | None,
    skip_malformed: bool,
    progress: Progress,
) -> tuple[Workload, str | None]:

    loaded = None
    if predictor is not None and Path(predictor).is_dir():
        loaded = load_predictor(predictor, None)
    metadata = getattr(loaded, "metadata", None)
    tokenizer = load_tokenizer(metadata.tokenizer if metadata is not None else REFERENCE)
    table = load_dataset(
        path,
        split=split,
        where=parse_where(list(where) if where else None),
        limit=requests,
        count_tokens=tokenizer.count_tokens,
        refuses=tokenizer.refuses,
    )
    if not skip_malformed:
        table.refuse_rejected()
    for line in table.account():
        progress.note(line)
    answered = np.flatnonzero(table.lengths > 0)
    progress.stage("reading the prompts", total=len(answered))
    lengths: list[int] = []
    predictions = np.full((len(answered), 5), np.nan)
    for place, row in enumerate(answered):
        (ids,) = encode_prompts(table, tokenizer, [int(row)])
        lengths.append(max(len(ids), 1))
        if loaded is not None:
            try:
                predictions[place] = loaded.predict(Prompt(ids, {}))
            except PredictionError:
                continue
        if place % 256 == 0:
            progress.advance(place)
    trace = Trace(
        name=table.name,
        arrival_s=np.zeros(len(answered)),
        prompt_tokens=np.array(lengths, np.int64),
        output_tokens=table.lengths[answered],
        rejected=table.rejected,
        layout="prompts",
    )
    if loaded is None:
        return Workload(trace), predictor
    return Workload(trace, predictions), "given"
