"""What learning while serving costs, and what it is worth when the traffic changes.

    python bench/learning.py --json > learning.json
    python bench/learning.py --part swap                  a real engine, the built-in model
    python bench/learning.py --part drift --data DIR      vLLM's scheduler, real prompts and lengths

swap: rounds of the same requests at 0.8 of capacity, with and without learning in turn. With it the
length log is written, and a learner trains on 10,000 answers and exchanges the predictor in
mid-round. What counts is failed requests, and the 99th percentile of step times.

drift: a predictor trained on Alpaca prompts serves them, and then CASTILLO's code prompts. vLLM's
own scheduler runs with a stand-in model runner on a virtual clock (a step takes what `StepCost`
says), the same arrivals under fcfs, under ltr with that predictor for ever, and under ltr with the
tau floor, the log and the learner. Training takes no virtual time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))


LOAD = 0.8
HISTORY = 10_000  # answers that the learner finds in the log
SLOTS = 16
WINDOW = 250  # requests over which latencies are averaged in drift
SETTLED = 500  # requests of the new kind after which learning may not cost anything
LONGEST = 1_500  # tokens of answers in drift: with the prompt they must fit into the context
LONGEST_PROMPT = 500


# Swap -------------------------------------------------------------------------------------------


def swap(requests: int, repeats: int, seed: int) -> dict[str, Any]:
    """Rounds with and without learning on a real engine."""
    from lengthwise.compare.client import ReplayRequest
    from lengthwise.compare.load import Capacity, arrival_times
    from lengthwise.compare.progress import Silent
    from lengthwise.compare.session import open_session
    from lengthwise.compare.step_seconds import fit_step_seconds
    from lengthwise.learn.rows import training_rows
    from lengthwise.predict.kinds import Recipe
    from lengthwise.predict.tokenizer import load_tokenizer
    from lengthwise.predict.train import train_on_features
    from lengthwise.reference.prompts import generate
    from lengthwise.vllm.settings import LengthLogSettings, Settings
    from lengthwise.workload.length_log import read_answers

    taught = 2_000
    prompts = [prompt.text for prompt in generate(taught + requests, seed)]
    encoded = load_tokenizer("reference").encode_chat_many(prompts)
    asks = [ReplayRequest(number, ids, None) for number, ids in enumerate(encoded)]
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with open_session("reference", folder, flags=(), port=None, progress=Silent()) as session:
            history = folder / "history"
            observed = session.run_round(
                "history",
                Settings(length_log=LengthLogSettings(folder=str(history))),
                asks[:taught],
                scheduled_s=None,
                clients=3 * SLOTS,
            )
            log_off(session, folder)
            answers, _ = read_answers(history)
            # A predictor that more answers are sure to better.
            weak = train_on_features(*training_rows(history, answers[:60]), Recipe(seed=seed))
            weak.save(folder / "weak")
            tokens = sum(a.prompt_tokens + a.output_tokens for a in observed.replay.answers)
            capacity = (observed.engine.capacity() or 0.0) * taught / tokens
            step_seconds = fit_step_seconds(observed.engine.steps)
            times = arrival_times(
                Capacity(LOAD), requests, cv=1.0, seed=seed, capacity_requests_per_s=capacity
            )
            plain = Settings(policy="ltr", predictor=str(folder / "weak"))
            for repeat in range(repeats):
                for learning in (False, True) if repeat % 2 == 0 else (True, False):
                    label = f"{repeat}-{learning}"
                    replay = {"scheduled_s": times, "step_seconds": step_seconds}
                    rounds.append(
                        one_round(session, folder, label, plain, asks[taught:], replay, learning)
                    )
    without, with_it = (
        sorted((r for r in rounds if r["learning"] is learning), key=lambda r: str(r["name"]))
        for learning in (False, True)
    )
    ratios = [b["p99_step_ms"] / a["p99_step_ms"] for a, b in zip(without, with_it, strict=True)]
    return {
        "load": LOAD,
        "requests": requests,
        "rounds": rounds,
        "failed": sum(r["failed"] for r in rounds),
        "swaps": sum(r["swaps"] for r in rounds),
        "p99_step_ratio": statistics.median(ratios),
        "p99_step_ratios": ratios,
        "passed": all(r["failed"] == 0 for r in rounds)
        and all(r["swaps"] >= 1 for r in with_it)
        and statistics.median(ratios) < 1.1,
    }


def one_round(
    session: Any,
    folder: Path,
    name: str,
    settings: Any,
    asks: Sequence[Any],
    replay: dict[str, Any],
    learning: bool,
) -> dict[str, Any]:
    """One round; with learning the predictor is exchanged half-way."""
    from contextlib import nullcontext

    from lengthwise.compare.engine_log import SERVER_FOLDER
    from lengthwise.learn.state import State, read_state
    from lengthwise.learn.supervisor import LearnerProcess
    from lengthwise.vllm.settings import LengthLogSettings

    log, learner, state = folder / f"log-{name}", nullcontext(), State()
    if learning:
        repeat_log(folder / "history", log)
        megabytes = 1024  # all of the history stays
        length_log = LengthLogSettings(folder=str(log), megabytes=megabytes)
        settings = settings.model_copy(update={"length_log": length_log})
        path = folder / SERVER_FOLDER / "settings.json"
        settings.write(path)
        learner = LearnerProcess(log, path, len(asks) // 3, lambda line: None)
    with learner:
        observed = session.run_round(name, settings, asks, **replay)
        state = read_state(log)
    log_off(session, folder)
    steps = observed.engine.steps["duration_s"]
    steps = steps[np.isfinite(steps)] * 1e3
    latencies = [a.finish_s - a.sent_s for a in observed.replay.answers if a.error is None]
    return {
        "name": name,
        "learning": learning,
        "failed": sum(answer.error is not None for answer in observed.replay.answers),
        "swaps": state.accepted,
        "comparison": state.comparison,
        "steps": len(steps),
        "median_step_ms": float(np.median(steps)),
        "p99_step_ms": float(np.percentile(steps, 99)),
        "max_step_ms": float(steps.max()),
        "mean_latency_s": float(np.mean(latencies)),
    }


def log_off(session: Any, folder: Path) -> None:
    """End the length log, so that what is left of it is written."""
    from lengthwise.vllm.settings import Settings

    session.run_round("between", Settings(), [], scheduled_s=[])


def repeat_log(history: Path, log: Path) -> None:
    """The history over and over, until there is as much of it as a learner remembers."""
    from lengthwise.workload.length_log import read_answers, segment_path, segments

    log.mkdir()
    for tokens in history.glob("tokens-*"):
        shutil.copy(tokens, log)
    count, number = len(read_answers(history)[0]), 0
    for _ in range(-(-HISTORY // count)):
        for _, path in segments(history):
            number += 1
            shutil.copy(path, segment_path(log, number))


# Drift ------------------------------------------------------------------------------------------


def drift(data: Path, model: str, load: float, seed: int) -> dict[str, Any]:
    """Three engines on the same arrivals."""
    from lengthwise.predict.kinds import Recipe
    from lengthwise.predict.ranking import kendall_tau
    from lengthwise.predict.tokenizer import load_tokenizer
    from lengthwise.predict.train import train
    from lengthwise.simulate.cell import capacity
    from lengthwise.simulate.engine_settings import EngineSettings
    from lengthwise.simulate.step_cost import StepCost
    from lengthwise.workload.arrivals import gamma
    from lengthwise.workload.dataset import load_dataset
    from lengthwise.workload.trace import Trace

    tokenizer = load_tokenizer("reference")
    alpaca = data / "prompts_alpaca_vicuna7b.parquet"
    castillo = data / "prompts_castillo.parquet"
    known = load_dataset(alpaca, split="train", limit=10_000)
    first = load_dataset(alpaca, split="test", limit=700)
    then = load_dataset(castillo, where={"model": model, "degenerate": "False"}, limit=3_500)
    cost, engine = StepCost(7e-3, 32e-6, 32e-6), EngineSettings(slots=SLOTS)
    asked: list[tuple[list[int], int, float]] = []  # prompt, answer's length, arrival
    counts = []
    for number, table in enumerate((first, then)):
        encoded = tokenizer.encode_chat_many(table.prompts)
        fit = [
            (ids, int(length))
            for ids, length in zip(encoded, table.lengths, strict=True)
            if len(ids) <= LONGEST_PROMPT and 1 <= length <= LONGEST
        ]
        np.random.default_rng(seed).shuffle(fit)
        sizes = np.array([(len(ids), length) for ids, length in fit], dtype=np.int64)
        zeros = np.zeros(len(fit))
        trace = Trace("drift", zeros, sizes[:, 0], sizes[:, 1], [], "synthetic")
        gaps = gamma(len(fit), load * capacity(trace, cost, engine), 1.0, seed + number)
        start = asked[-1][2] if asked else 0.0
        asked += [(ids, n, start + t) for (ids, n), t in zip(fit, gaps, strict=True)]
        counts.append(len(fit))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train(known, tokenizer, Recipe(seed=seed)).save(folder / "alpaca")
        runs = {
            label: VirtualServer(folder / label, policy, asked, cost).run()
            for label, policy in (
                ("fcfs", {"policy": "fcfs"}),
                ("frozen", {**LTR, "predictor": str(folder / "alpaca"), "tau_floor": None}),
                ("learning", {**LTR, "predictor": str(folder / "alpaca")}),
            )
        }
    begin = counts[0]
    fcfs = runs["fcfs"]["latency_s"]
    learning = runs["learning"]
    windows = range(begin + SETTLED, len(asked) - WINDOW + 1, WINDOW)

    def ratio(label: str, rows: slice) -> float:
        return float(runs[label]["latency_s"][rows].mean() / fcfs[rows].mean())

    def tau(label: str, rows: slice) -> float | None:
        lengths = [n for _, n, _ in asked[rows]]
        return kendall_tau(lengths, runs[label]["scores"][rows])

    swapped = learning["swapped_at"]
    after = slice(swapped[0] if swapped else begin, len(asked))
    settled = slice(begin + SETTLED, len(asked))
    worst = max(ratio("learning", slice(at, at + WINDOW)) for at in windows)
    return {
        "model": model,
        "load": load,
        "requests": counts,
        "before_drift": {label: ratio(label, slice(0, begin)) for label in runs},
        "first_requests": {label: ratio(label, slice(begin, begin + SETTLED)) for label in runs},
        "settled": {label: ratio(label, settled) for label in runs},
        "worst_window": worst,
        "tau_before_drift": tau("frozen", slice(0, begin)),
        "tau_after_drift": tau("frozen", slice(begin, len(asked))),
        "tau_after_first_swap": tau("learning", after),
        "swaps_after_requests": [at - begin for at in swapped],
        "floor_falls": learning["counters"]["floor_falls"],
        "floor_rises": learning["counters"]["floor_rises"],
        "decisions": learning["decisions"],
        "passed": ratio("learning", settled) <= 1.05 and bool(swapped),
    }


# Prices of preemption are measured in real time, which has no meaning here.
LTR = {"policy": "ltr", "preemption": "never"}


class VirtualServer:
    """vLLM's scheduler with our policy, a stand-in model runner, and time as `StepCost` says.

    Args:
        folder: for its settings and its log.
        settings: how it schedules; a learner works for it unless there is no predictor or no floor.
        asked: prompt, length of the answer and arrival (s) of each request, in order of arrival.
        cost: of steps.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        asked: Sequence[tuple[list[int], int, float]],
        cost: Any,
    ) -> None:
        from engine_harness import SteppedEngine, build_scheduler
        from lengthwise.learn.learner import Learner
        from lengthwise.vllm import Scheduler, length_log

        # Virtual time is faster than the clock that the log's thread goes by.
        length_log._FLUSH_S = 0.01  # type: ignore[misc]
        folder.mkdir()
        self._path, self._asked, self._cost = folder / "settings.json", asked, cost
        self._learner: Learner | None = None
        if settings.get("predictor") and settings.get("tau_floor", 0.0) is not None:
            settings = {**settings, "length_log": {"folder": str(folder / "log")}}
            (folder / "log").mkdir()
            self._learner = Learner(folder / "log", self._path, every=1_000)
        self._path.write_text(json.dumps(settings))
        scheduler = build_scheduler(
            Scheduler,
            max_num_seqs=SLOTS,
            token_budget=2048,
            lengthwise={"settings": str(self._path)},
        )
        self._engine = SteppedEngine(scheduler)

    def run(self) -> dict[str, Any]:
        """Serve everything."""
        from engine_harness import Ask

        engine, count = self._engine, len(self._asked)
        counters = engine.scheduler.counters
        latency, scores = np.full(count, np.nan), np.full(count, np.nan)
        now_s, sent, looked = 0.0, 0, 0
        swapped: list[int] = []
        decisions: list[dict[str, Any]] = []
        while len(engine.finished) < count:
            if not engine.scheduler.has_requests():
                now_s = max(now_s, self._asked[sent][2])
            while sent < count and self._asked[sent][2] <= now_s:
                prompt, answer, _ = self._asked[sent]
                engine.add(Ask(str(sent), prompt, answer))
                sent += 1
            known = self._live_scores(engine)
            step = engine.step()
            now_s += self._seconds(step)
            for name, _, reason in step.delivered:
                if reason is not None:
                    latency[int(name)] = now_s - self._asked[int(name)][2]
                    scores[int(name)] = known.get(name, np.nan)
            if self._learner is not None and counters.finished >= looked + 50:
                looked = counters.finished
                if self._learn(counters):
                    swapped.append(sent)
                    decisions.append({"after": sent, **asdict(self._learner.state)})
        engine.scheduler.shutdown()
        engine.scheduler._watcher.close()
        return {
            "latency_s": latency,
            "scores": scores,
            "swapped_at": swapped,
            "decisions": [
                {key: each[key] for key in ("after", "said", "comparison")} for each in decisions
            ],
            "counters": counters.snapshot(),
        }

    def _learn(self, counters: Any) -> bool:
        """Let the learner look; whether the scheduler has a new predictor then."""
        assert self._learner is not None
        while counters.logged + counters.log_lost < counters.finished:
            time.sleep(0.005)
        before, changes = self._learner.state.placed, counters.settings_changes
        self._learner.step()
        if before in (None, self._learner.state.placed):
            return False
        while self._engine.scheduler._prepared is None and counters.settings_changes == changes:
            time.sleep(0.005)
        return True

    def _live_scores(self, engine: Any) -> dict[str, float]:
        """Scores of running requests, by request."""
        live = engine.scheduler._live
        rows = {
            request.request_id: live.row(request.request_id) for request in engine.scheduler.running
        }
        return {name: float(live.table["score"][row]) for name, row in rows.items()}

    def _seconds(self, step: Any) -> float:
        """What the step takes: every token costs, and so does a step that has any."""
        tokens: NDArray[np.float64] = np.array([[sum(n for _, n in step.scheduled), 0, 0, 0, 0]])
        return float(self._cost.seconds(tokens.astype(np.float64))[0])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=("both", "swap", "drift"), default="both")
    parser.add_argument("--requests", type=int, default=900, help="of a round of swap")
    parser.add_argument("--repeats", type=int, default=3, help="of swap")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="for drift")
    parser.add_argument("--model", default="meta-llama/Llama-3.1-8B-Instruct", help="in CASTILLO")
    parser.add_argument("--load", type=float, default=0.9, help="of drift")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    result: dict[str, Any] = {}
    if given.part != "swap":
        result["drift"] = drift(given.data, given.model, given.load, given.seed)
    if given.part != "drift":
        result["swap"] = swap(given.requests, given.repeats, given.seed)
    if given.json:
        print(json.dumps(result, indent=2))
    else:
        for name, part in result.items():
            print(f"{name}: {'passed' if part['passed'] else 'failed'}")
            for key, value in part.items():
                if not isinstance(value, (list, dict)) or key in ("settled", "p99_step_ratios"):
                    print(f"  {key}: {value}")
    sys.exit(0 if all(part["passed"] for part in result.values()) else 1)


if __name__ == "__main__":
    main()
