"""Time that the probe adds to a step of a real engine, paired in one run.

    python bench/probe_overhead.py                 a table
    python bench/probe_overhead.py --json          a list of rows

The built-in model decodes a full batch on one core, in this process. The same engine takes turns,
a few steps each: as stock vLLM (no layer returned, nothing read), and with the probe at intervals
of k steps. The turns follow one another within a fraction of a second, so that a disturbance of the
machine, and the growth of the answers, meet all alike; a round is one turn of each.

A step is the engine's whole step: scheduling, the model, the probe, taking up its predictions and
the tokens. Times are CPU time of the one thread that does it all: on an idle machine the same as
time on the clock, and on a busy one not what the neighbours took. The probe's weights are random,
which costs as much as any others.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "0"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import numpy as np

STOCK = 0  #: the interval that stands for no probe
HIDDEN_UNITS, BINS, LONGEST = 512, 20, 1024
TURN_STEPS = 16  # a multiple of every interval
WARM_UP_STEPS = 64
PROMPT_TOKENS, ANSWER_TOKENS = 24, 2000


def random_probe(hidden_size: int, layer: int, layers_total: int) -> Any:
    """A probe of the usual size that was trained on nothing."""
    from lengthwise.probe.probe_folder import Metadata, Network, Probe, Refinement, Training
    from lengthwise.probe.refine import geometric_edges

    random = np.random.default_rng(0)

    def network() -> Network:
        shapes = ((hidden_size, HIDDEN_UNITS), (HIDDEN_UNITS,), (HIDDEN_UNITS, BINS), (BINS,))
        return Network(*(0.05 * random.standard_normal(s).astype(np.float32) for s in shapes))

    metadata = Metadata(
        model="reference",
        model_fingerprint="",
        hidden_size=hidden_size,
        layers=[layer],
        layers_total=layers_total,
        max_tokens=LONGEST,
        bins="geometric",
        pooling="mean",
        refinement=[Refinement(interval=1, temper=0.5, epsilon=0.01)],
        training=Training(
            requests=0,
            states=0,
            dropped_states=0,
            dropped_requests=0,
            seed=0,
            seconds=0.0,
            trained_at="",
        ),
        metrics={},
    )
    return Probe(metadata, geometric_edges(LONGEST, BINS), network(), network())


class TurningEngine:
    """One engine that is stock vLLM in one turn and has the probe in the next."""

    def __init__(self, batch: int, layer: int, intervals: list[int]) -> None:
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        from lengthwise.reference import model_path
        from lengthwise.vllm.compat.workers import llvmlite_unseen
        from lengthwise.vllm.hidden_states import WORKER, ProbeWanted
        from lengthwise.vllm.predictions import Refinement
        from lengthwise.vllm.step_states import ProbeReader

        settings = {"policy": "trail", "predictor": "declared"}
        with llvmlite_unseen():
            self._engine: Any = LLMEngine.from_engine_args(
                EngineArgs(
                    model=str(model_path()),
                    dtype="float32",
                    max_model_len=2048,
                    max_num_seqs=batch,
                    block_size=32,
                    enforce_eager=True,
                    disable_log_stats=True,
                    scheduler_cls="lengthwise.vllm.Scheduler",
                    worker_cls=WORKER,
                    additional_config={
                        "lengthwise": {"settings": settings, "collect": {"layers": [layer]}}
                    },
                )
            )
        self._batch = batch
        self._layers = (layer,)
        self._scheduler: Any = self._engine.engine_core.engine_core.scheduler
        (self._runner,) = self._engine.collective_rpc(lambda worker: worker.model_runner)
        config = self._runner.model_config
        probe = random_probe(config.get_hidden_size(), layer, config.get_total_num_hidden_layers())
        # Layers are returned as for a collection; who reads them is exchanged at each turn.
        self._runner._wanted = ProbeWanted(folder="", layers=self._layers)
        self._readers = {
            k: ProbeReader(probe, self._runner.device, k) for k in intervals if k != STOCK
        }
        self._scheduler._refinement = Refinement(
            self._scheduler._live, self._scheduler.counters, probe, 1
        )
        self._scheduler._refinement.warm_up()
        self._added = 0

    def fill(self) -> None:
        """A full batch of long answers, started."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self._turn(STOCK)
        random = np.random.default_rng(self._added)
        for _ in range(self._batch):
            self._added += 1
            prompt = [int(token) for token in random.integers(5, 1000, PROMPT_TOKENS)]
            parameters = SamplingParams(
                temperature=1.0,
                max_tokens=ANSWER_TOKENS,
                ignore_eos=True,
                detokenize=False,
                extra_args={"lengthwise_expected_tokens": 100},
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            self._engine.add_request(str(self._added), {"prompt_token_ids": prompt}, parameters)
        for _ in range(WARM_UP_STEPS):
            self._engine.step()

    def drop(self) -> None:
        """Empty the batch."""
        self._engine.abort_request(list(self._scheduler.requests), internal=True)
        while self._engine.has_unfinished_requests():
            self._engine.step()

    def turn(self, interval: int) -> float:
        """Microseconds a step, on average over a turn with this interval."""
        self._turn(interval)
        self._engine.step()  # a turn's first step pays for what the last one left in the caches
        began = time.thread_time_ns()
        for _ in range(TURN_STEPS):
            self._engine.step()
        return (time.thread_time_ns() - began) / TURN_STEPS / 1e3

    def _turn(self, interval: int) -> None:
        model, runner = self._runner.get_model(), self._runner
        runner.use_aux_hidden_state_outputs = interval != STOCK
        model.set_aux_hidden_state_layers(self._layers if interval != STOCK else ())
        runner._reader = self._readers.get(interval)
        if runner._reader is not None:
            self._introduce(runner._reader)

    def _introduce(self, reader: Any) -> None:
        """Tell a reader of the requests that were there before its turn."""
        from lengthwise.vllm.step_states import _Prompt

        follower = reader._follower
        follower._prompts = {
            name: _Prompt(request.num_prompt_tokens, pooled_to=request.num_prompt_tokens)
            for name, request in self._scheduler.requests.items()
        }


def measure(batch: int, layer: int, intervals: list[int], rounds: int) -> list[dict[str, Any]]:
    """One row for each interval."""
    engine = TurningEngine(batch, layer, intervals)
    modes = [STOCK, *intervals]
    times: dict[int, list[float]] = {k: [] for k in modes}
    per_batch = (ANSWER_TOKENS - WARM_UP_STEPS) // ((TURN_STEPS + 1) * len(modes)) - 1
    for number in range(rounds):
        if number % per_batch == 0:
            if number:
                engine.drop()
            engine.fill()
        turns = modes[number % len(modes) :] + modes[: number % len(modes)]
        for k in turns:
            times[k].append(engine.turn(k))
    stock = times[STOCK]
    rows = []
    for k in intervals:
        added = [ours - theirs for ours, theirs in zip(times[k], stock, strict=True)]
        lower, median, upper = statistics.quantiles(added, n=4)
        rows.append(
            {
                "interval": k,
                "batch": batch,
                "layer": layer,
                "rounds": rounds,
                "stock_us": round(statistics.median(stock), 1),
                "added_us": round(median, 1),
                "added_percent": round(100 * median / statistics.median(stock), 2),
                "spread_us": round(upper - lower, 1),  # interquartile range of paired differences
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print a list of rows on stdout")
    parser.add_argument("--intervals", default="1,8", help="k, default: %(default)s")
    parser.add_argument("--batch", type=int, default=16, help="slots, default: %(default)s")
    parser.add_argument("--layer", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=120, help="default: %(default)s")
    arguments = parser.parse_args()
    kept = os.dup(1)
    os.dup2(2, 1)  # what vLLM prints goes to stderr
    intervals = [int(k) for k in arguments.intervals.split(",")]
    rows = measure(arguments.batch, arguments.layer, intervals, arguments.rounds)
    sys.stdout.flush()
    os.dup2(kept, 1)
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    print("  k  stock µs  added µs      %  spread µs")
    for row in rows:
        print(
            f"{row['interval']:>3} {row['stock_us']:>9} {row['added_us']:>9} "
            f"{row['added_percent']:>6} {row['spread_us']:>10}"
        )


if __name__ == "__main__":
    main()
