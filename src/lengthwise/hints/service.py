"""Predictions over HTTP: `/v1/predict`, `/health` and `/metrics`.

What a prompt says is never logged; a request that cannot be answered is one JSON error in OpenAI's
form, and one count.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from lengthwise.errors import InputError
from lengthwise.hints.counts import ServerMetrics
from lengthwise.hints.prediction_thread import PredictorThread, PromptPredictor, UnpredictableError
from lengthwise.hints.question import read_body
from lengthwise.hints.refusal import error_response, place_of

logger = logging.getLogger("lengthwise.hints")

MOST_WAITING: Final = 16_384  #: prompts that are asked for and not yet answered; more are refused
_RETRY_AFTER_S: Final = 1

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(predictor: PromptPredictor, most_bytes: int) -> web.Application:
    """The service.

    Args:
        predictor: what answers; warmed up.
        most_bytes: of a request's body.
    """
    service = _Service(PredictorThread(predictor), ServerMetrics(), most_bytes)
    app = web.Application(client_max_size=most_bytes, middlewares=[service.errors])
    app.router.add_post("/v1/predict", service.predict)
    app.router.add_get("/health", service.health)
    app.router.add_get("/metrics", service.scrape)

    async def close(_: web.Application) -> None:
        service.thread.close()

    app.on_cleanup.append(close)
    return app


@dataclass(frozen=True)
class _Service:
    thread: PredictorThread
    metrics: ServerMetrics
    most_bytes: int

    async def predict(self, request: web.Request) -> web.Response:
        """POST /v1/predict."""
        started = time.perf_counter()
        try:
            body = json.loads(await request.read())
        except (ValueError, RecursionError) as error:
            raise InputError(f"the body is no JSON: {_without_content(error)}") from None
        questions = read_body(body)
        if self.thread.waiting + len(questions) > MOST_WAITING:
            return error_response(
                503, f"{self.thread.waiting:,} prompts are waiting: come again", _RETRY_AFTER_S
            )
        try:
            predictions = await self.thread.predict(questions)
        except UnpredictableError as error:
            which = f"prompt {error.place}: " if len(questions) > 1 else ""
            raise InputError(f"{which}{error}") from None
        seconds = time.perf_counter() - started
        self.metrics.answered(len(predictions), seconds)
        return web.json_response(
            {
                "predictor": self.thread.predictor.name,
                "predictions": [prediction._asdict() for prediction in predictions],
                "microseconds": round(seconds * 1e6),
            }
        )

    async def health(self, _: web.Request) -> web.Response:
        """GET /health."""
        predictor = self.thread.predictor
        return web.json_response(
            {
                "status": "ok",
                "predictor": predictor.name,
                "model": predictor.model,
                "tokenizer": predictor.tokenizer,
            }
        )

    async def scrape(self, _: web.Request) -> web.Response:
        """GET /metrics."""
        self.metrics.waiting.set(self.thread.waiting)
        text = generate_latest(self.metrics.registry)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    @property
    def errors(self) -> Any:
        """The middleware that turns whatever goes wrong into one JSON error."""

        @web.middleware
        async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
            response = await self._answer(request, handler)
            if request.path == "/v1/predict":
                self.metrics.requests.labels(str(response.status)).inc()
            return response

        return errors

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except InputError as error:
            return error_response(400, str(error))
        except web.HTTPRequestEntityTooLarge:
            return error_response(413, f"the body has more than {self.most_bytes:,} bytes")
        except web.HTTPException as error:
            known = "POST /v1/predict, GET /health and GET /metrics"
            return error_response(error.status, f"{error.reason}: there are {known}")
        except Exception as error:  # a defect of ours: the caller is told, and no prompt is logged
            logger.error(
                "Lengthwise: a request failed: %s %s", type(error).__name__, place_of(error)
            )
            return error_response(500, f"the predictor failed: {type(error).__name__}")


def _without_content(error: Exception) -> str:
    """Why JSON cannot be read, and nothing of what it says."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos}"
    return "too deep, or no UTF-8, or a number too long"
