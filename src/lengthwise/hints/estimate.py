"""The expected length of a request's answer: from a predictor in this process, or from a server.

In this process questions become predictions by the artifact's tokenizer and its predictor, with one
thread for both. The thread keeps prompts from holding up an event loop, and a predictor's objects
serve one thread only. Questions of one caller are answered in small parts, so that a single prompt
never waits behind somebody's thousand, nor behind one that is as long as a thousand: that has no
prediction. It is not cut instead, since predictors read how long a prompt is.

Who asks sees an `Estimator`, whichever of the two it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import fmean as mean
from typing import Any, Final, Protocol

import aiohttp

from lengthwise.errors import InputError, LengthwiseError, one_line
from lengthwise.files import parse_json
from lengthwise.hints.question import READ, Question, read_request
from lengthwise.predict.load import load_predictor
from lengthwise.predict.prediction import Prediction, PredictionError, Prompt, SlowPredictor, cut
from lengthwise.predict.tokenizer import PromptTokenizer, load_tokenizer
from lengthwise.workload.conversation import USER, Chat, Message

PART: Final = 16  #: prompts that are predicted before the next caller has its turn
MOST_CHARACTERS: Final = 250_000  #: of such a part, and so of a prompt: a quarter of a second

_PAUSE_S: Final = 1.0  #: a server that failed is not asked again for so long
_REFUSED: Final = (400, 413)  #: statuses that say that the request is at fault
_MOST_REASON: Final = 10_000  #: bytes that are read of an error


class UnpredictableError(PredictionError):
    """A question without an answer.

    Attributes:
        place: which one of those that were asked together.
    """

    def __init__(self, place: int, reason: str) -> None:
        super().__init__(reason)
        self.place = place


class LongPromptError(UnpredictableError):
    """A prompt with more text than is tokenised for a prediction."""


class PromptEncoder:
    """Renders prompts as the served model will see them. One thread at a time."""

    def __init__(self, tokenizer: str) -> None:
        """Load the tokenizer; some seconds.

        Args:
            tokenizer: name or folder of the served model's.

        Raises:
            InputError: it cannot be loaded.
        """
        self.tokenizer: PromptTokenizer = load_tokenizer(tokenizer)

    def encode(self, questions: Sequence[Question]) -> list[Sequence[int]]:
        """Each question's token ids; those of one form are encoded together.

        Raises:
            UnpredictableError: the chat template refuses one of them.
        """
        ids: list[Sequence[int]] = [()] * len(questions)
        chats: dict[int, Chat] = {}
        texts: dict[int, str] = {}
        for place, question in enumerate(questions):
            if isinstance(question.prompt, Chat):
                refusal = self.tokenizer.refuses(question.prompt)
                if refusal is not None:
                    raise UnpredictableError(place, f"the chat template refuses it: {refusal}")
                chats[place] = question.prompt
            elif isinstance(question.prompt, str):
                texts[place] = question.prompt
            else:
                ids[place] = question.prompt
        encoded = self.tokenizer.encode_conversations(
            [[each.for_template() for each in chat.messages()] for chat in chats.values()],
            [chat.tools for chat in chats.values()],
        )
        encoded += self.tokenizer.encode_plain_many(list(texts.values()))
        for place, found in zip((*chats, *texts), encoded, strict=True):
            ids[place] = found
        return ids


class PromptPredictor:
    """Renders prompts as the served model will see them, and predicts. One thread at a time."""

    def __init__(self, spec: str, tokenizer: str | None = None) -> None:
        """Load both; some seconds.

        Args:
            spec: what `load_predictor` takes.
            tokenizer: name or folder of the served model's; None is the one that an artifact was
                trained with.

        Raises:
            InputError: one of them cannot be loaded, or they do not fit each other.
        """
        predictor = load_predictor(spec, tokenizer)
        metadata = getattr(predictor, "metadata", None)
        if tokenizer is None:
            if metadata is None:
                raise InputError(f"predictor {spec} brings no tokenizer: name one with --tokenizer")
            tokenizer = metadata.tokenizer
            predictor = load_predictor(spec, tokenizer)  # of the same vocabulary still?
        self.name = predictor.name
        self.model: str | None = getattr(metadata, "model", None)
        self._predictor = predictor
        self.encoder = PromptEncoder(tokenizer)
        self.tokenizer = tokenizer

    def warm_up(self) -> None:
        """Compile and touch what the first prediction needs."""
        asked = Message(USER, "Hello")
        for prompt in (asked.content, Chat([asked], 1)):
            with contextlib.suppress(PredictionError):  # one that goes by hints has none here
                self.predict([Question(prompt, {}, 0)])

    def predict(self, questions: Sequence[Question]) -> list[Prediction]:
        """A prediction for each question, cut where the answer will be.

        Raises:
            UnpredictableError: one of them has none.
        """
        prompts = [
            Prompt(ids, question.hints)
            for ids, question in zip(self.encoder.encode(questions), questions, strict=True)
        ]
        return [
            self.cut(prediction, question.most_tokens)
            for prediction, question in zip(self.predict_whole(prompts), questions, strict=True)
        ]

    def predict_whole(self, prompts: Sequence[Prompt]) -> list[Prediction]:
        """A prediction of each prompt's whole answer, wherever its caller may cut it.

        Raises:
            UnpredictableError: one of them has none.
        """
        predictions = self._predict_all(prompts)
        for place, prediction in enumerate(predictions):
            if not all(map(math.isfinite, prediction)):
                raise UnpredictableError(place, "the predictor has no answer to it")
        return predictions

    def cut(self, prediction: Prediction, most_tokens: int) -> Prediction:
        """A prediction of this predictor's for an answer of so many tokens at most; 0: no bound."""
        return cut(prediction, most_tokens, self._predictor)

    def _predict_all(self, prompts: Sequence[Prompt]) -> list[Prediction]:
        if isinstance(self._predictor, SlowPredictor):
            return list(self._predictor.predict_many(prompts))
        predictions = []
        for place, prompt in enumerate(prompts):
            try:
                predictions.append(self._predictor.predict(prompt))
            except PredictionError as error:
                raise UnpredictableError(place, str(error)) from None
        return predictions


class PredictorThread:
    """A `PromptPredictor` for coroutines, in a thread of its own."""

    def __init__(self, predictor: PromptPredictor) -> None:
        self.predictor = predictor
        self.waiting = 0  #: prompts that are asked for and not yet answered
        self._thread = ThreadPoolExecutor(1, "lengthwise-predict")

    async def predict(self, questions: Sequence[Question]) -> list[Prediction]:
        """As `PromptPredictor.predict`. What a cancelled caller has not had yet is left out.

        Raises:
            LongPromptError: one of them has more than `MOST_CHARACTERS`; nothing is predicted.
        """
        loop = asyncio.get_running_loop()
        predictions: list[Prediction] = []
        parts = _parts(questions)
        self.waiting += len(questions)
        try:
            for part in parts:
                start = len(predictions)
                try:
                    predictions += await loop.run_in_executor(
                        self._thread, self.predictor.predict, part
                    )
                except UnpredictableError as error:
                    raise UnpredictableError(start + error.place, str(error)) from None
        finally:
            self.waiting -= len(questions)
        return predictions

    def close(self) -> None:
        """End the thread, after the part that it is at."""
        self._thread.shutdown(cancel_futures=True)


def _parts(questions: Sequence[Question]) -> list[list[Question]]:
    """Questions in order, in parts that keep nobody else waiting for long."""
    parts: list[list[Question]] = []
    room = 0  # characters that the last part may still have
    for place, question in enumerate(questions):
        characters = question.characters
        if characters > MOST_CHARACTERS:
            raise LongPromptError(
                place,
                f"more than {MOST_CHARACTERS:,} characters are not tokenised for a prediction: "
                "send a shorter prompt, or its token ids",
            )
        if not parts or len(parts[-1]) == PART or characters > room:
            parts.append([])
            room = MOST_CHARACTERS
        parts[-1].append(question)
        room -= characters
    return parts


class Estimator(Protocol):
    """Whoever says how long an answer will be."""

    async def open(self) -> None:
        """Make ready, in the event loop that will ask.

        Raises:
            InputError: what was configured cannot be used.
        """

    async def expected(self, body: Mapping[str, Any]) -> float:
        """The expected tokens of a request's answer; the mean, where it has several prompts.

        Raises:
            InputError: the request is none that a length can be predicted of.
            LengthwiseError: there is no prediction now.
        """

    async def close(self) -> None:
        """Let go of threads and connections."""


def estimator_of(predictor: str, tokenizer: str | None) -> Estimator:
    """The estimator that a configuration names: the URL of a predict-server, or a predictor."""
    if predictor.startswith(("http://", "https://")):
        return ServerEstimator(predictor)
    return OwnEstimator(predictor, tokenizer)


class OwnEstimator:
    """A predictor in a thread of this process."""

    def __init__(self, predictor: str, tokenizer: str | None) -> None:
        self._spec, self._name = predictor, tokenizer
        self._thread: PredictorThread | None = None

    async def open(self) -> None:
        """Load the predictor and its tokenizer; some seconds."""
        loop = asyncio.get_running_loop()
        self._thread = PredictorThread(await loop.run_in_executor(None, self._load))

    def _load(self) -> PromptPredictor:
        predictor = PromptPredictor(self._spec, self._name)
        predictor.warm_up()
        return predictor

    async def expected(self, body: Mapping[str, Any]) -> float:
        """The mean over the request's prompts."""
        assert self._thread is not None, "open comes first"
        try:
            predictions = await self._thread.predict(read_request(body))
        except LongPromptError as error:  # what is at fault is the request
            raise InputError(str(error)) from None
        return mean(prediction.expected for prediction in predictions)

    async def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.close()


class ServerEstimator:
    """A predict-server, asked over kept connections."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/") + "/v1/predict"
        self._session: aiohttp.ClientSession | None = None
        self._not_before = 0.0  # s, monotonic

    async def open(self) -> None:
        """Nothing is asked yet: the server may start later."""
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=64))

    async def expected(self, body: Mapping[str, Any]) -> float:
        """The mean over the request's prompts; only what a prediction depends on is sent."""
        assert self._session is not None, "open comes first"
        if time.monotonic() < self._not_before:
            raise LengthwiseError(f"{self._url} has failed just now")
        asked = {name: body[name] for name in READ if name in body}
        try:
            async with self._session.post(self._url, json=asked) as response:
                if response.status in _REFUSED:
                    raise InputError(await _reason(response))
                response.raise_for_status()
                predictions = (await response.json())["predictions"]
                return mean(float(each["expected"]) for each in predictions)
        except asyncio.CancelledError:  # nobody waits any longer: it was too slow
            self._not_before = time.monotonic() + _PAUSE_S
            raise
        except (aiohttp.ClientError, OSError, ValueError, LookupError, TypeError) as error:
            self._not_before = time.monotonic() + _PAUSE_S
            reason = str(error) or type(error).__name__
            raise LengthwiseError(f"{self._url}: {one_line(reason)}") from None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()


async def _reason(response: aiohttp.ClientResponse) -> str:
    said = (await response.content.read(_MOST_REASON)).decode(errors="replace")
    try:
        return one_line(parse_json(said)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return f"status {response.status}"
