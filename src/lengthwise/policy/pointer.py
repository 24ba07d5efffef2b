"""A policy's ranking of all requests as a function pointer.

The simulator is one large compiled function. With the ranking as a pointer, of the same type for
every policy, it is compiled once and kept on disk; only the ranking itself is compiled anew. The
pointer is one to the whole pass over the table, since a call through it costs as much as ten ranks.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numba
import numpy as np
from numba import types
from numpy.typing import NDArray

from lengthwise.policy.guards import guard_record
from lengthwise.policy.order import rank_requests
from lengthwise.policy.registry import Policy
from lengthwise.request import new_table

_FLOATS: Final = types.Array(types.float64, 1, "C")
_INTEGERS: Final = types.Array(types.int64, 1, "C")

#: `rank_requests` without its first argument, the parameters as float64 one after the other.
SIGNATURE: Final = types.void(
    _FLOATS,
    numba.typeof(guard_record()),
    numba.typeof(new_table(1)),
    types.int64,
    types.float64,
    types.int64,
    types.float64,
    _INTEGERS,
    types.boolean,
    _INTEGERS,
    _FLOATS,
)


def rank_pointer(policy: Policy) -> Any:
    """`rank_requests` for a policy, with the type that compiled code takes whatever the policy."""
    return _pointer(policy.rank, policy.parameter_record({}).dtype.names or ())


def parameter_values(parameters: NDArray[np.void]) -> NDArray[np.float64]:
    """The parameters of a discipline as a pointer takes them, shape [p]."""
    return np.ascontiguousarray(parameters).view(np.float64)


@cache
def _pointer(rank: Any, names: tuple[str, ...]) -> Any:
    parameters = np.dtype([(name, np.float64) for name in names])

    def ranking(
        values: Any,
        guards: Any,
        table: Any,
        count: int,
        now: float,
        step: int,
        prefill_weight: float,
        admitted: Any,
        everyone: bool,
        groups: Any,
        ranks: Any,
    ) -> None:
        rank_requests(
            rank,
            values.view(parameters),
            guards,
            table,
            count,
            now,
            step,
            prefill_weight,
            admitted,
            everyone,
            groups,
            ranks,
        )

    return numba.cfunc(SIGNATURE)(ranking)
