"""A slow predictor's worker: real processes that are killed, stopped, flooded and left behind."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lengthwise.errors import InputError
from lengthwise.predict.prediction import Prediction, PredictionError, Prompt
from lengthwise.predict.worker import MOST_TOKENS, PredictionWorker, _predict_all
from tests.support.processes import has_ended, is_gone
from tests.support.waiting import wait_until

Answers = list[tuple[str, Prediction | None]]


def collected(worker: PredictionWorker, count: int) -> Answers:
    answers: Answers = []
    wait_until(lambda: answers.extend(worker.answers(1000)) or len(answers) >= count)
    return answers


def prompt(tokens: int) -> Prompt:
    return Prompt([7] * tokens, {})


@pytest.fixture
def start() -> Iterator[Callable[..., PredictionWorker]]:
    """Starts workers of the predictor prompt-length, which needs nothing but a process."""
    workers: list[PredictionWorker] = []

    def started(**options: Any) -> PredictionWorker:
        worker = PredictionWorker("prompt-length", **options)
        workers.append(worker)
        worker.wait_ready()
        return worker

    yield started
    for worker in workers:
        worker.close(wait_s=10.0)


def stopped(worker: PredictionWorker) -> int:
    """Stop the process, as a machine does that is far too busy."""
    pid = worker.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    return pid


def test_predictions_come_back_with_their_keys(start: Callable[..., PredictionWorker]) -> None:
    worker = start()
    for tokens in range(1, 101):
        assert worker.submit(f"r{tokens}", prompt(tokens))
    answers = collected(worker, 100)
    assert {key: value and value.expected for key, value in answers} == {
        f"r{tokens}": float(tokens) for tokens in range(1, 101)
    }


def test_of_a_long_prompt_the_end_is_sent(start: Callable[..., PredictionWorker]) -> None:
    worker = start()
    worker.submit("long", prompt(3 * MOST_TOKENS))
    worker.submit("empty", prompt(0))
    answers = dict(collected(worker, 2))
    assert answers["long"] == (MOST_TOKENS,) * 5
    assert answers["empty"] == (1.0,) * 5


def test_a_killed_process_is_started_again(start: Callable[..., PredictionWorker]) -> None:
    restarts: list[float] = []
    worker = start(on_restart=lambda: restarts.append(time.monotonic()))
    first = worker.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: restarts)  # noticed without anything being asked
    assert is_gone(first)
    worker.submit("after", prompt(5))
    assert collected(worker, 1) == [("after", (5.0,) * 5)]
    assert worker.pid not in (None, first)


def test_restarts_come_ever_more_slowly(
    start: Callable[..., PredictionWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lengthwise.predict.worker._FIRST_DELAY_S", 0.05)
    restarts: list[float] = []
    worker = start(on_restart=lambda: restarts.append(time.monotonic()))
    killed = []
    for count in range(1, 5):
        wait_until(lambda: worker.pid is not None)
        killed.append(time.monotonic())
        os.kill(worker.pid or 0, signal.SIGKILL)
        wait_until(lambda count=count: len(restarts) == count)
    waits = [after - before for before, after in zip(killed, restarts, strict=True)]
    assert waits[-1] >= 0.4  # 0.05 s, doubled three times, since no answer came between


def test_a_batch_under_way_is_given_up(start: Callable[..., PredictionWorker]) -> None:
    worker = start()
    pid = stopped(worker)
    for name in ("a", "b"):
        worker.submit(name, prompt(3))
    time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    answers = collected(worker, 2)
    assert answers[0] == ("a", None)
    # The second may have waited for the new process.
    assert [key for key, _ in answers] == ["a", "b"]


def test_overload_refuses_at_once_and_serves_the_rest(
    start: Callable[..., PredictionWorker],
) -> None:
    worker = start(queue=10, batch=4)
    pid = stopped(worker)
    started = time.monotonic()
    accepted = [worker.submit(f"r{number}", prompt(3)) for number in range(2_000)]
    assert time.monotonic() - started < 5
    assert 10 <= sum(accepted) <= 20  # the queue and what was taken from it
    os.kill(pid, signal.SIGCONT)
    answers = collected(worker, sum(accepted))
    assert all(value is not None for _, value in answers)


def test_who_waits_past_the_deadline_is_given_up(start: Callable[..., PredictionWorker]) -> None:
    worker = start(batch=1, deadline_s=0.3)
    pid = stopped(worker)
    for name in ("first", "second", "third"):
        worker.submit(name, prompt(3))
    time.sleep(0.6)
    os.kill(pid, signal.SIGCONT)
    answers = dict(collected(worker, 3))
    assert answers["first"] is not None  # was handed over in time
    assert answers["second"] is None
    assert answers["third"] is None


def test_a_process_that_hangs_is_replaced(start: Callable[..., PredictionWorker]) -> None:
    restarts: list[None] = []
    worker = start(patience_s=0.3, on_restart=lambda: restarts.append(None))
    stopped(worker)
    worker.submit("lost", prompt(3))
    assert collected(worker, 1) == [("lost", None)]
    wait_until(lambda: restarts)
    worker.submit("found", prompt(4))
    assert collected(worker, 1) == [("found", (4.0,) * 5)]


def test_closing_ends_the_process_also_when_it_hangs(
    start: Callable[..., PredictionWorker],
) -> None:
    worker = start()
    pid = stopped(worker)
    started = time.monotonic()
    worker.close()
    assert time.monotonic() - started < 0.5
    wait_until(lambda: is_gone(pid))
    worker.close(wait_s=5.0)
    assert worker.pid is None


def test_a_predictor_that_cannot_be_loaded_is_one_line() -> None:
    worker = PredictionWorker("no-such-predictor")
    pid = worker.pid
    with pytest.raises(InputError) as caught:
        worker.wait_ready()
    assert "no-such-predictor" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert pid is None or is_gone(pid)


def test_the_process_ends_with_its_parent() -> None:
    code = (
        "import time\n"
        "from lengthwise.predict.worker import PredictionWorker\n"
        "worker = PredictionWorker('prompt-length')\n"
        "worker.wait_ready()\n"
        "print(worker.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert not is_gone(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: has_ended(pid))


def test_one_bad_prompt_does_not_spoil_its_batch() -> None:
    class Choosy:
        name = "choosy"

        def predict(self, prompt: Prompt) -> Prediction:
            if len(prompt.token_ids) == 2:
                raise PredictionError("not this one")
            return Prediction(*[float(len(prompt.token_ids))] * 5)

        def predict_many(self, prompts: list[Prompt]) -> list[Prediction]:
            return [self.predict(prompt) for prompt in prompts]

    values = _predict_all(Choosy(), [prompt(1), prompt(2), prompt(3)])
    assert values[0] == [1.0] * 5
    assert all(math.isnan(value) for value in values[1])
    assert values[2] == [3.0] * 5


def test_the_process_speaks_lines_of_json() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "lengthwise.predict.worker", "prompt-length"],
        input="[[1, 2, 3], []]\n",
        capture_output=True,
        text=True,
        check=True,
    )
    greeting, answer = map(json.loads, finished.stdout.splitlines())
    assert greeting == {"ready": "prompt-length"}
    assert answer == [[3.0] * 5, [1.0] * 5]
