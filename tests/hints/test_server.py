"""The predict-server as other stacks see it: a real process, real HTTP, and everything wrong."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from aiohttp.test_utils import TestClient, TestServer

from lengthwise.errors import InputError
from lengthwise.hints import estimate, service
from lengthwise.hints.estimate import MOST_CHARACTERS, PART, PromptPredictor
from lengthwise.hints.question import Question
from lengthwise.predict import Prediction, Prompt, load_predictor
from lengthwise.predict.kinds import Recipe
from lengthwise.predict.tokenizer import load_tokenizer
from lengthwise.predict.train import train
from lengthwise.workload.dataset import load_dataset
from tests.support.command_line import Run

COMMAND = [sys.executable, "-c", "from lengthwise.cli.main import main; main()", "predict-server"]
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
SECRET = "myheartisinthehighlands"


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact, for prompts whose words tell how long the answer gets."""
    folder = tmp_path_factory.mktemp("predictor")
    generator = np.random.default_rng(0)
    topics = (("name one river", 6), ("explain the tides", 60), ("write a long story", 200))
    with (folder / "table.jsonl").open("w") as file:
        for row in range(120):
            words, mean = topics[row % 3]
            answer = int(generator.integers(mean // 2, 2 * mean))
            line = {"prompt": f"{words}, number {row}", "response_tokens": answer}
            file.write(json.dumps(line) + "\n")
    learnt = load_dataset(folder / "table.jsonl")
    train(learnt, load_tokenizer("reference"), Recipe()).save(folder / "p")
    return folder / "p"


class Running(NamedTuple):
    url: str
    process: subprocess.Popen[str]
    log: Path

    def ask(self, body: Any, path: str = "/v1/predict") -> tuple[int, Any]:
        """Status and JSON of an answer; bytes are sent as they are, None by GET."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data)
        try:
            with DIRECT.open(request, timeout=60) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def predictions(self, body: Any) -> list[Prediction]:
        status, answer = self.ask(body)
        assert status == 200, answer
        assert answer["microseconds"] > 0
        return [Prediction(**each) for each in answer["predictions"]]


@pytest.fixture(scope="module")
def running(predictor: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    log = tmp_path_factory.mktemp("server") / "log"
    command = [*COMMAND, str(predictor), "--port", "0", "--json", "--megabytes", "1"]
    with (
        log.open("w") as file,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True) as process,
    ):
        assert process.stdout is not None
        try:
            yield Running(json.loads(process.stdout.readline())["url"], process, log)
        finally:
            process.kill()


def chat(*contents: str) -> list[dict[str, str]]:
    return [
        {"role": ("user", "assistant")[place % 2], "content": content}
        for place, content in enumerate(contents)
    ]


def test_each_form_is_predicted_as_the_engine_would(running: Running, predictor: Path) -> None:
    tokenizer, own = load_tokenizer("reference"), load_predictor(str(predictor))
    text = "write a long story, number 7"
    turns = chat("name one river", "The Rhine.", text)
    expected = {
        "text": own.predict(Prompt(tokenizer.encode_plain(text), {})),
        "chat": own.predict(Prompt(tokenizer.encode_chat(text), {})),
        "turns": own.predict(Prompt(tokenizer.encode_conversations([turns])[0], {})),
        "tenant": own.predict(Prompt(tokenizer.encode_plain(text), {"lengthwise_tenant": "a"})),
    }
    ids = tokenizer.encode_plain(text)
    parts = [{"type": "text", "text": text}]
    assert running.predictions({"prompt": text, "model": "any"}) == [expected["text"]]
    assert running.predictions({"prompt": ids}) == [expected["text"]]
    assert running.predictions({"prompt": [text, text]}) == [expected["text"]] * 2
    assert running.predictions({"prompt": [ids, ids[:1]]})[0] == expected["text"]
    assert running.predictions({"messages": chat(text)}) == [expected["chat"]]
    assert running.predictions({"messages": [{"role": "user", "content": parts}]}) == [
        expected["chat"]
    ]
    assert running.predictions({"messages": turns}) == [expected["turns"]]
    tenant = {"prompt": text, "vllm_xargs": {"lengthwise_tenant": "a"}}
    assert running.predictions(tenant) == [expected["tenant"]]


def test_many_prompts_of_all_forms_keep_their_order(running: Running) -> None:
    forms: list[dict[str, Any]] = [
        {"prompt": "name one river"},
        {"messages": chat("write a long story")},
        {"prompt": [5, 6, 7]},
        {"prompt": ["explain the tides", "name one river, number 3"]},
    ]
    each = [prediction for form in forms for prediction in running.predictions(form)]
    many = forms * (2 * PART)
    assert running.predictions({"requests": many}) == each * (2 * PART)


def test_a_prediction_ends_where_the_answer_is_cut(running: Running) -> None:
    body = {"prompt": "write a long story, number 7"}
    (whole,) = running.predictions(body)
    for name in ("max_tokens", "max_completion_tokens"):
        (short,) = running.predictions({**body, name: 9})
        assert max(short[1:]) == 9 < whole.expected
        assert short.score < whole.score
    assert running.predictions({**body, "max_tokens": 9, "ignore_eos": True}) == [whole]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "no JSON"),
        (b'{"prompt": "\xff"}', "no JSON"),
        (b"[" * 100_000, "no JSON"),
        ([], "JSON object"),
        ({}, "either messages or a prompt"),
        ({"prompt": "a", "messages": chat("a")}, "either messages or a prompt"),
        ({"prompt": []}, "prompt must be text"),
        ({"prompt": 3}, "prompt must be text"),
        ({"prompt": ["a", 3]}, "prompt must be text"),
        ({"prompt": [1, True]}, "must hold integers"),
        ({"prompt": [[1], []]}, "at least one"),
        ({"prompt": [-1]}, "from 0 to"),
        ({"prompt": [2**31]}, "from 0 to"),
        (b'{"prompt": "\\ud800"}', "surrogate"),
        ({"messages": []}, "there are none"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "'wizard'"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "max_tokens": "many"}, "max_tokens"),
        ({"prompt": "a", "vllm_xargs": [1]}, "vllm_xargs"),
        ({"requests": []}, "at least one"),
        ({"requests": [{"prompt": "a"}, "b"]}, "requests[1]: it must be an object"),
        ({"requests": [{"prompt": "a"}, {"prompt": [-1]}]}, "requests[1]: prompt: token ids"),
        ({"prompt": ["a"] * 5000}, "several requests"),
        ({"prompt": [[1]] * 5000}, "several requests"),
        ({"requests": [{"prompt": "a"}] * 5000}, "several requests"),
        ({"messages": chat("a") * 9000}, "messages: more than 8,192"),
        ({"messages": json.dumps(chat("a"))}, "messages must be a list"),
    ],
)
def test_bad_input_is_one_reason(running: Running, body: Any, words: str) -> None:
    status, answer = running.ask(body)
    assert status == 400
    assert words in answer["error"]["message"]
    assert "\n" not in answer["error"]["message"]
    assert answer["error"]["code"] == 400


def test_a_prompt_that_would_keep_everybody_waiting_is_refused(running: Running) -> None:
    long, most = "x" * (MOST_CHARACTERS + 1), "river " * (MOST_CHARACTERS // 6)
    tool = {"type": "function", "function": {"name": "f", "description": long}}
    for body in (
        {"prompt": ["a", long]},
        {"messages": chat("a"), "tools": [tool]},
        {"messages": chat(long[: MOST_CHARACTERS // 2], "a", long[MOST_CHARACTERS // 2 :])},
    ):
        status, answer = running.ask(body)
        assert status == 400
        assert "250,000 characters" in answer["error"]["message"]
    assert "prompt 1: " in running.ask({"prompt": ["a", long]})[1]["error"]["message"]
    short, *others = running.predictions({"prompt": ["a", most, most, "a"]})
    assert others[-1] == short != others[0]
    assert running.predictions({"prompt": [5] * 200_000})


def test_a_part_is_small_by_its_prompts_and_by_their_text() -> None:
    def parts(*sizes: int) -> list[list[int]]:
        questions = [Question("x" * size, {}, 0) for size in sizes]
        return [[each.characters for each in part] for part in estimate._parts(questions)]

    assert parts() == []
    assert parts(*[1] * (PART + 1)) == [[1] * PART, [1]]
    half = MOST_CHARACTERS // 2
    assert parts(half, half, 1, half, half) == [[half, half], [1, half], [half]]


def test_nothing_is_predicted_for_clients_that_have_gone(running: Running) -> None:
    def value(name: str) -> float:
        with DIRECT.open(running.url + "/metrics", timeout=60) as response:
            page = response.read().decode()
        return float(page.split(f"\n{name} ")[1].split()[0])

    prompts = "lengthwise_predict_prompts_total"
    before = value(prompts)
    data = json.dumps({"prompt": ["a b c"] * 4096}).encode()
    head = f"POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-Length: {len(data)}\r\n\r\n"
    for _ in range(3):  # and there is still room for another
        with socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2]))) as gone:
            gone.sendall(head.encode() + data)
    running.predictions({"prompt": "a"})
    while value("lengthwise_predict_waiting_prompts"):
        time.sleep(0.01)
    assert value(prompts) == before + 1


def test_a_body_may_be_too_large_and_a_path_wrong(running: Running) -> None:
    status, answer = running.ask({"prompt": "x" * 1_000_001})
    assert status == 413
    assert "1,000,000 bytes" in answer["error"]["message"]
    status, answer = running.ask(None, "/v1/models")
    assert status == 404
    assert "POST /v1/predict" in answer["error"]["message"]
    assert running.ask(None)[0] == 405


def test_health_says_what_answers_and_metrics_how_often(running: Running) -> None:
    def values() -> dict[str, float]:
        with DIRECT.open(running.url + "/metrics", timeout=60) as response:
            lines = response.read().decode().splitlines()
        return {
            name: float(value)
            for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")
        }

    status, health = running.ask(None, "/health")
    assert (status, health["status"], health["tokenizer"]) == (200, "ok", "reference")
    before = values()
    running.predictions({"prompt": ["a", "b", "c"]})
    running.ask({})
    after = values()
    for name, added in {
        "lengthwise_predict_prompts_total": 3,
        'lengthwise_predict_requests_total{status="200"}': 1,
        "lengthwise_predict_seconds_count": 1,
        "lengthwise_predict_waiting_prompts": 0,
    }.items():
        assert after[name] - before[name] == added, name
    assert after['lengthwise_predict_requests_total{status="400"}'] > 0


def test_prompts_are_never_logged_and_the_end_is_polite(running: Running) -> None:
    running.predictions({"prompt": SECRET})
    running.ask({"prompt": [SECRET, 3]})
    running.ask(json.dumps({"prompt": SECRET}).encode()[:-1])
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(timeout=30) == 0
    log = running.log.read_text()
    assert SECRET not in log
    assert "ready at http://127.0.0.1:" in log
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no/such"], "no/such"),
        (["prompt-length"], "--tokenizer"),
        (["prompt-length", "--tokenizer", "/nowhere"], "/nowhere"),
        (["prompt-length", "--tokenizer", "reference", "--port", "{taken}"], "--port"),
        (["prompt-length", "--host", "no.such.host.invalid"], "--host"),
        (["prompt-length", "--host", "a..b"], "--host a..b: no name of a host"),
    ],
)
def test_what_cannot_start_says_why(run: Run, arguments: list[str], words: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        filled = [each.replace("{taken}", str(taken.getsockname()[1])) for each in arguments]
        ended = run("predict-server", *filled)
    assert (ended.code, ended.out) == (2, "")
    (line,) = ended.err.strip().splitlines()
    assert line.startswith("lengthwise: ")
    assert words in line


def test_an_artifact_for_another_vocabulary_is_refused(predictor: Path, tmp_path: Path) -> None:
    config = json.loads((predictor / "config.json").read_text())
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((predictor / name).read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tokenizer_fingerprint": "0"}))
    with pytest.raises(InputError, match="another vocabulary"):
        PromptPredictor(str(tmp_path))


class Careless:
    """A predictor that raises with what it was given, as others' code may."""

    name = "careless"

    def predict(self, prompt: Prompt) -> Prediction:
        raise RuntimeError(f"cannot read {prompt.hints}")


async def post(predictor: PromptPredictor, body: Any) -> tuple[int, Any, str | None]:
    app = service.make_app(predictor, 1_000_000)
    async with TestClient(TestServer(app)) as client:
        response = await client.post("/v1/predict", json=body)
        return response.status, await response.json(), response.headers.get("Retry-After")


def test_a_defect_is_an_error_without_the_prompt(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    predictor = PromptPredictor("prompt-length", "reference")
    monkeypatch.setattr(predictor, "_predictor", Careless())
    body = {"prompt": SECRET, "vllm_xargs": {"note": SECRET}}
    with caplog.at_level(logging.DEBUG):
        status, answer, _ = asyncio.run(post(predictor, body))
    assert status == 500
    assert "RuntimeError" in answer["error"]["message"]
    assert "RuntimeError" in caplog.text
    assert Path(__file__).name in caplog.text
    assert SECRET not in caplog.text + json.dumps(answer)


def test_a_predictor_without_an_answer_says_which_prompt(tmp_path: Path) -> None:
    predictor = PromptPredictor("declared", "reference")
    said = {"prompt": "a", "vllm_xargs": {"lengthwise_expected_tokens": 5}}
    many = [said] * (PART + 3)
    status, answer, _ = asyncio.run(post(predictor, {"requests": [*many, {"prompt": "b"}, said]}))
    assert status == 400
    assert f"prompt {PART + 3}: " in answer["error"]["message"]
    assert "lengthwise_expected_tokens" in answer["error"]["message"]


def test_too_many_waiting_prompts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MOST_WAITING", 2)
    predictor = PromptPredictor("prompt-length", "reference")
    status, answer, after = asyncio.run(post(predictor, {"prompt": ["a", "b", "c"]}))
    assert (status, after) == (503, "1")
    assert "come again" in answer["error"]["message"]
    assert asyncio.run(post(predictor, {"prompt": ["a", "b"]}))[0] == 200
