"""Traffic whose answers' lengths have a cause, and what is learnt from its log."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lengthwise.predict.kinds import Recipe
from lengthwise.predict.lexical import LexicalPredictor
from lengthwise.predict.train import train_on_features, training_rows
from lengthwise.workload.length_log import read_answers

TASKS = {"Write an essay about": 300, "List some facts on": 90, "Is it true what they say of": 9}

SUBJECTS = ["cats", "bread", "rivers", "music", "maps", "winter", "glass", "bees"]


def traffic(count: int, seed: int = 0) -> tuple[list[str], list[int]]:
    random = np.random.default_rng(seed)
    tasks = random.integers(len(TASKS), size=count)
    prompts = [f"{list(TASKS)[task]} {random.choice(SUBJECTS)}, number {task}" for task in tasks]
    means = np.array(list(TASKS.values()))[tasks]
    return prompts, np.ceil(random.lognormal(np.log(means), 0.4)).astype(int).tolist()


def train_on_log(folder: Path, seed: int = 0) -> LexicalPredictor:
    answers, reader = read_answers(folder)
    return train_on_features(*training_rows(folder, answers, reader.damaged), Recipe(seed=seed))
