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
    from lengthwise.predict.load import load_predictor
    from lengthwise.predict.prediction import Prediction, Predictor, Prompt
    from lengthwise.request import REQUEST
    from lengthwise.vllm.settings import Settings
    from lengthwise.workload.dataset import Dataset, load_dataset

__version__ = "0.1.0"

__all__ = [
    "REQUEST",
    "Dataset",
    "InputError",
    "LengthwiseError",
    "Policy",
    "Prediction",
    "Predictor",
    "Prompt",
    "Settings",
    "get_policy",
    "load_dataset",
    "load_predictor",
    "policy_names",
    "register",
]

_HOMES = {
    "REQUEST": "lengthwise.request",
    "Dataset": "lengthwise.workload.dataset",
    "InputError": "lengthwise.errors",
    "LengthwiseError": "lengthwise.errors",
    "Policy": "lengthwise.policy",
    "Prediction": "lengthwise.predict.prediction",
    "Predictor": "lengthwise.predict.prediction",
    "Prompt": "lengthwise.predict.prediction",
    "Settings": "lengthwise.vllm.settings",
    "get_policy": "lengthwise.policy",
    "load_dataset": "lengthwise.workload.dataset",
    "load_predictor": "lengthwise.predict.load",
    "policy_names": "lengthwise.policy",
    "register": "lengthwise.policy",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
