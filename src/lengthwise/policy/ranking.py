"""The ranking of one step: derived fields brought up to date, then every request ranked once.

Ranks are computed once and then frozen, since the engine looks at a request, allocates for it and
only then takes it: all three must see the same one. One pass costs about 5 ns a request, so even
100,000 waiting requests cost less than one engine step.

A policy's ranking is the address of a compiled function. Whatever takes a ranking takes an integer
and is compiled once, for every policy there is or will be, and kept on disk; only the ranking
itself is compiled for each policy. It is the whole pass over the table and not one rank, since a
call through a pointer costs as much as ten ranks. An integer and not a function of numba's: to find
the type of one takes 25 µs a call from Python.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, Final, NamedTuple

import numba
import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from lengthwise.compiled import compiled, compiled_by_name, compiled_here
from lengthwise.policy.facts import new_facts
from lengthwise.policy.guards import (
    BEHIND,
    OVERDUE,
    TIERS,
    guard_record,
    hastened,
    lateness,
    note_done,
    tier,
)
from lengthwise.policy.length_law import expected_remaining
from lengthwise.policy.order import Order
from lengthwise.policy.registry import Policy
from lengthwise.request import LOOKED, PAUSED, RUNNING, WAITING, new_table

_FLOATS: Final = types.Array(types.float64, 1, "C")
_PAIRS: Final = types.Array(types.int64, 2, "C")

#: Of `rank_requests`.
_SIGNATURE: Final = types.void(
    _FLOATS,
    numba.typeof(guard_record()),
    numba.typeof(new_facts(1, token_budget=1, block_size=1)[0]),
    numba.typeof(Order(new_table(1), np.zeros(1, np.int64), np.zeros(1))),
    _PAIRS,
    types.boolean,
)
_FUNCTION: Final = types.FunctionType(_SIGNATURE)
_OURS: Final = f"{__package__}.ranks"  # whose source is part of the key of compiled code


def ranking_of(rank: Any, parameters: np.dtype[np.void]) -> Callable[..., None]:
    """The pass over the table that ranks by a policy, to be compiled.

    Args:
        rank: the policy's compiled rank function.
        parameters: the record that it reads its parameters from.
    """

    def rank_requests(
        values: Any,
        guards: Any,
        facts: Any,
        order: Order,
        admitted: Any,
        everyone: bool,
    ) -> None:
        """Bring the derived fields up to date and rank the rows in use.

        Args:
            values: the policy's parameters as float64, one after the other.
            guards: array of one GUARDS record.
            facts: a FACTS record: its state and prices.
            order: written: derived fields, `overtaken`, `remaining` and what was done meanwhile of
                the requests, and the groups and ranks of their rows. A rank that is NaN becomes
                +inf.
            admitted: of each request admitted since the last call its arrival_index and its
                priority, shape [n, 2]: see `overtakers`. Who was only looked at is not among them.
            everyone: rank running and paused requests too, and not those alone that wait.
        """
        table, groups, ranks = order
        count, now, step, admissions = facts.rows, facts.now_s, facts.step, facts.admissions
        decoded, prefilled, token_work = facts.decoded, facts.prefilled, facts.token_work
        prefill_weight = facts.prefill_weight
        record = values.view(parameters)[0]
        done = decoded + token_work * prefilled
        mean_work = done / max(admissions, 1)
        queued_work = 0
        for i in range(count):
            request = table[i]
            if not _is_ranked(request, everyone):
                continue
            if request.state == PAUSED:
                request.stalled_s = now - request.paused_s
            request.wait_s = now - request.arrival_s
            request.idle_steps = step - request.last_step
            note_done(request, decoded, prefilled)
            if request.age > 0:
                # A prediction made later says what was still to come at that age.
                made = request.predicted_age
                request.remaining = expected_remaining(
                    request.expected - made,
                    request.low - made,
                    request.median - made,
                    request.high - made,
                    request.age - made,
                )
            # The last known token is computed in the step that gives the next one.
            held = request.cached_tokens if request.state == WAITING else request.computed_tokens
            known = request.prompt_tokens + request.age
            request.prefill_work = prefill_weight * max(known - held - 1, 0)
            if not _waits(request):
                continue
            # The whole prompt, since what is cached is looked up for a few only; and in whole
            # tokens, so that the sum does not depend on the order of the rows.
            known = known if request.state == WAITING else 0
            work = request.remaining + token_work * known
            if request.expected == 0.0:  # nothing is predicted: it counts as requests do so far
                work = mean_work
            queued_work += int(work + 0.5)
            request.overtaken += overtakers(request, admitted)
        for i in range(count):
            request = table[i]
            if not _is_ranked(request, everyone):
                continue
            if _waits(request):
                request.queued_work = max(request.queued_work, queued_work)
            of_answers = decoded - request.decoded_before
            of_prompts = prefilled - request.prefilled_before
            # What is done while it runs is not done before it; but where nothing is predicted, who
            # came first is late first.
            if request.predicted > 0:
                of_answers -= request.decoded_meanwhile
                of_prompts -= request.prefilled_meanwhile
            served = of_answers + token_work * of_prompts
            request.lateness = lateness(request, guards[0], served, mean_work)
            place = tier(request, guards[0])
            groups[i] = request.priority * TIERS + place
            if place == OVERDUE:
                ranks[i] = request.arrival_index
            else:
                value = rank(request, now, record)
                # Whose tenant is ahead waits for others, however late it gets.
                late = 0.0 if place == BEHIND else request.lateness
                ranks[i] = math.inf if math.isnan(value) else hastened(value, late)

    return rank_requests


@compiled
def overtakers(request: Any, admitted: NDArray[np.int64]) -> int:
    """How many of those admitted overtook a waiting request: later arrivals of its own class or of
    a lower one. Higher classes go first whatever the policy says, and count against nobody."""
    arrived, priority = request.arrival_index, request.priority
    count = 0
    for k in range(len(admitted)):
        count += int(admitted[k, 0] > arrived and admitted[k, 1] >= priority)
    return count


@compiled
def _waits(request: Any) -> bool:
    """Whether its turn has not come; it may have been looked at, see `policy.peek`."""
    return bool(request.state == WAITING or request.look == LOOKED)


@compiled
def _is_ranked(request: Any, everyone: bool) -> bool:
    holds = request.state == RUNNING or request.state == PAUSED
    return bool(_waits(request) or (everyone and holds))


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
    ranking: Any = ranking_of(rank, parameters)
    function = rank.py_func
    if function.__module__ == _OURS and function.__qualname__.isidentifier():
        ranking = compiled_by_name(ranking, "-".join((function.__name__, *names)))
    else:  # a user's, which may be another one tomorrow
        ranking = compiled_here(ranking)
    result = ranking.get_compile_result(_SIGNATURE)
    return ranking, int(result.library.get_pointer_to_function(result.fndesc.llvm_func_name))


@compiled
def rank_one(
    address: int,
    values: NDArray[np.float64],
    guards: NDArray[np.void],
    facts: NDArray[np.void],
    order: Order,
    admitted: NDArray[np.int64],
    everyone: bool,
) -> None:
    """`rank` for code that is not compiled, from the ranking's parts; see `policy.prepass`."""
    rank(Ranking(address, values, guards), facts[0], order, admitted, everyone)
