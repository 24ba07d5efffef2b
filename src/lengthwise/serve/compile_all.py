"""Compiles what servers run, by running it: `python -m lengthwise.serve.compile_all`.

vLLM's engine core serves a few requests in virtual time with every policy, with and without its
guards, by a predictor of words that is trained here. No function need be listed, so that none can
be forgotten; what is compiled stays in numba's cache. One line a policy goes to stdout.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np

from lengthwise.emulate.driver import Asked, open_virtual_engine
from lengthwise.policy.registry import policy_names
from lengthwise.predict.load import TRUE_TOKENS
from lengthwise.predict.tokenizer import load_tokenizer
from lengthwise.predict.train import train
from lengthwise.reference import model_path
from lengthwise.simulate import simulation
from lengthwise.simulate.engine import EngineSettings
from lengthwise.simulate.presets import parse_preset
from lengthwise.workload.dataset import Dataset

_ENGINE: Final = EngineSettings(slots=2, token_budget=64, kv_blocks=40)
_LONGEST: Final = 256  # tokens of a request
_GUARDS: Final[dict[str, Any]] = {
    "blend": 0.9,
    "starvation_threshold": 100,
    "max_wait_s": 100.0,
    "max_lead": 100.0,
    "memory_growth": 1.0,
    "service_time": True,
    "preemption": "pays",
}
_AUTO: Final[dict[str, Any]] = {"parameters": {"c": "auto"}}


def main() -> None:
    """Train, then serve with each policy."""
    with tempfile.TemporaryDirectory(prefix="lengthwise-compile-") as folder:
        predictor = str(Path(folder) / "predictor")
        train(_answers(), load_tokenizer(str(model_path()))).save(Path(predictor))
        log = {"length_log": {"folder": str(Path(folder) / "log")}}
        cost = parse_preset("a100:llama-3-8b").cost
        with open_virtual_engine(cost, _ENGINE, longest=_LONGEST) as engine:
            for name in policy_names():
                settings: dict[str, Any] = {"policy": name, "predictor": predictor, **log}
                for more in ({}, _GUARDS, *([_AUTO] if name == "trail" else [])):
                    engine.use({**settings, **more})
                    engine.run(_requests())
                print(name, flush=True)
        simulation.warm_up()  # which shadow mode replays by


def _requests() -> list[Asked]:
    """More than run at once, the later ones shorter, so that some make way."""
    lengths = (90, 80, 30, 20, 5, 4, 3)
    return [
        Asked(
            prompt_ids=list(range(2, 40)),
            output_tokens=length,
            arrival_s=0.05 * place,
            priority=place % 2,
            hints={TRUE_TOKENS: length},
        )
        for place, length in enumerate(lengths)
    ]


def _answers() -> Dataset:
    """A table in which prompts tell the answers' lengths; what is learnt does not matter."""
    asked = {"Write an essay about": 400, "Name a few": 60, "Is it true of": 8}
    rows = [(f"{start} {n} things", size + n) for n in range(40) for start, size in asked.items()]
    return Dataset(
        name="made up",
        prompts=[prompt for prompt, _ in rows],
        lengths=np.array([length for _, length in rows]),
        samples=None,
        rows=np.arange(1, len(rows) + 1),
        rejected=[],
    )


if __name__ == "__main__":
    main()
