"""A policy's ranking of all requests as the address of a compiled function.

Whatever takes a ranking takes an integer and is compiled once, for every policy there is or will
be, and kept on disk; only the ranking itself is compiled for each policy. It is the whole pass over
the table and not one rank, since a call through a pointer costs as much as ten ranks. An integer
and not a function of numba's: to find the type of one takes 25 µs a call from Python.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final, NamedTuple

import numba
import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.policy.facts import new_facts
from lengthwise.policy.guards import guard_record
from lengthwise.policy.order import Order
from lengthwise.policy.ranking import ranking_of
from lengthwise.policy.registry import Policy
from lengthwise.request import new_table

_FLOATS: Final = types.Array(types.float64, 1, "C")
_PAIRS: Final = types.Array(types.int64, 2, "C")

#: Of `rank_requests`, in `policy.ranking`.
SIGNATURE: Final = types.void(
    _FLOATS,
    numba.typeof(guard_record()),
    numba.typeof(new_facts(1, token_budget=1, block_size=1)[0]),
    numba.typeof(Order(new_table(1), np.zeros(1, np.int64), np.zeros(1))),
    _PAIRS,
    types.boolean,
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


class Ranking(NamedTuple):
    """How a discipline ranks.

    Attributes:
        address: of `ranking_address`.
        values: of `parameter_values`.
        guards: array of one GUARDS record.
    """

    address: int
    values: NDArray[np.float64]
    guards: NDArray[np.void]


@compiled
def rank(
    ranking: Ranking,
    facts: Any,
    order: Order,
    admitted: NDArray[np.int64],
    everyone: bool,
) -> None:
    """Rank the requests; see `rank_requests`.

    Args:
        ranking: the discipline's.
        facts: a FACTS record: its state and prices.
        order: written.
        admitted: arrival_index and priority of those admitted since the last call, shape [n, 2].
        everyone: rank running and paused requests too, and not those alone that wait.
    """
    _at(ranking.address)(ranking.values, ranking.guards, facts, order, admitted, everyone)


@cache
def _compiled(rank: Any, names: tuple[str, ...]) -> tuple[Any, int]:
    """The ranking, which has to be kept as long as its address is, and the address."""
    parameters = np.dtype([(name, np.float64) for name in names])
    ranking = numba.njit(SIGNATURE)(ranking_of(rank, parameters))
    result = ranking.get_compile_result(SIGNATURE)
    return ranking, int(result.library.get_pointer_to_function(result.fndesc.llvm_func_name))
