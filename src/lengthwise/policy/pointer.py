"""A policy's ranking of all requests as the address of a compiled function.

Whatever takes a ranking takes an integer and is compiled once, for every policy there is or will
be, and kept on disk; only the ranking itself is compiled for each policy. It is the whole pass over
the table and not one rank, since a call through a pointer costs as much as ten ranks. An integer
and not a function of numba's: to find the type of one takes 25 µs a call from Python.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numba
import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.policy.guards import guard_record
from lengthwise.policy.order import ranking_of
from lengthwise.policy.registry import Policy
from lengthwise.request import RequestTable, new_table

_FLOATS: Final = types.Array(types.float64, 1, "C")
_INTEGERS: Final = types.Array(types.int64, 1, "C")
_PAIRS: Final = types.Array(types.int64, 2, "C")

#: Of `rank_requests`, in `policy.order`.
SIGNATURE: Final = types.void(
    _FLOATS,
    numba.typeof(guard_record()),
    numba.typeof(new_table(1)),
    types.int64,
    types.float64,
    types.int64,
    types.float64,
    types.float64,
    types.int64,
    types.int64,
    types.int64,
    _PAIRS,
    types.boolean,
    _INTEGERS,
    _FLOATS,
)
_FUNCTION: Final = types.FunctionType(SIGNATURE)


def ranking_address(policy: Policy) -> int:
    """Where `rank_requests` for a policy begins, compiled if it was not. It stays there for good.

    What a rank raises is raised by whoever calls it.
    """
    return _compiled(policy.rank, policy.parameter_record({}).dtype.names or ())[1]


def parameter_values(parameters: NDArray[np.void]) -> NDArray[np.float64]:
    """The parameters of a discipline as a ranking takes them, shape [p]; the same memory."""
    return parameters.view(np.float64)


@intrinsic  # type: ignore[untyped-decorator]
def _at(context: Any, address: Any) -> Any:
    """The function at an address, as compiled code calls it."""

    def code(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function = cgutils.create_struct_proxy(_FUNCTION)(target, builder)
        null = cgutils.get_null_value(function.c_addr.type)
        function.c_addr = function.py_addr = null
        function.jit_addr = builder.inttoptr(arguments[0], null.type)
        return function._getvalue()

    return _FUNCTION(types.int64), code


@compiled
def rank(
    ranking: int,
    values: NDArray[np.float64],
    guards: NDArray[np.void],
    table: RequestTable,
    count: int,
    now: float,
    step: int,
    prefill_weight: float,
    token_work: float,
    decoded: int,
    prefilled: int,
    admissions: int,
    admitted: NDArray[np.int64],
    everyone: bool,
    groups: NDArray[np.int64],
    ranks: NDArray[np.float64],
) -> None:
    """`rank_requests` of the policy whose ranking begins at the address `ranking`.

    Args:
        ranking: of `ranking_address`.
        values: of `parameter_values`.
        guards: see `rank_requests`, as are the others.
        table: see `rank_requests`.
        count: see `rank_requests`.
        now: see `rank_requests`.
        step: see `rank_requests`.
        prefill_weight: see `rank_requests`.
        token_work: see `rank_requests`.
        decoded: see `rank_requests`.
        prefilled: see `rank_requests`.
        admissions: see `rank_requests`.
        admitted: see `rank_requests`.
        everyone: see `rank_requests`.
        groups: see `rank_requests`.
        ranks: see `rank_requests`.
    """
    _at(ranking)(
        values,
        guards,
        table,
        count,
        now,
        step,
        prefill_weight,
        token_work,
        decoded,
        prefilled,
        admissions,
        admitted,
        everyone,
        groups,
        ranks,
    )


@cache
def _compiled(rank: Any, names: tuple[str, ...]) -> tuple[Any, int]:
    """The ranking, which has to be kept as long as its address is, and the address."""
    parameters = np.dtype([(name, np.float64) for name in names])
    ranking = numba.njit(SIGNATURE)(ranking_of(rank, parameters))
    result = ranking.get_compile_result(SIGNATURE)
    return ranking, int(result.library.get_pointer_to_function(result.fndesc.llvm_func_name))
