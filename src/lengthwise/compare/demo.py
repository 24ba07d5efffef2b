"""The demo: the built-in model's own answers, a predictor learnt from them, and a comparison.

How long an answer gets is the model's own doing: every prompt is answered once, up to the model's
end of text. Most of these lengths train the predictor. The held-out rest is then replayed under
each policy with its length given, so that all policies serve exactly the same work, and so that
there is a truth to tell the oracle.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lengthwise.compare.client import Answer, ReplayRequest
from lengthwise.compare.load import Burst, Capacity
from lengthwise.compare.own_answers import answer_all, held_out_tau, unforced
from lengthwise.compare.progress import Progress
from lengthwise.compare.requests import describe_requests
from lengthwise.compare.rounds import Plan, run_and_keep
from lengthwise.compare.run_info import describe_run
from lengthwise.compare.server_command import REFERENCE
from lengthwise.compare.session import open_session
from lengthwise.compare.specs import parse_policies
from lengthwise.measure.results import ResultsWriter
from lengthwise.predict.kinds import Recipe
from lengthwise.predict.tokenizer import load_tokenizer
from lengthwise.predict.train import train
from lengthwise.reference.prompts import generate
from lengthwise.workload.dataset import Dataset

POLICIES = "fcfs,ltr,srpt,oracle"
LOADS = (Burst(), Capacity(1.0), Capacity(1.2))
PREDICTOR_FOLDER = "predictor"

# The whole takes less than five minutes on two cores of whatever speed: what is left after the
# server's start and the fixed costs is divided between collecting answers and comparing.
_TOTAL_S = 280.0
_FIXED_S = 20.0  # training, switching, the report
_COLLECTING_SHARE = 0.3
# Every policy at every load, twice more for warm-up and calibration, and a fifth for emptying the
# batch at the end of each.
_ROUND_WORK = 1.2 * (len(POLICIES.split(",")) * len(LOADS) + 2)
_PROBE_PROMPTS = 64  # answered first, to see how fast the machine is
_PROMPTS = (200, 2000)  # fewest and most that the predictor learns from
_REQUESTS = (60, 400)  # fewest and most in a round


@dataclass(frozen=True)
class Sizes:
    """How much the machine can do in the time there is."""

    prompts: int  # that the predictor learns from
    requests: int  # in each round


def run_demo(out: Path, *, seed: int, port: int | None, progress: Progress) -> None:
    """Serve, learn and compare; the results are left in `out`.

    Args:
        out: folder for the results and, in `predictor/`, the predictor.
        seed: of prompts, training and arrivals.
        port: the server's TCP port; None takes a free one.
        progress: told what happens.

    Raises:
        InputError: the server cannot be started here.
        LengthwiseError: something failed on the way.
    """
    began = time.monotonic()
    tokenizer = load_tokenizer(REFERENCE)
    most = _PROBE_PROMPTS + _PROMPTS[1] + _REQUESTS[1]
    prompts = [prompt.text for prompt in generate(most, seed)]
    with open_session(REFERENCE, out, flags=(), port=port, progress=progress) as session:
        encoded = tokenizer.encode_chat_many(prompts)
        probe = answer_all(session, "probe", unforced(encoded[:_PROBE_PROMPTS]), progress)
        sizes = choose_sizes(probe, _TOTAL_S - (time.monotonic() - began))
        count = sizes.prompts + sizes.requests
        rest = slice(_PROBE_PROMPTS, _PROBE_PROMPTS + count)
        answers = answer_all(session, "collect", unforced(encoded[rest]), progress)
        lengths = np.array([answer.output_tokens for answer in answers], dtype=np.int64)
        learnt = Dataset(
            name=f"{sizes.prompts} answers of the built-in model",
            prompts=prompts[rest][: sizes.prompts],
            lengths=lengths[: sizes.prompts],
            samples=None,
            rows=np.arange(1, sizes.prompts + 1),
            rejected=[],
            model=REFERENCE,
        )
        progress.stage("training the predictor", 100)
        predictor = train(
            learnt,
            tokenizer,
            Recipe(seed=seed),
            progress=lambda what, part: progress.advance(int(100 * part), what),
        )
        predictor.save(out / PREDICTOR_FOLDER)
        requests = [
            ReplayRequest(number, encoded[rest][sizes.prompts + number], int(length))
            for number, length in enumerate(lengths[sizes.prompts :])
        ]
        tau = held_out_tau(predictor, requests)
        progress.note(f"learnt from {sizes.prompts:,} answers; tau on held-out prompts {tau:.2f}")
        progress.note(describe_requests(requests))
        notes = [
            "Each prompt was answered once by the model itself, up to its own end of text. The "
            f"{sizes.requests} requests compared here were held out from training; their lengths "
            "are replayed (ignore_eos), so that every policy serves the same work.",
            f"The predictor learnt from {sizes.prompts} other answers; its Kendall tau on the "
            f"requests compared is {tau:.2f}.",
        ]
        run = describe_run(
            model=REFERENCE,
            dataset="the built-in model's own prompts",
            requests=len(requests),
            server_arguments=session.server_arguments,
            notes=notes,
        )
        plan = Plan(
            parse_policies([POLICIES], str((out / PREDICTOR_FOLDER).absolute())),
            LOADS,
            repeats=1,
            seed=seed,
        )
        run_and_keep(plan, session, requests, ResultsWriter(out, run), progress)


def choose_sizes(probe: Sequence[Answer], left_s: float) -> Sizes:
    """How many prompts and requests fit into the time, at the speed that the probe had.

    Args:
        probe: answered requests of a closed loop or a burst.
        left_s: s until the demo is to end.
    """
    # Not the first quarter, which warms the engine up, nor the last, in which the batch empties.
    finished = sorted(answer.finish_s for answer in probe)
    quarter = len(finished) // 4
    seconds_each = (finished[3 * quarter] - finished[quarter]) / (2 * quarter)
    left_s = max(left_s - _FIXED_S, 0.0)
    requests = _within(_REQUESTS, (1 - _COLLECTING_SHARE) * left_s / _ROUND_WORK / seconds_each)
    prompts = _within(_PROMPTS, _COLLECTING_SHARE * left_s / seconds_each - requests)
    return Sizes(prompts, requests)


def _within(limits: tuple[int, int], value: float) -> int:
    return int(min(max(value, limits[0]), limits[1]))
