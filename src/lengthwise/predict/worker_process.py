"""The process behind a `PredictionWorker`: batches of prompts in, predictions out, a line each.

Run as `python -m lengthwise.predict.worker_process PREDICTOR`. The first line it writes is
`{"ready": NAME}`, or `{"error": REASON}` if the predictor cannot be loaded. It then reads lists of
prompts (lists of token ids) and answers each with a list of predictions. It ends with its input,
which closes when the parent ends, however that ends.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
from collections.abc import Sequence
from typing import IO, Any, Final

from lengthwise.errors import LengthwiseError
from lengthwise.predict.load import load_predictor
from lengthwise.predict.prediction import Prompt

_NICENESS: Final = 10


def main() -> None:
    """Serve until the input closes."""
    # Both reach every process of the group; the parent decides when this one ends.
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.SIG_IGN)
    # What libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _step_back()
    try:
        predictor = load_predictor(sys.argv[1])
        _predict(predictor, [Prompt([0, 1, 2], {})])  # loads and compiles what it needs
    except Exception as error:  # the parent reports it in one line
        own = isinstance(error, LengthwiseError)
        _say(answers, {"error": str(error) if own else f"{type(error).__name__}: {error}"})
        sys.exit(1)
    _say(answers, {"ready": predictor.name})
    for line in sys.stdin:
        prompts = [Prompt(token_ids, {}) for token_ids in json.loads(line)]
        _say(answers, _predict_all(predictor, prompts))


def _predict(predictor: Any, prompts: Sequence[Any]) -> list[list[float]]:
    if hasattr(predictor, "predict_many"):
        return [list(prediction) for prediction in predictor.predict_many(prompts)]
    return [list(predictor.predict(prompt)) for prompt in prompts]


def _predict_all(predictor: Any, prompts: Sequence[Any]) -> list[list[float]]:
    """The predictions; NaN for a prompt that the predictor raises for."""
    try:
        return _predict(predictor, prompts)
    except Exception as error:
        if len(prompts) > 1:
            return [_predict_all(predictor, [prompt])[0] for prompt in prompts]
        print(f"lengthwise worker: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return [[math.nan] * 5]


def _say(stream: IO[str], value: object) -> None:
    with contextlib.suppress(BrokenPipeError):  # the parent has gone; so will this process
        stream.write(json.dumps(value) + "\n")
        stream.flush()


def _step_back() -> None:
    """Let the engine go first, on any core: what the engine bound itself to is inherited."""
    os.nice(_NICENESS)
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setaffinity(0, range(os.cpu_count() or 1))


if __name__ == "__main__":
    main()
