"""Length-aware scheduling for LLM serving: short answers first, on an unmodified vLLM.

The public names are those in `__all__`. They are imported on first use, so that `import lengthwise`
is quick and pulls in neither a compiler nor a plotting library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lengthwise.errors import InputError, LengthwiseError
    from lengthwise.policy import Policy, get_policy, policy_names, register
    from lengthwise.policy.discipline import make_discipline
    from lengthwise.predict.load import load_predictor
    from lengthwise.predict.prediction import Prediction, Predictor, Prompt
    from lengthwise.request import REQUEST
    from lengthwise.settings import Settings
    from lengthwise.simulate.engine import EngineSettings, StepCost
    from lengthwise.simulate.simulation import Simulation
    from lengthwise.workload.arrivals import synthetic_trace
    from lengthwise.workload.dataset import Dataset, load_dataset
    from lengthwise.workload.trace import Trace, load_trace

__version__ = "0.1.0"

__all__ = [
    "REQUEST",
    "Dataset",
    "EngineSettings",
    "InputError",
    "LengthwiseError",
    "Policy",
    "Prediction",
    "Predictor",
    "Prompt",
    "Settings",
    "Simulation",
    "StepCost",
    "Trace",
    "get_policy",
    "load_dataset",
    "load_predictor",
    "load_trace",
    "make_discipline",
    "policy_names",
    "register",
    "synthetic_trace",
]

_HOMES = {
    "REQUEST": "lengthwise.request",
    "Dataset": "lengthwise.workload.dataset",
    "EngineSettings": "lengthwise.simulate.engine",
    "InputError": "lengthwise.errors",
    "LengthwiseError": "lengthwise.errors",
    "Policy": "lengthwise.policy",
    "Prediction": "lengthwise.predict.prediction",
    "Predictor": "lengthwise.predict.prediction",
    "Prompt": "lengthwise.predict.prediction",
    "Settings": "lengthwise.settings",
    "Simulation": "lengthwise.simulate.simulation",
    "StepCost": "lengthwise.simulate.engine",
    "Trace": "lengthwise.workload.trace",
    "get_policy": "lengthwise.policy",
    "load_dataset": "lengthwise.workload.dataset",
    "load_predictor": "lengthwise.predict.load",
    "load_trace": "lengthwise.workload.trace",
    "make_discipline": "lengthwise.policy.discipline",
    "policy_names": "lengthwise.policy",
    "register": "lengthwise.policy",
    "synthetic_trace": "lengthwise.workload.arrivals",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
