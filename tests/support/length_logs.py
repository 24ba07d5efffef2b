"""Length logs for tests, as the scheduler would have written them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from lengthwise.predict.extract import TokenText, token_text_of
from lengthwise.predict.features import FEATURES_VERSION, find_features, new_scratch
from lengthwise.predict.tokenizer import load_tokenizer
from lengthwise.workload.length_log import (
    SCHEMA,
    encode_features,
    encode_line,
    segment_path,
    segments,
)

REFERENCE = load_tokenizer("reference")


@cache
def reference_text() -> TokenText:
    return token_text_of(REFERENCE)


def write_segment(
    folder: Path,
    prompts: Sequence[str],
    lengths: Sequence[int],
    *,
    finished: str = "stop",
    predictor: str | None = None,
    scores: Sequence[float] | None = None,
    arrival_s: float = 1e9,
    began_s: float = 1e9,
) -> Path:
    """Append a segment with one answer to each prompt."""
    folder.mkdir(parents=True, exist_ok=True)
    text = reference_text()
    tokens = folder / f"tokens-{text.digest[:16]}.safetensors"
    if not tokens.exists():
        text.save(tokens)
    number = max((number for number, _ in segments(folder)), default=0) + 1
    header = {
        "schema": SCHEMA,
        "model": "a-model",
        "tokenizer": text.tokenizer,
        "tokenizer_fingerprint": text.fingerprint,
        "tokens": text.digest,
        "features": FEATURES_VERSION,
        "segment": number,
        "began_s": began_s,
    }
    lines = [encode_line(header)]
    scratch = new_scratch()
    encoded = REFERENCE.encode_chat_many(prompts)
    for row, (ids, length) in enumerate(zip(encoded, lengths, strict=True)):
        found = find_features(ids, text.vocabulary, text.template, scratch)
        lines.append(
            encode_line(
                {
                    "arrival_s": arrival_s + row,
                    "queue_s": 0.0,
                    "score": None if scores is None else float(scores[row]),
                    "output_tokens": int(length),
                    "prompt_tokens": len(ids),
                    "cached_tokens": 0,
                    "finished": finished,
                    "predictor": predictor,
                    "features": encode_features(scratch.buckets[:found]),
                }
            )
        )
    path = segment_path(folder, number)
    path.write_bytes(b"".join(lines))
    return path
