"""Retraining and swapping predictors beside a server that is at work, on the real engine.

    python bench/learning.py --json

vLLM's CPU build serves the built-in model at 0.8 of its capacity under `ltr`. In `learning` rounds
a process as `serve --learn` starts it (idle priority, one thread) trains a predictor on 10,000
answers and places it in the settings file, which the scheduler takes up; then it rests until 1,000
more requests have come, as a learner does (`--every 0`: it never rests). In `quiet` rounds there is
none. Both serve the same requests at the same times, in turn: A B B A. `learning_over_quiet` pairs
neighbours, so that drift cancels.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.spread import paired, spread
from lengthwise.cli.output import ConsoleProgress
from lengthwise.compare.client import ReplayRequest
from lengthwise.compare.engine_log import ROUNDS_FOLDER, SERVER_FOLDER, STEPS_FILE
from lengthwise.compare.session import Observed, Session, open_session
from lengthwise.compare.specs import Offer
from lengthwise.errors import LengthwiseError
from lengthwise.learn.learner import place_predictor, read_predictor
from lengthwise.learn.process import step_back
from lengthwise.predict.kinds import Recipe
from lengthwise.predict.tokenizer import load_tokenizer
from lengthwise.predict.train import train
from lengthwise.reference.corpus import exchanges
from lengthwise.serve.command import REFERENCE
from lengthwise.settings import Settings
from lengthwise.workload.arrivals import poisson
from lengthwise.workload.dataset import Dataset

SLOTS = 16
TAUGHT = 10_000  # answers that each predictor learns from
LEARNT = 1_000_003  # the seed of these answers, which no round is given
WARM_UP = 320  # requests at once, to learn the capacity
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")

FIGURES = ("p50_step_ms", "p99_step_ms", "mean_e2el_ms", "p99_e2el_ms", "placed", "failed")


def made_up_answers(count: int, seed: int) -> Dataset:
    """Prompts of the built-in model with the lengths of its corpus' answers, in words."""
    known = list(exchanges(count, seed))
    return Dataset(
        name="made-up answers",
        prompts=[each.prompt.text for each in known],
        lengths=np.array([1 + len(each.answer.split()) for each in known], dtype=np.int64),
        samples=None,
        rows=np.arange(1, count + 1),
        rejected=[],
    )


def learn_for_ever(settings: Path, steps: Path, folder: Path, rest_s: float) -> None:
    """The child: train, place and rest, from the round's first step on."""
    step_back()
    data, tokenizer = made_up_answers(TAUGHT, LEARNT), load_tokenizer(REFERENCE)
    print("ready", flush=True)
    while not (steps.exists() and len(steps.read_text().splitlines()) > 1):
        time.sleep(0.1)
    for number in itertools.count():
        begun = time.monotonic()
        predictor = train(data, tokenizer, Recipe(seed=number))
        out = folder / f"p-{time.time_ns()}"
        predictor.save(out)
        if place_predictor(settings, read_predictor(settings), str(out)):
            print("placed", flush=True)
        time.sleep(max(0.0, rest_s - (time.monotonic() - begun)))


class Learning:
    """The child process, as a context manager; counts what it placed."""

    def __init__(self, settings: Path, steps: Path, folder: Path, rest_s: float) -> None:
        command = [sys.executable, __file__, "--child", str(settings), str(steps), str(folder)]
        command += ["--rest", str(rest_s)]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=os.environ | ONE_THREAD
        )
        self.placed = 0

    def __enter__(self) -> Learning:
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != "ready":
            raise LengthwiseError("the learning process did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        said = self._process.communicate()[0]
        self.placed = said.count("placed")


def figures(observed: Observed, placed: int) -> dict[str, float]:
    """One round in figures."""
    answers = observed.replay.answers
    good = [answer for answer in answers if not answer.error]
    latency = 1000.0 * np.array([answer.finish_s - answer.sent_s for answer in good])
    seconds = observed.engine.steps["duration_s"]
    busy = 1000.0 * seconds[np.isfinite(seconds) & (observed.engine.steps["running"] > 0)]
    return {
        "p50_step_ms": float(np.median(busy)),
        "p99_step_ms": float(np.quantile(busy, 0.99)),
        "mean_e2el_ms": float(latency.mean()),
        "p99_e2el_ms": float(np.quantile(latency, 0.99)),
        "placed": float(placed),
        "failed": float(len(answers) - len(good)),
    }


def requests_of(count: int, seed: int) -> list[ReplayRequest]:
    """Prompts of the built-in model, with lengths of its corpus."""
    asked = made_up_answers(count, seed)
    encoded = load_tokenizer(REFERENCE).encode_chat_many(asked.prompts)
    return [
        ReplayRequest(number, ids, int(length))
        for number, (ids, length) in enumerate(zip(encoded, asked.lengths, strict=True))
    ]


def rate_of(
    session: Session, requests: list[ReplayRequest], settings: Settings, load: float
) -> float:
    """Requests a second at a load, by the capacity that a burst shows."""
    part = requests[:WARM_UP]
    session.run_round("warm-up", settings, part, Offer.at_once(len(part)))
    shown = session.run_round("capacity", settings, part, Offer.at_once(len(part)))
    finished = [answer.finish_s for answer in shown.replay.answers if not answer.error]
    if len(finished) < len(part):
        raise LengthwiseError("a request failed: see the server's log")
    # Not the capacity of a full batch: at the end of the burst fewer and fewer run.
    return load * len(part) / max(finished)


def run(arguments: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Serve all rounds on one server."""
    requests = requests_of(arguments.requests, arguments.seed)
    first = out / "p-first"
    train(made_up_answers(TAUGHT, LEARNT), load_tokenizer(REFERENCE)).save(first)
    settings = Settings(policy="ltr", predictor=str(first))
    server = (out / SERVER_FOLDER).absolute()
    rounds: dict[str, list[dict[str, float]]] = {"quiet": [], "learning": []}
    with (
        ConsoleProgress() as progress,
        open_session(
            REFERENCE, out, flags=["--max-num-seqs", str(SLOTS)], port=None, progress=progress
        ) as session,
    ):
        rate = rate_of(session, requests, settings, arguments.load)
        scheduled = poisson(len(requests), rate, arguments.seed).tolist()
        order = ("quiet", "learning", "learning", "quiet") * arguments.repeats
        for number, name in enumerate(order):
            label = f"{number:03d}"
            progress.stage(f"round {number + 1} of {len(order)}: {name}", len(requests))

            def replay(label: str = label) -> Observed:
                return session.run_round(
                    label,
                    settings,
                    requests,
                    Offer(scheduled),
                    progress=lambda answered, failed: progress.advance(answered),
                )

            placed = 0
            if name == "quiet":
                observed = replay()
            else:
                steps = server / ROUNDS_FOLDER / label / STEPS_FILE
                rest_s = arguments.every / rate
                with Learning(server / "settings.json", steps, out.absolute(), rest_s) as learning:
                    observed = replay()
                placed = learning.placed
            rounds[name].append(figures(observed, placed))
            last = rounds[name][-1]
            progress.note(
                f"{name}: step p99 {last['p99_step_ms']:.1f} ms, "
                f"{placed} predictors placed, {last['failed']:.0f} requests failed"
            )
    return {
        "load": arguments.load,
        "requests_per_s": rate,
        "requests": len(requests),
        "taught": TAUGHT,
        "every": arguments.every,
        "rounds": len(order),
        "quiet": spread(rounds["quiet"], FIGURES),
        "learning": spread(rounds["learning"], FIGURES),
        "learning_over_quiet": paired(rounds["quiet"], rounds["learning"], FIGURES[:4]),
    }


def main() -> int:
    """Run, or be the child."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--load", type=float, default=0.8, help="of the capacity")
    parser.add_argument("--requests", type=int, default=800, help="in each round")
    parser.add_argument("--repeats", type=int, default=2, help="of A B B A")
    parser.add_argument("--seed", type=int, default=0, help="of prompts and arrivals")
    parser.add_argument("--out", type=Path, help="keep the server's log and records there")
    parser.add_argument("--json", action="store_true", help="JSON on stdout")
    parser.add_argument("--every", type=int, default=1000, help="requests between two trainings")
    parser.add_argument("--rest", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--child", nargs=3, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        settings, steps, folder = arguments.child
        learn_for_ever(settings, steps, folder, arguments.rest)
    with tempfile.TemporaryDirectory(prefix="learning-") as folder:
        try:
            result = run(arguments, arguments.out or Path(folder))
        except LengthwiseError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    if arguments.json:
        print(json.dumps(result, indent=1))
        return 0
    for name in FIGURES:
        print(f"{name:14} {result['quiet'][name]:10.1f} {result['learning'][name]:10.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
