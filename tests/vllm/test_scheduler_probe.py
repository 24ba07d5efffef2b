"""The scheduler with a probe: predictions come with the tokens, or late, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.support.engine_harness import Ask, build_scheduler
from lengthwise.errors import InputError
from lengthwise.vllm import Scheduler
from lengthwise.vllm.hidden_states import WORKER, ProbeOutput
from tests.support.checked_engine import CheckedEngine
from tests.support.made_up_probe import made_up_probe
from tests.support.probed_engine import WIDTH, ProbedEngine

pytest.importorskip("vllm", reason="needs vLLM: pip install 'lengthwise[cpu]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe")
    made_up_probe().save(folder)
    return folder


def scheduler(folder: Path, policy: str = "trail", **options: Any) -> Any:
    limited = policy.startswith("trail")
    settings = {
        "policy": policy,
        "predictor": "declared",
        "parameters": {"c": 1.0} if limited else {},
        "preemption": "greedy" if limited else "never",
        "max_overtakes": None,
    }
    ours = {"settings": settings, "probe": {"folder": str(folder), "layers": [1], "interval": 1}}
    return build_scheduler(Scheduler, lengthwise=ours, **({"worker": WORKER} | options))


def asks(count: int, seed: int = 0) -> list[Ask]:
    random = np.random.default_rng(seed)
    return [
        Ask(
            str(number),
            random.integers(2, 1000, int(random.integers(2, 40))).tolist(),
            answer=int(random.integers(1, 95)),
            hints={"lengthwise_expected_tokens": int(random.integers(1, 95))},
        )
        for number in range(count)
    ]


def serve(engine: CheckedEngine, requests: list[Ask]) -> None:
    for ask in requests:
        engine.add(ask)
    engine.run()
    assert engine.answers == {ask.request_id: ask.whole_answer() for ask in requests}


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("blocks", [10_000, 60])
def test_every_request_is_served_and_predictions_are_taken_up(
    folder: Path, lag: int, blocks: int
) -> None:
    engine = ProbedEngine(
        scheduler(folder, asynchronous=bool(lag), num_blocks=blocks, max_num_seqs=8), lag
    )
    serve(engine, asks(60))
    counters = engine.scheduler.counters
    assert counters.probe_predictions > 1000
    assert counters.probe_failures == counters.probe_dropped == 0


def test_the_probe_corrects_what_was_declared(folder: Path) -> None:
    engine = ProbedEngine(scheduler(folder, max_num_seqs=1))
    engine.add(Ask("0", [2] * 4, answer=90, hints={"lengthwise_expected_tokens": 5}))
    for _ in range(30):
        engine.step()
    row = engine.scheduler._live.table[engine.scheduler._live.row("0")]
    assert row["initial"] == 5.0
    age = int(row["predicted_age"])
    assert age in (28, 29)
    assert row["expected"] == pytest.approx(90, abs=WIDTH)
    assert row["remaining"] == pytest.approx(90 - age, abs=WIDTH)


def test_a_request_that_is_longer_than_declared_makes_way(folder: Path) -> None:
    """Only the probe can tell: by what was declared, the running request is nearly done."""
    preempted = {}
    for policy in ("trail", "trail-bert"):
        engine = ProbedEngine(scheduler(folder, policy, max_num_seqs=1))
        engine.add(Ask("long", [2] * 4, answer=90, hints={"lengthwise_expected_tokens": 40}))
        for _ in range(20):
            engine.step()
        engine.add(Ask("short", [3] * 4, answer=3, hints={"lengthwise_expected_tokens": 25}))
        engine.run()
        preempted[policy] = engine.scheduler.counters.preemptions
    assert preempted == {"trail": 1, "trail-bert": 0}


def test_late_predictions_are_dated_and_do_no_harm(folder: Path) -> None:
    engine = ProbedEngine(scheduler(folder, max_num_seqs=4), delay=3)
    serve(engine, asks(40))
    assert engine.scheduler.counters.probe_predictions > 500


@pytest.mark.parametrize("nonsense", [np.nan, np.inf, 0.0, -1.0])
def test_nonsense_is_dropped_and_counted(folder: Path, nonsense: float) -> None:
    engine = ProbedEngine(scheduler(folder, max_num_seqs=4), nonsense=nonsense)
    serve(engine, asks(40))
    counters = engine.scheduler.counters
    assert counters.probe_dropped > 100
    assert counters.probe_predictions > 100


def test_without_predictions_it_serves_by_the_prompt_alone(folder: Path) -> None:
    engine = CheckedEngine(scheduler(folder, max_num_seqs=4))
    serve(engine, asks(40))
    assert engine.scheduler.counters.probe_predictions == 0
    assert engine.scheduler.counters.fallbacks == 0


def test_a_probe_that_gave_up_is_counted(folder: Path) -> None:
    engine = ProbedEngine(scheduler(folder))
    engine._predictions = lambda output: ProbeOutput(failed="it broke")  # type: ignore[method-assign]
    serve(engine, asks(3))
    assert engine.scheduler.counters.probe_failures > 0


def test_policies_that_do_not_refine_take_no_notice(folder: Path) -> None:
    for policy in ("sjf-bert", "trail-bert", "fcfs"):
        engine = ProbedEngine(scheduler(folder, policy, max_num_seqs=4))
        serve(engine, asks(20))
        assert engine.scheduler.counters.probe_predictions == 0


def test_a_worker_without_the_probe_is_refused_at_the_start(folder: Path) -> None:
    with pytest.raises(InputError, match=r"--worker-cls lengthwise\.vllm\.Worker"):
        scheduler(folder, worker="auto")


def test_other_layers_or_no_probe_are_refused_at_the_start(folder: Path, tmp_path: Path) -> None:
    settings = {"policy": "fcfs"}
    for probe, message in (
        ({"folder": str(folder), "layers": [2]}, "reads the layers"),
        ({"folder": str(tmp_path / "none"), "layers": [1]}, "does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            build_scheduler(
                Scheduler, worker=WORKER, lengthwise={"settings": settings, "probe": probe}
            )


def test_predictions_for_a_scheduler_without_a_probe_are_no_trouble(folder: Path) -> None:
    settings = {"policy": "srpt", "predictor": "declared"}
    engine = ProbedEngine(build_scheduler(Scheduler, lengthwise={"settings": settings}))
    serve(engine, asks(10))
