"""The facts of a step by which requests are ranked."""

from __future__ import annotations

from typing import Any

import numpy as np

from lengthwise.policy.facts import new_facts


def facts_of(rows: int, now_s: float = 0.0, step: int = 0, **more: Any) -> np.ndarray:
    """So many rows in use at a clock reading; `more` as at FACTS, all else as in a new engine."""
    facts = new_facts(1, token_budget=512, block_size=16)
    for name, value in {"rows": rows, "now_s": now_s, "step": step, **more}.items():
        facts[name] = value
    return facts
