"""A slow predictor in a process of its own, seen from the process that must not wait for it.

    worker = PredictionWorker("build/encoder")
    worker.wait_ready()
    worker.submit("request-1", prompt)        # at once; False where the queue is full
    worker.answers(64)                        # whatever has come since

Prompts go out in batches, one at a time, through a pipe. A prompt that waits longer than the
deadline is given up, and so is a batch whose process ends or does not answer. The process is then
started again, with back-off. Overload thus costs predictions, and never a request.

The process is `python -m lengthwise.predict.worker PREDICTOR`: batches of prompts in, predictions
out, a line each. The first line it writes is `{"ready": NAME}`, or `{"error": REASON}` if the
predictor cannot be loaded. It then reads lists of prompts (lists of token ids) and answers each
with a list of predictions. It ends with its input, which closes when the parent ends, however that
ends.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import IO, Any, Final, NamedTuple

from lengthwise.errors import InputError, LengthwiseError
from lengthwise.predict.load import load_predictor
from lengthwise.predict.prediction import Prediction, Prompt
from lengthwise.processes import BackOff

# vLLM shows what is logged below its own name, and nothing else.
logger = logging.getLogger("vllm.lengthwise")

QUEUE: Final = 1024  #: prompts that may wait
BATCH: Final = 32  #: prompts of one batch: long ones on a CPU still take about a second
DEADLINE_S: Final = 30.0  #: after so long in the queue a prompt is given up
MOST_TOKENS: Final = 8192  #: sent of a prompt, its end: backbones read about 2,048 of theirs

_START_PATIENCE_S: Final = 100.0
_BATCH_PATIENCE_S: Final = 60.0  #: a process that takes longer hangs
_FIRST_DELAY_S: Final = 0.5
_LONGEST_DELAY_S: Final = 60.0
_LOOK_S: Final = 0.25  #: how often an idle process is looked at
_NICENESS: Final = 10  #: of the process

#: One core, since the engine wants them all; and no warnings of threads that never were.
_ENVIRONMENT: Final = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class _Asked(NamedTuple):
    """One prompt that waits."""

    key: str
    token_ids: Sequence[int]
    since: float  #: s, monotonic


class PredictionWorker:
    """Hands prompts to a process that predicts, and hands its answers back.

    `submit` and `answers` never block and may be called from one thread; a thread of the worker's
    own does everything else.

    Attributes:
        spec: what `load_predictor` loads there.
    """

    def __init__(
        self,
        spec: str,
        *,
        on_restart: Callable[[], None] = lambda: None,
        queue: int = QUEUE,
        batch: int = BATCH,
        deadline_s: float = DEADLINE_S,
        patience_s: float = _BATCH_PATIENCE_S,
    ) -> None:
        """Start the process.

        Args:
            spec: what `load_predictor` takes.
            on_restart: called, in the worker's thread, each time that the process is started again.
            queue: prompts that may wait; more are refused.
            batch: prompts of one batch.
            deadline_s: after so many seconds in the queue a prompt is given up.
            patience_s: a process that takes longer for one batch is ended and started again.
        """
        self.spec = spec
        self._on_restart = on_restart
        self._most_waiting, self._batch = queue, batch
        self._deadline_s, self._patience_s = deadline_s, patience_s
        self._asked: SimpleQueue[_Asked] = SimpleQueue()
        self._answers: deque[tuple[str, Prediction | None]] = deque()
        self._closed = threading.Event()
        self._started = threading.Event()  # the first start has succeeded or failed
        self._failure: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="lengthwise-worker", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """The process that predicts, None between two."""
        process = self._process
        return None if process is None else process.pid

    def wait_ready(self, timeout_s: float = _START_PATIENCE_S) -> None:
        """Wait until the process has loaded its predictor for the first time.

        Raises:
            InputError: it could not, or took too long; the worker is then closed.
        """
        if not self._started.wait(timeout_s):
            self._failure = f"no answer within {timeout_s:.0f} s"
        if self._failure is not None:
            self.close()
            raise InputError(f"the worker of predictor {self.spec} did not start: {self._failure}")

    def submit(self, key: str, prompt: Prompt) -> bool:
        """Ask for a prediction.

        Args:
            key: comes back with the answer.
            prompt: its tokens alone are passed on, the last 8,192.

        Returns:
            Whether there was room in the queue.
        """
        if self._asked.qsize() >= self._most_waiting:
            return False
        self._asked.put(_Asked(key, prompt.token_ids[-MOST_TOKENS:], time.monotonic()))
        return True

    def answers(self, most: int) -> Iterator[tuple[str, Prediction | None]]:
        """What has come since the last call, up to `most`: keys with their predictions.

        None stands for a prediction that was given up. Numbers are passed on as they came.
        """
        for _ in range(most):
            try:
                yield self._answers.popleft()
            except IndexError:
                return

    def close(self, wait_s: float = 0.0) -> None:
        """End the process. May be called twice.

        Args:
            wait_s: how long to wait until it is gone; it goes all the same.
        """
        self._closed.set()
        if self._process is not None:
            self._process.kill()
        if wait_s:
            self._thread.join(wait_s)

    # In the worker's thread -----------------------------------------------------------------

    def _run(self) -> None:
        delays = BackOff(_FIRST_DELAY_S, _LONGEST_DELAY_S)
        while not self._closed.is_set():
            answered, reason = self._live_once()
            if not self._started.is_set():
                self._failure = reason
                break
            if self._closed.is_set():
                break
            if answered:
                delays.reset()
            delay_s = delays.next_s()
            logger.warning(
                "Lengthwise: the predictor's worker ended (%s), starting it again in %.1f s",
                reason,
                delay_s,
            )
            self._closed.wait(delay_s)
            if not self._closed.is_set():
                self._on_restart()
        self._started.set()

    def _live_once(self) -> tuple[bool, str]:
        """Start the process and serve until it ends.

        Returns:
            whether it answered anything, and why it ended.
        """
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "lengthwise.predict.worker", self.spec],
                env={**os.environ, **_ENVIRONMENT},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        except OSError as error:
            return False, str(error)
        self._process = process
        try:
            # `close` may have looked for a process just before there was one.
            return (False, "closed") if self._closed.is_set() else self._serve(process)
        finally:
            self._process = None
            _end(process)

    def _serve(self, process: subprocess.Popen[bytes]) -> tuple[bool, str]:
        """Pass batches on until the process ends; returns what `_live_once` does."""
        assert process.stdout is not None
        with _killed_after(process, _START_PATIENCE_S):
            greeting = _read(process.stdout)
        if not isinstance(greeting, dict) or "ready" not in greeting:
            said = greeting.get("error") if isinstance(greeting, dict) else None
            return False, said or f"status {process.wait()}"
        self._started.set()
        answered = False
        while process.poll() is None and not self._closed.is_set():
            batch = self._next_batch()
            if not batch:
                continue
            with _killed_after(process, self._patience_s):
                values = _ask(process, [asked.token_ids for asked in batch])
            if values is None:
                self._give_up(batch)
                break
            self._answers.extend(
                (asked.key, Prediction(*row)) for asked, row in zip(batch, values, strict=True)
            )
            answered = True
        process.kill()
        return answered, f"status {process.wait()}"

    def _next_batch(self) -> list[_Asked]:
        """What waits and is not too old; empty when nothing came for a while."""
        batch: list[_Asked] = []
        with contextlib.suppress(Empty):
            asked = self._asked.get(timeout=_LOOK_S)
            while True:
                if time.monotonic() - asked.since > self._deadline_s:
                    self._give_up([asked])
                else:
                    batch.append(asked)
                if len(batch) == self._batch:
                    break
                asked = self._asked.get_nowait()
        return batch

    def _give_up(self, batch: Sequence[_Asked]) -> None:
        self._answers.extend((asked.key, None) for asked in batch)


def _ask(
    process: subprocess.Popen[bytes], prompts: Sequence[Sequence[int]]
) -> list[list[float]] | None:
    """One batch there and back; None where the process ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    # One prompt at a time: the engine's thread cannot run while a list is written out.
    line = b",".join(json.dumps(list(token_ids)).encode() for token_ids in prompts)
    try:
        process.stdin.write(b"[" + line + b"]\n")
        process.stdin.flush()
    except OSError:
        return None
    values = _read(process.stdout)
    return values if isinstance(values, list) else None


def _read(stream: IO[bytes]) -> object:
    """The next line's value; None where there is none, or only a part."""
    try:
        return json.loads(stream.readline())
    except ValueError:
        return None


@contextlib.contextmanager
def _killed_after(process: subprocess.Popen[bytes], seconds: float) -> Iterator[None]:
    """Kill the process if the block takes longer, which ends any wait for it."""
    timer = threading.Timer(seconds, process.kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process if it runs, and leave neither a zombie nor an open pipe behind."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # unsent bytes to a process that is gone
            if pipe is not None:
                pipe.close()


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
