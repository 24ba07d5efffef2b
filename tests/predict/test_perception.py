"""Asking the model how long its answer will be, against a server of a few lines."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from lengthwise.errors import InputError
from lengthwise.predict import PredictionError, Prompt, load_predictor
from lengthwise.predict.tokenizer import load_tokenizer

REFERENCE = load_tokenizer("reference")


class Model(ThreadingHTTPServer):
    """Says `answer` to whatever it is asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer: str | None = ""
        self.asked: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Model

    def do_GET(self) -> None:
        self._say({"data": [{"id": "a-model"}]} if self.path == "/v1/models" else {})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(json.loads(body))
        if self.server.answer is None:
            self.send_error(500)
        else:
            self._say({"choices": [{"text": self.server.answer}]})

    def _say(self, value: object) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def model() -> Iterator[Model]:
    server = Model()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def ask(model: Model, said: str | None) -> Any:
    model.answer = said
    predictor = load_predictor(f"perception-only:{model.url}", tokenizer="reference")
    return predictor.predict(Prompt(REFERENCE.encode_chat("Name 7 cities."), {}))


@pytest.mark.parametrize(
    ("said", "tokens"),
    [
        ("About 42 tokens. Or 50.", 42),
        ("I have no idea.", 0),
        ("", 0),
        ("1e9", 1),
        ("9" * 400, 1_000_000),
    ],
)
def test_the_first_whole_number_counts(model: Model, said: str, tokens: float) -> None:
    prediction = ask(model, said)
    assert prediction.score == tokens
    assert prediction.expected == max(1, tokens)


def test_the_question_comes_first_and_the_template_once(model: Model) -> None:
    ask(model, "5")
    (body,) = model.asked
    assert body["model"] == "a-model"
    assert body["max_tokens"] == 100
    backend = REFERENCE._backend
    text = backend.decode(body["prompt"])
    template = backend.decode(REFERENCE.encode_chat("X"))
    before, after = template.split("X")
    assert text.startswith(before)
    assert text.endswith("Name 7 cities." + after)
    assert text.count("Name 7 cities.") == 1
    assert "How many tokens" in text
    assert text.count(before.strip() or before) == 1


def test_a_server_that_fails_leaves_a_prompt_unpredicted(model: Model) -> None:
    with pytest.raises(PredictionError):
        ask(model, None)


@pytest.mark.parametrize("address", ["", "127.0.0.1:8000", "http://127.0.0.1:9/v1"])
def test_no_server_is_one_line(address: str) -> None:
    with pytest.raises(InputError) as caught:
        load_predictor(f"perception-only:{address}")
    assert "\n" not in str(caught.value)
