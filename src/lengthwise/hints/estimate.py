"""The expected length of a request's answer: from a predictor in this process, or from a server."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from statistics import fmean as mean
from typing import Any, Final, Protocol

import aiohttp

from lengthwise.errors import InputError, LengthwiseError, one_line
from lengthwise.hints.prediction_thread import PredictorThread, PromptPredictor
from lengthwise.hints.question import READ, read_request

_PAUSE_S: Final = 1.0  #: a server that failed is not asked again for so long
_REFUSED: Final = (400, 413)  #: statuses that say that the request is at fault
_MOST_REASON: Final = 10_000  #: bytes that are read of an error


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
        predictions = await self._thread.predict(read_request(body))
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
        return one_line(json.loads(said)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return f"status {response.status}"
