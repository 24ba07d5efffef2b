"""What a predictor sees and what it answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, NoReturn, Protocol, runtime_checkable

from lengthwise.errors import LengthwiseError

MOST_TOKENS: Final = float(2**31 - 1)  #: that any answer can have: ages are 32-bit integers

# Names of hints. Those that one predictor alone reads are beside it.
REQUEST_ID: Final = "lengthwise_id"  #: the request's name in a replay
TENANT: Final = "lengthwise_tenant"  #: who sends the request
TTFT_DEADLINE_MS: Final = "lengthwise_ttft_deadline_ms"  #: when its first token is due
LORA: Final = "lengthwise_lora"  #: the name of the adapter that it is sent to
FACTS: Final = "lengthwise_facts"  #: its `Facts`, what it says beside its prompt


class Prompt(NamedTuple):
    """All of a request that a predictor may look at.

    `max_tokens` is among the `FACTS` of its hints, but never with `ignore_eos`: when a trace is
    replayed it equals the true length.
    """

    token_ids: Sequence[int]  #: the prompt in the served model's tokens, chat template applied
    #: what the caller sent along (`vllm_xargs` over HTTP), with `FACTS` and `LORA`; {} if none
    hints: Mapping[str, object]


def deadline_ms(said: object) -> float | None:
    """Milliseconds to a first token, of a hint or a header; None where it names no time."""
    try:
        # Values in vllm_xargs may be text.
        milliseconds = float(said) if isinstance(said, int | float | str) else 0.0
    except (ValueError, OverflowError):
        return None
    return milliseconds if 0.0 < milliseconds < math.inf else None


class EmbeddedPrompt(Sequence[int]):
    """The `token_ids` of a prompt that came as embeddings: so many positions, and no tokens.

    A predictor that reads tokens has no answer to it; one that goes by hints or by length has.
    """

    def __init__(self, positions: int) -> None:
        self._positions = positions

    def __len__(self) -> int:
        return self._positions

    def __getitem__(self, index: object) -> NoReturn:
        raise PredictionError("the prompt came as embeddings, which have no tokens to read")


class Prediction(NamedTuple):
    """How long the answer will be. All in output tokens, except `score`."""

    score: float  #: orders requests: smaller means shorter; no unit
    expected: float  #: mean of the total length
    low: float  #: 10 % quantile of the total length
    median: float  #: 50 % quantile
    high: float  #: 90 % quantile


class Predictor(Protocol):
    """Anything that turns a prompt into a prediction."""

    @property
    def name(self) -> str:
        """Short name for tables and logs."""

    def predict(self, prompt: Prompt) -> Prediction:
        """Predict the length of the answer to one prompt.

        Raises:
            PredictionError: this prompt cannot be predicted, for example because a hint is missing.
                Callers go on without a prediction; they do the same when a field is NaN.
        """


@runtime_checkable
class ScaledPredictor(Predictor, Protocol):
    """A predictor that can say which score belongs to a length.

    Scores of two predictors cannot be compared, nor a score with a length; with this, a length
    known from elsewhere (another predictor's word, a caller's `max_tokens`) ranks among them.
    """

    def score_at(self, expected: float) -> float:
        """The score of prompts that are expected to take so many tokens."""


@runtime_checkable
class SlowPredictor(ScaledPredictor, Protocol):
    """A predictor that takes longer than a step of the engine may wait.

    Serving asks it in a process of its own, see `worker.PredictionWorker`, with the prompts' tokens
    alone. Making one must be quick, since the engine's process makes one too: what takes time or
    memory is loaded for the first prediction.
    """

    def predict_many(self, prompts: Sequence[Prompt]) -> Sequence[Prediction]:
        """The predictions of several prompts, computed together."""


def cut(prediction: Prediction, most_tokens: int, predictor: Predictor | None) -> Prediction:
    """A prediction of an answer that its caller lets have so many tokens at most.

    Args:
        prediction: of the whole answer.
        most_tokens: where the answer is cut; 0: nowhere.
        predictor: who made it, and may know the score of a length.
    """
    if not most_tokens or prediction.high <= most_tokens:
        return prediction
    lengths = [min(length, float(most_tokens)) for length in prediction[1:]]
    score = prediction.score
    if prediction.expected > most_tokens and isinstance(predictor, ScaledPredictor):
        score = min(score, predictor.score_at(float(most_tokens)))
    return Prediction(score, *lengths)


def usable(prediction: Prediction) -> bool:
    """Whether every number is finite and every length positive and one that an answer can have."""
    try:
        lengths = prediction[1:]
        return bool(
            all(map(math.isfinite, prediction))
            and 0.0 < min(lengths) <= max(lengths) <= MOST_TOKENS
        )
    except (TypeError, ValueError, OverflowError):  # not even numbers
        return False


class PredictionError(LengthwiseError):
    """One prompt for which a predictor has no answer."""
