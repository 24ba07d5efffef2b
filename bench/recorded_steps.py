"""A real engine in this process against virtual time that is told how long each of its steps took.

    python bench/recorded_steps.py --json > recorded-steps.json

The built-in model computes on this machine's clock. Its schedule is then played again in virtual
time, where nothing computes:

recorded  each step takes what that step took: what is left is the schedule itself
fitted    steps take what `calibrate`'s model says, fitted to the steps of the same round: what is
          added is the model of the cost, and noise that no model knows
run       the same, fitted to all rounds of a run at once: what is added is the machine's drift

The clock is the wall's, for a quiet machine, or counts this process's own processor time, which
others on the machine hardly touch. Time in which the engine idles is skipped.

Both are errors of virtual time against the real engine, relative, of means and 99th percentiles.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lengthwise.advise.calibrate import MeasuredRound, fit_cost
from lengthwise.compare.engine_log import EngineLog, read_engine_log
from lengthwise.compare.own_answers import corpus_table
from lengthwise.compare.rounds import choose_requests
from lengthwise.compare.specs import arrival_times, parse_loads
from lengthwise.emulate.driver import Asked, Served, open_virtual_engine
from lengthwise.emulate.forward_engine import (
    BLOCK_SIZE,
    ComputedModel,
    ForwardEngine,
    open_forward_engine,
)
from lengthwise.measure.results import Records, RequestRecord, RoundInfo
from lengthwise.policy.discipline import make_discipline
from lengthwise.predict.prediction import REQUEST_ID
from lengthwise.predict.tokenizer import load_tokenizer
from lengthwise.reference import model_path
from lengthwise.simulate.engine import EngineSettings, StepCost
from lengthwise.workload.dataset import TEST

ENGINE = EngineSettings(
    slots=16, token_budget=2048, kv_blocks=16 * 64, block_size=BLOCK_SIZE, lag=0
)
LONGEST = 1536
MODEL = ComputedModel(model_path(), "float32")
CLOCKS = {"wall": time.monotonic, "processor": time.process_time}
KINDS = ("recorded", "fitted", "run")
FIGURES = ("e2e_mean", "e2e_p99", "ttft_mean", "ttft_p99")


class Played:
    """One round of the real engine.

    Attributes:
        asked: its requests.
        served: what became of them.
        durations: of its steps, s.
        log: what the scheduler recorded.
    """

    def __init__(self, engine: ForwardEngine, asked: list[Asked], folder: Path) -> None:
        engine.use({"policy": "fcfs", "record": str(folder)})
        self.asked = asked
        self.served = engine.run(asked)
        self.durations = engine.durations
        # Settles the record: the scheduler's writer is closed with its settings.
        engine.use({"policy": "fcfs"})
        self.log: EngineLog = read_engine_log(folder, len(asked))

    def measured(self, number: int, label: str) -> MeasuredRound:
        """The round as `calibrate` takes it."""
        rows = [
            RequestRecord(
                round=number,
                policy="fcfs",
                load=label,
                request=place,
                scheduled_s=one.sent_s,
                sent_s=one.sent_s,
                first_token_s=one.first_token_s,
                finish_s=one.finish_s,
                token_times=np.array(one.token_s, np.float32),
                prompt_tokens=len(asked.prompt_ids),
                output_tokens=len(one.token_s),
                queue_s=float(str(self.log.requests[place]["queue_s"])),
            )
            for place, (asked, one) in enumerate(zip(self.asked, self.served, strict=True))
        ]
        return MeasuredRound(
            info=RoundInfo(number, "fcfs", label, 0),
            records=Records.from_rows(rows),
            steps=self.log.steps,
            engine=ENGINE,
            discipline=make_discipline("fcfs"),
            predictions=np.full((len(rows), 5), np.nan),
            arrival_s=np.array([one.sent_s for one in self.served]),
        )


def figures(served: Sequence[Served]) -> dict[str, float]:
    """Means and 99th percentiles of latencies, in s."""
    e2e = [one.finish_s - one.sent_s for one in served]
    ttft = [one.first_token_s - one.sent_s for one in served]
    values = (np.mean(e2e), np.percentile(e2e, 99), np.mean(ttft), np.percentile(ttft, 99))
    return dict(zip(FIGURES, map(float, values), strict=True))


def errors(virtual: Sequence[Served], real: Sequence[Served]) -> dict[str, float]:
    """Relative errors of the figures."""
    ours, theirs = figures(virtual), figures(real)
    return {name: ours[name] / theirs[name] - 1.0 for name in FIGURES}


def replayed(played: Played, cost: StepCost, durations: Sequence[float] | None) -> list[Served]:
    """The same requests in virtual time, where nothing computes."""
    with open_virtual_engine(cost, ENGINE, longest=LONGEST) as engine:
        return engine.run(played.asked, durations=durations)


def gap_s(virtual: Sequence[Served], real: Sequence[Served]) -> float:
    """The largest difference between two times of the same token."""
    assert [len(one.token_s) for one in virtual] == [len(one.token_s) for one in real]
    return max(
        abs(ours - theirs)
        for one, other in zip(virtual, real, strict=True)
        for ours, theirs in zip(one.token_s, other.token_s, strict=True)
    )


def play(
    engine: ForwardEngine, asked: list[Asked], loads: Sequence[str], seed: int, folder: Path
) -> list[tuple[str, Played]]:
    """All loads once on the real engine, by their names."""
    warm = Played(engine, [replace(each, arrival_s=0.0) for each in asked], folder / f"warm{seed}")
    capacity = warm.log.capacity()
    assert capacity is not None
    work = float(np.mean([len(each.prompt_ids) + int(each.output_tokens or 0) for each in asked]))
    rounds: list[tuple[str, Played]] = []
    for load in parse_loads(loads, (), (), burst=False, trace=None):
        times = arrival_times(
            load, len(asked), cv=1.0, seed=seed, capacity_requests_per_s=capacity / work
        )
        assert times is not None
        arriving = [replace(each, arrival_s=time) for each, time in zip(asked, times, strict=True)]
        rounds.append((load.label, Played(engine, arriving, folder / f"{seed}-{load.label}")))
    return rounds


def compare(rounds: Sequence[tuple[str, Played]], run: int) -> list[dict[str, object]]:
    """A run's rounds again in virtual time; rows of errors."""
    measured = [played.measured(place, label) for place, (label, played) in enumerate(rounds)]
    of_run = fit_cost(measured)
    rows: list[dict[str, object]] = []
    for own, (label, played) in zip(measured, rounds, strict=True):
        fitted = fit_cost([own])
        again = replayed(played, fitted.cost, played.durations)
        rows.append(
            {
                "load": label,
                "run_number": run,
                "steps": len(played.durations),
                "real_s": figures(played.served),
                "recorded": errors(again, played.served),
                "recorded_gap_s": gap_s(again, played.served),
                "fitted": errors(replayed(played, fitted.cost, None), played.served),
                "run": errors(replayed(played, of_run.cost, None), played.served),
                "fit_r2": fitted.r2,
                "fit_median_error": fitted.median_error,
            }
        )
    return rows


def summary(rows: Sequence[dict[str, object]], clock: str) -> list[dict[str, object]]:
    """Medians over runs by a clock, with the lowest and the highest."""
    found: list[dict[str, object]] = []
    for load in dict.fromkeys(str(row["load"]) for row in rows):
        own = [row for row in rows if row["load"] == load]
        line: dict[str, object] = {"load": load, "clock": clock, "runs": len(own)}
        line["load_average"] = os.getloadavg()[2]
        line["recorded_gap_s"] = max(float(str(row["recorded_gap_s"])) for row in own)
        for kind in KINDS:
            for name in FIGURES:
                values = [row[kind][name] for row in own]  # type: ignore[index]
                line[f"{kind}_{name}"] = {
                    "median": float(np.median(values)),
                    "low": min(values),
                    "high": max(values),
                }
        found.append(line)
    return found


def main() -> None:
    """Run all and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--load", default="0.8,1.05,1.2,burst")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", action="store_true", help="print JSON, with every run")
    arguments = parser.parse_args()
    tokenizer = load_tokenizer("reference")
    table = corpus_table(tokenizer, 2 * arguments.requests, TEST, 0)
    chosen, _ = choose_requests(
        table, tokenizer, count=arguments.requests, max_model_len=LONGEST, seed=0
    )
    asked = [
        Asked(
            each.prompt_ids,
            each.output_tokens,
            hints={REQUEST_ID: str(each.number)},
            seed=each.number,
        )
        for each in chosen
    ]
    with (
        tempfile.TemporaryDirectory() as folder,
        open_forward_engine(MODEL, CLOCKS[arguments.clock], ENGINE, longest=LONGEST) as engine,
    ):
        runs = [
            play(engine, asked, arguments.load.split(","), seed, Path(folder))
            for seed in range(arguments.runs)
        ]
    # Only now: an engine that ends takes what vLLM's workers share with it.
    rows = [row for run, rounds in enumerate(runs) for row in compare(rounds, run)]
    lines = summary(rows, arguments.clock)
    if arguments.json:
        print(json.dumps({"recorded-steps": lines, "runs": rows}, indent=2))
        return
    for line in lines:
        print(f"load {line['load']}: same token, largest gap {line['recorded_gap_s']:.1e} s")
        for kind in KINDS:
            cells = ", ".join(
                f"{name} {100 * spread['median']:+.2f} % "
                f"({100 * spread['low']:+.2f} to {100 * spread['high']:+.2f})"
                for name in FIGURES
                if isinstance(spread := line[f"{kind}_{name}"], dict)
            )
            print(f"  {kind}: {cells}")


if __name__ == "__main__":
    main()
