"""From logged answers to what a lexical predictor is trained on.

An answer that ended by itself has its whole length. One that was cut at a limit is at least as long
as what there is of it. Leaving all of those out would hide the longest answers, so the ones cut
above nine in ten of the whole lengths count with what there is: their place in the order is then
wrong by a tenth at most. Answers cut lower, and those that their clients gave up, say too little.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from lengthwise.errors import InputError
from lengthwise.predict.features import FEATURES_VERSION, FeatureRows
from lengthwise.predict.token_text import TokenText, load_token_text
from lengthwise.workload.dataset import Dataset
from lengthwise.workload.length_log import CUT, FULL, Answer
from lengthwise.workload.rejections import Rejection

_CUT_ABOVE: Final = 0.9  # quantile of whole lengths


class TrainingRows(NamedTuple):
    """What `train_on_features` takes."""

    dataset: Dataset  #: lengths, no prompts
    features: FeatureRows
    text: TokenText


def is_full(answer: Answer) -> bool:
    """Whether the answer's whole length is known."""
    return answer.finished == FULL and answer.output_tokens > 0


def teaching(answers: Sequence[Answer]) -> list[Answer]:
    """The answers that a predictor can learn from, in their order."""
    full = [answer.output_tokens for answer in answers if is_full(answer)]
    if not full:
        return []
    least = float(np.quantile(full, _CUT_ABOVE))
    return [
        answer
        for answer in answers
        if is_full(answer) or (answer.finished == CUT and answer.output_tokens >= max(1.0, least))
    ]


def of_one_kind(answers: Sequence[Answer]) -> list[Answer]:
    """The answers whose features mean the same as the newest one's.

    Those of another tokenizer, chat template or version of the features are left out.
    """
    if not answers:
        return []
    wanted = _meaning(answers[-1])
    return [answer for answer in answers if _meaning(answer) == wanted]


def features_of(answers: Sequence[Answer]) -> FeatureRows:
    """The features of each answer's prompt."""
    parts = [answer.features for answer in answers]
    starts = np.zeros(len(parts) + 1, dtype=np.int64)
    np.cumsum([part.size for part in parts], out=starts[1:])
    return FeatureRows(starts, np.concatenate(parts).astype(np.int32))


def lengths_of(answers: Sequence[Answer]) -> np.typing.NDArray[np.int64]:
    """The answers' lengths in tokens, shape (n,)."""
    return np.array([answer.output_tokens for answer in answers], dtype=np.int64)


def training_rows(folder: Path, answers: Sequence[Answer], damaged: int = 0) -> TrainingRows:
    """Everything that training needs, of the answers that teach.

    Args:
        folder: of the log.
        answers: from it, in its order.
        damaged: lines that could not be read, for the record.

    Raises:
        InputError: none of the answers teaches anything, or their features have no meaning here.
    """
    same = of_one_kind(answers)
    kept = teaching(same)
    if not kept:
        ends = Counter(str(answer.finished) for answer in same)
        listed = ", ".join(f"{count} {reason}" for reason, count in ends.most_common())
        raise InputError(
            f"{folder}: no answer ended by itself, and only those tell how long answers are "
            f"(logged: {listed or 'none'}); serve more, or with a higher max_tokens"
        )
    header = kept[-1].header
    if header["features"] != FEATURES_VERSION:
        raise InputError(
            f"{folder}: logged with features of version {header['features']}, this Lengthwise has "
            f"version {FEATURES_VERSION}: log anew"
        )
    left_out = [Rejection(0, "damaged")] * damaged
    left_out += [Rejection(0, "cut, or of another tokenizer")] * (len(answers) - len(kept))
    cut = sum(not is_full(answer) for answer in kept)
    return TrainingRows(
        Dataset(
            name=str(folder),
            prompts=[],
            lengths=lengths_of(kept),
            samples=None,
            rows=np.arange(1, len(kept) + 1),
            rejected=left_out,
            model=header["model"],
            selection=f"answers that ended by themselves, and {cut} that were cut late",
        ),
        features_of(kept),
        load_token_text(folder / f"tokens-{header['tokens'][:16]}.safetensors", header["tokens"]),
    )


def _meaning(answer: Answer) -> tuple[object, object]:
    return answer.header["tokens"], answer.header["features"]
