"""Tables of made-up prompts whose answers' lengths have a known cause."""

from __future__ import annotations

import numpy as np

from lengthwise.workload.dataset import Dataset

TASKS = {"Write an essay about": 400, "List some facts on": 120, "Is it true what they say of": 9}
SPREAD = 0.4  # standard deviation of the logarithm of lengths
SUBJECTS = ["cats", "bread", "rivers", "music", "maps", "winter", "glass", "bees", "tea", "iron"]


def table(count: int, seed: int = 0, samples: int = 1) -> Dataset:
    """Three tasks whose answers differ in length, on subjects that do not matter."""
    random = np.random.default_rng(seed)
    tasks = random.integers(len(TASKS), size=count)
    starts, means = list(TASKS), np.array(list(TASKS.values()))
    subjects = random.choice(SUBJECTS, (count, 2))
    prompts = [
        f"{starts[task]} {first} and {second}"
        for task, (first, second) in zip(tasks, subjects, strict=True)
    ]
    lengths = np.ceil(random.lognormal(np.log(means[tasks]), SPREAD, (samples, count))).astype(int)
    return Dataset(
        name="tasks.csv",
        prompts=prompts,
        lengths=lengths[0],
        samples=list(lengths.T) if samples > 1 else None,
        rows=np.arange(1, count + 1),
        rejected=[],
        model="a-model",
    )
