"""A policy's rank as a function pointer.

The simulator is one large compiled function. With the rank as a pointer, of the same type for every
policy, it is compiled once and kept on disk; only the rank itself is compiled anew.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numba
import numpy as np
from numba import types
from numpy.typing import NDArray

from lengthwise.policy.registry import Policy
from lengthwise.request import REQUEST

#: rank(request, now, values): `values` holds the policy's parameters, one float64 each.
SIGNATURE: Final = types.float64(
    numba.from_dtype(REQUEST), types.float64, types.Array(types.float64, 1, "C")
)


@cache
def _pointer(rank: Any, names: tuple[str, ...]) -> Any:
    parameters = np.dtype([(name, np.float64) for name in names])

    def pointer(request: Any, now: float, values: Any) -> float:
        return float(rank(request, now, values.view(parameters)[0]))

    return numba.cfunc(SIGNATURE)(pointer)


def rank_pointer(policy: Policy) -> Any:
    """The policy's rank with the type that compiled code takes whatever the policy."""
    return _pointer(policy.rank, policy.parameter_record({}).dtype.names or ())


def parameter_values(parameters: NDArray[np.void]) -> NDArray[np.float64]:
    """The parameters of a discipline as `rank_requests` hands them to a pointer, shape [1, p]."""
    return np.ascontiguousarray(parameters).view(np.float64).reshape(1, -1)
