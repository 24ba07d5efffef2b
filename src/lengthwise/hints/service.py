"""Predictions over HTTP: `/v1/predict`, `/health` and `/metrics`.

What the service and the middleware count is for Prometheus. What a service of ours cannot do is
said in OpenAI's form.

What a prompt says is never logged; a request that cannot be answered is one JSON error in that
form, and one count.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from aiohttp import web
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from lengthwise.errors import InputError
from lengthwise.files import parse_json
from lengthwise.hints.estimate import PredictorThread, PromptPredictor, UnpredictableError
from lengthwise.hints.question import read_body

logger = logging.getLogger("lengthwise.hints")

MOST_WAITING: Final = 16_384  #: prompts that are asked for and not yet answered; more are refused
_RETRY_AFTER_S: Final = 1
#: seconds: the bar for a single prompt is 5 ms
_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

#: what became of a request that passed the middleware, label `outcome`
OUTCOMES: Final = {
    "written": "a prediction was written into it",
    "declared": "it named a length itself, which was written where it was missing",
    "kept": "all that would be written was there already, and agreed",
    "contradictory": "its own hints name different lengths: they were kept",
    "unreadable": "no length can be predicted of what its body says, or its prompt has more than "
    "250,000 characters: passed on without one",
    "too_large": "its body is larger than is read: passed on unchanged",
    "late": "the prediction took too long: passed on without one",
    "failed": "the predictor or its server failed: passed on without one",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ServerMetrics:
    """Of `lengthwise predict-server`, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "lengthwise_predict_requests",
            "Requests to /v1/predict by the status of their answer",
            ["status"],
            registry=self.registry,
        )
        self.prompts = Counter(
            "lengthwise_predict_prompts", "Prompts predicted", registry=self.registry
        )
        self.seconds = Histogram(
            "lengthwise_predict_seconds",
            "From a request's body to its answer, of those that were predicted",
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.waiting = Gauge(
            "lengthwise_predict_waiting_prompts",
            "Prompts asked for and not yet answered",
            registry=self.registry,
        )

    def answered(self, prompts: int, seconds: float) -> None:
        """One request whose prompts were all predicted."""
        self.prompts.inc(prompts)
        self.seconds.observe(seconds)


@cache
def hint_requests() -> Counter:
    """The middleware's counter, in the registry of the process that it is in.

    That is the one that vLLM's, LiteLLM's and most gateways' own `/metrics` serves.
    """
    counter = Counter(
        "lengthwise_hint_requests",
        "Requests that passed the middleware by what became of their hints",
        ["outcome"],
        registry=REGISTRY,
    )
    for outcome in OUTCOMES:
        counter.labels(outcome)  # there from the start, so that a first failure is a rise from 0
    return counter


def error_body(status: int, reason: str) -> dict[str, Any]:
    """The JSON of an error, as OpenAI's API and vLLM's server have it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": reason, "type": kind, "param": None, "code": status}}


def error_response(status: int, reason: str, retry_after_s: int | None = None) -> web.Response:
    """An error as an answer, with `Retry-After` where it is worth while to come again."""
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return web.json_response(error_body(status, reason), status=status, headers=headers)


def place_of(error: Exception) -> str:
    """Where an exception came from, without its message, which may quote a prompt."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    return f"at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"


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
            body = parse_json(await request.read())
        except ValueError as error:
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
