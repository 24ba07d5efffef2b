"""KV memory at its limit on a real engine: stock vLLM, and admission that looks ahead.

    python bench/scarce_kv.py --json

vLLM's CPU build serves the built-in model with KV blocks for 30 % of what a full batch of these
requests takes at its peak (simulated, with ample memory). `stock` is first come, first served,
which is stock vLLM's schedule step for step; `ours` sees lengths through a noisy oracle. Both serve
the same burst, in turn: A B B A. `ours_over_stock` pairs neighbours, so that drift cancels.

`throughput_tokens_per_s` is over the whole burst. Whoever runs short answers first is left with the
long ones in the end, and where these are few, slots stay empty; a server whose queue does not run
dry never gets there. `queued_tokens_per_s` is over the steps in which requests wait.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.spread import paired, spread

from lengthwise.cli.console import ConsoleProgress
from lengthwise.compare.client import ReplayRequest
from lengthwise.compare.session import Observed, open_session
from lengthwise.errors import LengthwiseError
from lengthwise.policy.discipline import make_discipline
from lengthwise.predict.tokenizer import load_tokenizer
from lengthwise.reference.prompts import generate
from lengthwise.serve.command import REFERENCE
from lengthwise.simulate.engine_settings import EngineSettings
from lengthwise.simulate.simulation import simulate
from lengthwise.simulate.step_cost import StepCost
from lengthwise.vllm.settings import Settings, parse_spec
from lengthwise.workload.trace import Trace

SLOTS, BLOCK_SIZE = 16, 32  # those of the built-in model's server
MEAN, SIGMA, LONGEST = 220.0, 0.7, 900  # of the answers' lengths, log-normal

FIGURES = (
    "preemptions",
    "throughput_tokens_per_s",
    "queued_tokens_per_s",
    "mean_e2el_ms",
    "p99_e2el_ms",
    "mean_ttft_ms",
    "recomputed_tokens",
    "mean_running",
)


def requests_of(count: int, seed: int) -> list[ReplayRequest]:
    """Prompts of the built-in model; answers are given log-normal lengths."""
    encoded = load_tokenizer(REFERENCE).encode_chat_many([p.text for p in generate(count, seed)])
    drawn = np.random.default_rng(seed).lognormal(math.log(MEAN) - SIGMA**2 / 2, SIGMA, count)
    lengths = np.clip(drawn, 8, LONGEST).astype(int)
    return [
        ReplayRequest(number, ids, int(length))
        for number, (ids, length) in enumerate(zip(encoded, lengths, strict=True))
    ]


def peak_blocks(requests: list[ReplayRequest]) -> int:
    """KV blocks that a full batch takes at its peak where there are enough."""
    count = len(requests)
    trace = Trace(
        name="peak",
        arrival_s=np.zeros(count),
        prompt_tokens=np.array([len(request.prompt_ids) for request in requests], np.int64),
        output_tokens=np.array([request.output_tokens for request in requests], np.int64),
        rejected=[],
        layout="prompts",
    )
    engine = EngineSettings(slots=SLOTS, block_size=BLOCK_SIZE, prefix_caching=False)
    cost = StepCost(5e-3, 1e-4, 1e-4)
    steps = simulate(trace, make_discipline("fcfs"), cost, engine, log_steps=True).steps
    longest = int((trace.prompt_tokens + trace.output_tokens).max())
    return engine.blocks(longest) - int(steps["free_blocks"].min())


def figures(observed: Observed) -> dict[str, float]:
    """One round in figures."""
    answers = observed.replay.answers
    if errors := [answer.error for answer in answers if answer.error]:
        raise LengthwiseError(f"{len(errors)} requests failed: {errors[0]}")
    latency = np.array([answer.finish_s - answer.sent_s for answer in answers])
    first = np.array([answer.first_token_s - answer.sent_s for answer in answers])
    tokens = sum(answer.output_tokens for answer in answers)
    span = max(answer.finish_s for answer in answers) - min(answer.sent_s for answer in answers)
    steps = observed.engine.steps
    prompts = sum(answer.prompt_tokens for answer in answers)
    queued = steps["waiting"] > 0
    queued_s = float(np.nansum(steps["duration_s"][queued]))
    return {
        "preemptions": float(
            observed.counters["preemptions"] + observed.counters["memory_preemptions"]
        ),
        "throughput_tokens_per_s": tokens / span,
        "queued_tokens_per_s": float(np.nansum(steps["decode_tokens"][queued])) / queued_s,
        "mean_e2el_ms": 1000.0 * float(latency.mean()),
        "p99_e2el_ms": 1000.0 * float(np.quantile(latency, 0.99)),
        "mean_ttft_ms": 1000.0 * float(first.mean()),
        "recomputed_tokens": max(float(np.nansum(steps["prefill_tokens"])) - prompts, 0.0),
        "mean_running": float(np.nanmean(steps["running"])),
    }


def run(arguments: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Serve all rounds on one server."""
    requests = requests_of(arguments.requests, arguments.seed)
    peak = peak_blocks(requests)
    longest = 1 + max(len(each.prompt_ids) + (each.output_tokens or 0) for each in requests)
    blocks = max(math.ceil(arguments.share * peak), math.ceil(longest / BLOCK_SIZE) + 1)
    settings = {
        "stock": Settings(),
        "ours": parse_spec(arguments.policy, Settings(predictor=arguments.predictor)),
    }
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in settings}
    # One block is vLLM's own.
    flags = ["--num-gpu-blocks-override", str(blocks + 1), "--max-num-seqs", str(SLOTS)]
    flags += ["--max-model-len", str(longest)]  # vLLM wants memory for one such request
    with (
        ConsoleProgress() as progress,
        open_session(REFERENCE, out, flags=flags, port=None, progress=progress) as session,
    ):
        progress.note(f"a full batch takes {peak} KV blocks at its peak; serving with {blocks}")
        names = itertools.chain.from_iterable(
            [("stock", "ours", "ours", "stock")] * arguments.repeats
        )
        order = [("warm-up", "ours"), *((f"{k:03d}", name) for k, name in enumerate(names))]
        for label, name in order:
            part = requests if label != "warm-up" else requests[:32]
            progress.stage(f"round {label}: {name}", len(part))
            observed = session.run_round(
                label,
                settings[name],
                part,
                scheduled_s=[0.0] * len(part),
                progress=lambda answered, failed: progress.advance(answered),
            )
            if label != "warm-up":
                rounds[name].append(figures(observed))
                last = rounds[name][-1]
                progress.note(
                    f"{name}: {last['preemptions']:.0f} preemptions, "
                    f"{last['throughput_tokens_per_s']:.0f} tokens/s"
                )
    return {
        "kv_blocks": blocks,
        "peak_blocks": peak,
        "block_size": BLOCK_SIZE,
        "slots": SLOTS,
        "requests": len(requests),
        "policy": arguments.policy,
        "predictor": arguments.predictor,
        "stock": spread(rounds["stock"], FIGURES),
        "ours": spread(rounds["ours"], FIGURES),
        "ours_over_stock": paired(rounds["stock"], rounds["ours"], FIGURES[:6]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policy", default="srpt:memory_growth=0.5", help="what is compared")
    parser.add_argument("--predictor", default="noisy-oracle:0.5", help="or an artifact's folder")
    parser.add_argument("--share", type=float, default=0.3, help="KV blocks over the batch's peak")
    parser.add_argument("--requests", type=int, default=160, help="in each round")
    parser.add_argument("--repeats", type=int, default=2, help="of A B B A")
    parser.add_argument("--seed", type=int, default=0, help="of prompts and lengths")
    parser.add_argument("--out", type=Path, help="keep the server's log and records there")
    parser.add_argument("--json", action="store_true", help="JSON on stdout")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="scarce-kv-") as folder:
        try:
            result = run(arguments, arguments.out or Path(folder))
        except LengthwiseError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    if arguments.json:
        print(json.dumps(result, indent=1))
        return 0
    for name in FIGURES:
        stock, ours = result["stock"][name], result["ours"][name]
        print(f"{name:24} {stock:10.1f} {ours:10.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
