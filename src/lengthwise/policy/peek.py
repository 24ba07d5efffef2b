"""Looking before ordering: waiting requests are prefilled early, so that the probe can read them.

A prompt's own hidden states tell more of its answer than its words do, and they are there once it
has been computed, which has to be done anyway. So a running request lends its slot for the steps of
a look: the newcomer is let in, prefilled, and gives its first token; then the lender goes on, the
newcomer is put aside with its KV, and from then on it is ordered by what the probe said. If it
turned out to be short, it takes a slot by the rule for swaps, as anyone does.

Nothing is computed twice, and a look's tokens are tokens of an answer. What it costs is order: the
prefill of a long answer, done early, keeps everybody else waiting. So a prefill must be cheap
against the decode that it may move, at measured prices; and what a look holds must not be missed by
those that run.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.policy.pausing import (
    BLOCKS,
    PLACES,
    TOKENS,
    adapter_fits,
    comes_in,
    growth_meanwhile,
    last_to_lend,
)
from lengthwise.policy.select import Rows, growth, prompt_blocks, uncached_tokens
from lengthwise.request import BY_PROBE, LENT, LOOKED, LOOKING, PAUSED, RUNNING, RequestTable

#: What a prefill may cost of the decode that its prompt is expected to need.
CHEAP: Final = 0.2


@compiled
def end_looks(facts: Any, runners: NDArray[np.void], table: RequestTable) -> NDArray[np.void]:
    """Those that were looked at are put aside, and those that lent their slots go on.

    Args:
        facts: a FACTS record; the numbers of slots and running requests are brought up to date.
        runners: array of RUNNER.
        table: array of REQUEST.

    Returns:
        The runners as `choose_active` takes them: who was read counts as paused, who lent its slot
        as running.
    """
    runners = runners.copy()
    over, fate = 0, np.zeros(len(runners), np.int8)
    for place in range(len(runners)):
        runner = runners[place]
        if not runner.paused and _is_read(runner, table):
            runner.paused, runner.may_make_way = True, False  # it is not freed in this very step
            over += 1
        fate[place] = runner.paused
    back, none = 0, np.empty(0, np.int64)
    for place in range(len(runners)):
        runner = runners[place]
        if table[runner.row].look != LENT or not runner.paused:
            continue
        if back < facts.free_slots + over and adapter_fits(
            facts, runners, table, fate, none, runner.row, -1
        ):
            runner.paused, runner.may_make_way = False, True
            fate[place] = 0
            back += 1
    facts.running += back - over
    facts.paused += over - back
    facts.free_slots += over - back
    return runners


@compiled
def settle_looks(
    facts: Any,
    runners: NDArray[np.void],
    active: NDArray[np.void],
    table: RequestTable,
    kept: Rows,
    paused: Rows,
) -> None:
    """Write down who runs for good, and who has been put aside.

    Args:
        facts: a FACTS record.
        runners: array of RUNNER, as the engine has them.
        active: the same, of `end_looks`.
        table: array of REQUEST.
        kept: places of those that run.
        paused: places of those that are paused.
    """
    facts.looking = 0
    for place in kept:
        request = table[runners[place].row]
        if runners[place].paused or active[place].paused:
            request.state, request.look = RUNNING, 0
        facts.looking += request.look == LOOKING
    for place in paused:
        request = table[runners[place].row]
        if not active[place].paused:
            request.look = 0  # it has made way for somebody
        elif not runners[place].paused:
            request.state, request.look = PAUSED, LOOKED
            request.pauses += 1
            request.paused_s = facts.now_s


@compiled
def choose_peeks(
    rules: Any,
    facts: Any,
    runners: NDArray[np.void],
    table: RequestTable,
    groups: NDArray[np.int64],
    ranks: NDArray[np.float64],
    waiting: Rows,
    kept: Rows,
    paused: Rows,
    front: Rows,
) -> tuple[Rows, Rows, Rows]:
    """Who is let in to be looked at, and who lends a slot for it; states are written.

    Args:
        rules: a RULES record.
        facts: a FACTS record.
        runners: array of RUNNER, as the engine has them.
        table: array of REQUEST.
        groups: of `rank_requests`.
        ranks: of `rank_requests`.
        waiting: the waiting rows that may come in, in order.
        kept: places of those that run.
        paused: places of those that are paused.
        front: the waiting rows that come in for good.

    Returns:
        The same with looks: places of those that run and that are paused, and who comes in.
    """
    remaining = np.empty(len(kept) + len(front))
    left = np.zeros(4, np.int64)
    left[PLACES] = facts.free_places - len(front)
    left[BLOCKS], left[TOKENS] = facts.free_blocks, facts.token_budget
    for k in range(len(kept)):
        runner = runners[kept[k]]
        remaining[k] = table[runner.row].remaining
        left[BLOCKS] -= growth(facts, runner)
        left[TOKENS] -= runner.wanted_tokens
    for k in range(len(front)):
        request = table[front[k]]
        request.look = 0
        remaining[len(kept) + k] = request.remaining
        left[BLOCKS] -= prompt_blocks(facts, request)
        left[TOKENS] -= uncached_tokens(request)
    fate = np.ones(len(runners), np.int8)  # 0 for those that run, as `adapter_fits` has it
    for place in kept:
        fate[place] = 0
    come, lenders = front.copy(), np.empty(rules.max_swaps, np.int64)
    looks = 0
    for row in waiting:
        if looks == rules.max_swaps or left[PLACES] <= len(kept) + len(front):
            break  # places are kept for those whose turn comes
        request = table[row]
        if (come == row).any() or not _is_worth_it(facts, request):
            continue
        lender = _last(facts, runners, table, groups, ranks, fate, come, row)
        if lender < 0:
            break
        needed = growth_meanwhile(facts, remaining, -1, request.remaining)
        spare = growth(facts, runners[lender])
        if not comes_in(facts, request, left, spare - needed):
            break
        left[BLOCKS] += spare
        left[TOKENS] += runners[lender].wanted_tokens
        fate[lender] = 1
        lenders[looks] = lender
        looks += 1
        come = np.append(come, row)
        request.look = LOOKING
    facts.looking += looks
    running = np.empty(len(kept), np.int64)
    size = 0
    for place in kept:
        if fate[place] == 0:
            running[size] = place
            size += 1
    for place in lenders[:looks]:
        request = table[runners[place].row]
        request.state, request.look = PAUSED, LENT
        request.pauses += 1
        request.paused_s = facts.now_s
    return running[:size], np.append(paused, lenders[:looks]), come


@compiled
def _is_worth_it(facts: Any, request: Any) -> bool:
    """Whether the probe may know more of a waiting request, and it is cheap to ask."""
    if request.age > 0 or request.predicted == BY_PROBE:
        return False
    return bool(facts.token_work * uncached_tokens(request) <= CHEAP * request.remaining)


@compiled
def _is_read(runner: Any, table: RequestTable) -> bool:
    """Whether a request that runs was only looked at, and that is over."""
    return bool(table[runner.row].look == LOOKING and runner.age > 0 and runner.may_make_way)


@compiled
def _last(
    facts: Any,
    runners: NDArray[np.void],
    table: RequestTable,
    groups: NDArray[np.int64],
    ranks: NDArray[np.float64],
    fate: NDArray[np.int8],
    come: Rows,
    row: int,
) -> int:
    """The last in order of those that may lend their slot to a row, -1 for none."""
    lends = np.empty(len(runners), np.bool_)
    for place in range(len(runners)):
        # One that is never to be preempted again does not lend its slot either.
        lender = runners[place].row
        lends[place] = table[lender].look != LOOKING and ranks[lender] != -math.inf
    return last_to_lend(facts, runners, table, groups, ranks, fate, come, row, lends)
