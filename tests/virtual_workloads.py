"""Random workloads that vLLM in virtual time and the simulator both serve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lengthwise.emulate.driver import Asked
from lengthwise.simulate.engine_settings import EngineSettings
from lengthwise.simulate.simulation import PREDICTION
from lengthwise.simulate.step_cost import StepCost
from lengthwise.workload.trace import Trace

LONGEST = 255  #: tokens of a request, prompt and answer
COST = StepCost(7e-3, 1e-4, 1e-4, 1e-6, 1e-5, 1e-7)

POLICIES = ("fcfs", "sjf", "srpt", "ltr", "trail", "hrrn", "mlfq", "gittins", "tie")


@dataclass(frozen=True)
class Workload:
    """Requests, what is predicted of them, and the settings of the scheduler."""

    trace: Trace
    asked: list[Asked]
    predictions: np.ndarray
    settings: dict[str, Any]


def random_engine(seed: int) -> EngineSettings:
    """Limits of an engine."""
    generator = np.random.default_rng([seed, 1])
    slots = int(generator.integers(1, 9))
    return EngineSettings(
        slots=slots,
        token_budget=int(generator.integers(max(slots, 16), 160)),
        kv_blocks=slots * 17 + 1 if generator.integers(2) else int(generator.integers(18, 60)),
        block_size=16,
        prefix_caching=bool(generator.integers(2)),
        watermark=float(generator.choice([0.0, 0.05])),
        long_prefill_tokens=int(generator.choice([0, 0, 12])),
        lag=int(generator.integers(2)),
    )


def random_workload(seed: int, engine: EngineSettings) -> Workload:
    """Requests and settings for an engine."""
    generator = np.random.default_rng([seed, 2])
    n = int(generator.integers(1, 40))
    outputs = generator.integers(1, 60, n)
    size = engine.block_size
    # Prompts share blocks only where nobody is put back: a request that comes again may find a copy
    # of its prefix that another one holds, and the simulator knows of one copy only.
    assert engine.kv_blocks is not None
    ample = engine.kv_blocks > engine.slots * LONGEST // engine.block_size
    shares = engine.prefix_caching and ample and bool(generator.integers(2))
    prompts, hashes, offsets = [], [], [0]
    for number in range(n):
        tail = int(generator.integers(1, 120))
        # Prompts that begin alike: with the first blocks of one of three texts.
        text, common = int(generator.integers(3)), int(generator.integers(0, 5)) if shares else 0
        begin = [2 + (text * 100 + place) % 900 for place in range(common * size)]
        end = generator.integers(2, 1000, tail).tolist()
        prompts.append(begin + end)
        names = [text * 8 + place for place in range(common)]
        own = -(-tail // size)
        names += [1000 + number * 16 + place for place in range(own)]
        hashes += names
        offsets.append(offsets[-1] + len(names))
    arrival_s = np.sort(generator.choice([0.0, 0.05, 0.3]) * generator.random(n) * n)
    trace = Trace(
        name="random",
        arrival_s=arrival_s,
        prompt_tokens=np.array([len(prompt) for prompt in prompts]),
        output_tokens=outputs,
        rejected=[],
        layout="synthetic",
        **(
            {
                "block_hashes": np.array(hashes),
                "block_offsets": np.array(offsets),
                "hash_tokens": size,
            }
            if shares
            else {}
        ),
    )
    said = np.maximum(np.round(outputs * generator.lognormal(0.0, 0.6, n)), 1.0)
    policy = str(generator.choice(POLICIES))
    settings: dict[str, Any] = {"policy": policy, "tau_floor": None, "max_overtakes": None}
    if policy != "fcfs":
        settings |= {
            "predictor": "declared",
            # Not where it pays: the server fits its prices, the simulator is given them.
            "preemption": "never" if shares else str(generator.choice(["never", "greedy"])),
            "max_overtakes": [None, 2, 5][int(generator.integers(3))],
            "overtake_share": [0.0, 0.5][int(generator.integers(2))],
            "max_wait_s": [None, 0.4][int(generator.integers(2))],
            "starvation_threshold": [None, 6][int(generator.integers(2))],
            "starvation_quantum": 3,
            "max_preemptions": int(generator.integers(1, 4)),
            "blend": [1.0, 1.0, 0.6][int(generator.integers(3))],
            "memory_growth": [0.0, 0.0, 1.0][int(generator.integers(3))],
        }
    asked = [
        Asked(
            prompts[place],
            int(outputs[place]),
            float(arrival_s[place]),
            hints={"lengthwise_expected_tokens": int(said[place])},
        )
        for place in range(n)
    ]
    predictions = np.repeat(said[:, None], len(PREDICTION), axis=1)
    return Workload(trace, asked, predictions, settings)
