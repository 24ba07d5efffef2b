"""Random workloads that vLLM in virtual time and the simulator both serve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lengthwise.emulate.driver import Asked
from lengthwise.policy.length_law import PER_STEP
from lengthwise.policy.registry import get_policy, policy_names
from lengthwise.predict.load import PREDICTION as PREDICTION_HINT
from lengthwise.predict.load import Foretold
from lengthwise.request import PREDICTION
from lengthwise.simulate.engine import EngineSettings, StepCost
from lengthwise.workload.trace import Trace

LONGEST = 255  #: tokens of a request, prompt and answer
COST = StepCost(7e-3, 1e-4, 1e-4, 1e-6, 1e-5, 1e-7)

POLICIES = policy_names()


@dataclass(frozen=True)
class Workload:
    """Requests, what is predicted of them, and the settings of the scheduler."""

    trace: Trace
    asked: list[Asked]
    predictions: np.ndarray
    classes: np.ndarray
    settings: dict[str, Any]


def random_engine(seed: int) -> EngineSettings:
    """Limits of an engine."""
    generator = np.random.default_rng([seed, 1])
    slots = int(generator.integers(1, 9))
    # In half of them requests can be paused.
    paused = int(np.random.default_rng([seed, 3]).choice([0, 0, 2, 8]))
    return EngineSettings(
        slots=slots,
        max_seqs=slots + paused if paused else None,
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
    # Now and then more at once than are predicted in a step.
    n = int(generator.integers(1, 60)) if generator.integers(10) else 2 * PER_STEP + 1
    outputs = generator.integers(1, 60, n)
    size = engine.block_size
    shares = engine.prefix_caching and bool(generator.integers(2))
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
    policy = str(generator.choice(POLICIES))
    knows = get_policy(policy).predictor == "oracle"
    said = np.maximum(outputs * generator.lognormal(0.0, 0.6, n), 0.5)
    doubt = generator.choice([1.0, 1.5, 3.0], n)
    predictions = np.stack([np.log(said), said, said / doubt, said * 0.9, said * doubt], axis=1)
    if knows:
        predictions = np.repeat(outputs[:, None].astype(np.float64), len(PREDICTION), axis=1)
    # Some are not predicted at all, unless by an oracle.
    if not knows:
        predictions[generator.random(n) > generator.choice([1.0, 0.8])] = np.nan
    classes = generator.integers(-1, 2, n) * int(policy != "fcfs" and generator.integers(2))
    settings: dict[str, Any] = {
        "policy": policy,
        "tau_floor": None,
        "max_overtakes": None,
        "client_priority": True,
    }
    if policy != "fcfs":
        settings |= {
            "predictor": Foretold.name,
            "preemption": str(generator.choice(["never", "pays", "pays", "greedy"])),
            "service_time": bool(generator.integers(2)),
            "max_overtakes": [None, 2, 5][int(generator.integers(3))],
            "overtake_share": [0.0, 0.5][int(generator.integers(2))],
            "max_wait_s": [None, 0.4][int(generator.integers(2))],
            "starvation_threshold": [None, 6][int(generator.integers(2))],
            "starvation_quantum": 3,
            "max_preemptions": int(generator.integers(1, 4)),
            "blend": [1.0, 1.0, 0.6][int(generator.integers(3))],
            "memory_growth": [0.0, 0.0, 1.0][int(generator.integers(3))],
        }
        chance = np.random.default_rng([seed, 3])
        settings |= {
            "pausing": ["auto", False][int(chance.integers(4)) // 3],
            "max_stall_s": [None, 0.1, 1.0][int(chance.integers(3))],
            "max_lead": [None, 0.5, 2.0][int(chance.integers(3))],
        }
        if (adapts := get_policy(policy).adapts) is not None:
            settings["parameters"] = {adapts: ["auto", 0.5][int(generator.integers(2))]}
    asked = [
        Asked(
            prompts[place],
            int(outputs[place]),
            float(arrival_s[place]),
            priority=int(classes[place]),
            hints={}
            if np.isnan(predictions[place]).any()
            else {PREDICTION_HINT: predictions[place].tolist()},
        )
        for place in range(n)
    ]
    return Workload(trace, asked, predictions, classes, settings)
