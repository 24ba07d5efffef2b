"""How well an emulated server keeps the pace that it was asked to keep. The machine must be quiet.

    python bench/emulated_server.py --json > emulated-server.json

Over real HTTP, every token streamed:

steps   64 requests decode together; what steps took, by the scheduler's record, against their costs
TPOT    of the same requests, from each one's first token to its last, 256 tokens, by the client
TTFT    of one request at a time with a prompt of 2,048 tokens, by the client, less what a prompt of
        one token takes beyond the cost of its step: the constant of client, HTTP and front end
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lengthwise.compare.client import ReplayRequest
from lengthwise.compare.progress import Silent
from lengthwise.compare.session import Observed, Session, open_session
from lengthwise.compare.specs import Offer
from lengthwise.settings import Settings
from lengthwise.simulate.presets import Preset, parse_preset

BATCH = 64
ANSWER_TOKENS = 256
PROMPT_TOKENS = 2048
FILLING = 4  # token ids from here on are words


def requests_of(count: int, prompt: int, answer: int, seed: int) -> list[ReplayRequest]:
    """Requests without a common prefix."""
    tokens = np.random.default_rng(seed).integers(FILLING, 1024, size=(count, prompt))
    return [ReplayRequest(number, row.tolist(), answer) for number, row in enumerate(tokens)]


def run(session: Session, name: str, requests: Sequence[ReplayRequest], clients: int) -> Observed:
    """Serve all requests, `clients` at a time."""
    observed = session.run_round(name, Settings(policy="fcfs"), requests, Offer(clients=clients))
    failed = [answer.error for answer in observed.replay.answers if answer.error]
    assert not failed, failed
    return observed


def decoding(observed: Observed, preset: Preset) -> dict[str, float]:
    """Steps and TPOT of a batch that decodes together."""
    steps = observed.engine.steps
    full = (steps["decode_tokens"] == BATCH) & (steps["prefill_tokens"] == 0)
    full &= np.isfinite(steps["duration_s"])
    columns = ("prefill_tokens", "decode_tokens", "kv_tokens", "requests", "attention_tokens")
    asked_s = preset.cost.seconds(np.stack([steps[name][full] for name in columns], axis=1))
    took_s = steps["duration_s"][full]
    answers = observed.replay.answers
    tpot_s = [(each.finish_s - each.first_token_s) / (each.output_tokens - 1) for each in answers]
    return {
        "steps": int(full.sum()),
        "step_asked_ms": 1e3 * float(np.median(asked_s)),
        "step_ms": 1e3 * float(np.median(took_s)),
        "step_p95_ms": 1e3 * float(np.percentile(took_s, 95)),
        "tpot_asked_ms": 1e3 * float(np.mean(asked_s)),
        "tpot_ms": 1e3 * float(np.median(tpot_s)),
    }


def first_token_s(observed: Observed) -> float:
    """Median TTFT as the client saw it."""
    answers = observed.replay.answers
    return float(np.median([each.first_token_s - each.sent_s for each in answers]))


def prefill_s(preset: Preset, tokens: int) -> float:
    """What the step that computes a whole prompt is asked to take."""
    work = [[tokens, 0, tokens, 1, tokens * (tokens + 1) / 2]]
    return float(preset.cost.seconds(np.array(work, dtype=np.float64))[0])


def measure(preset: Preset, repeats: int) -> dict[str, object]:
    """All figures of one server."""
    with (
        tempfile.TemporaryDirectory() as folder,
        open_session(
            "reference", Path(folder), flags=(), port=None, progress=Silent(), emulate=preset
        ) as session,
    ):
        run(session, "warm-up", requests_of(BATCH, 64, 32, 1), BATCH)
        batch = run(session, "batch", requests_of(BATCH, 64, ANSWER_TOKENS, 2), BATCH)
        short = run(session, "short", requests_of(repeats, 1, 2, 3), 1)
        long = run(session, "long", requests_of(repeats, PROMPT_TOKENS, 2, 4), 1)
    figures = decoding(batch, preset)
    constant_s = first_token_s(short) - prefill_s(preset, 1)
    asked_s = prefill_s(preset, PROMPT_TOKENS)
    figures |= {
        "ttft_asked_ms": 1e3 * asked_s,
        "ttft_ms": 1e3 * (first_token_s(long) - constant_s),
        "front_end_ms": 1e3 * constant_s,
    }
    for name in ("step", "tpot", "ttft"):
        figures[f"{name}_error"] = figures[f"{name}_ms"] / figures[f"{name}_asked_ms"] - 1.0
    load = os.getloadavg()[0]
    return {"preset": preset.name, "repeats": repeats, "load_average": load, **figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--preset", default="a100:llama-3-8b", help="GPU:MODEL")
    parser.add_argument("--repeats", type=int, default=30, help="prompts for TTFT")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    options = parser.parse_args()
    figures = measure(parse_preset(options.preset), options.repeats)
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    print(f"{figures['preset']}, batch of {BATCH}, load average {figures['load_average']:.1f}")
    for name, what in (("step", "median step"), ("tpot", "TPOT"), ("ttft", "TTFT")):
        asked, took, error = (figures[f"{name}_{key}"] for key in ("asked_ms", "ms", "error"))
        print(f"{what:12} asked {asked:7.2f} ms, took {took:7.2f} ms ({error:+.1%})")
    print(f"front end    {figures['front_end_ms']:.2f} ms a request, in no figure above")


if __name__ == "__main__":
    main()
