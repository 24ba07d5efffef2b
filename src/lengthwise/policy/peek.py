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
from lengthwise.policy.borrowed import borrowed
from lengthwise.policy.draft import (
    PAUSES,
    RUNS,
    Draft,
    adapter_fits,
    admit,
    comes_in,
    growth_meanwhile,
    keep,
    last_to_lend,
    new_draft,
    pause,
)
from lengthwise.policy.guards import OVERDUE, TIERS
from lengthwise.policy.order import Order
from lengthwise.policy.select import Rows, growth, uncached_tokens
from lengthwise.request import BY_PROBE, LENT, LOOKED, LOOKING, PAUSED, RUNNING

#: What a prefill may cost of the decode that its prompt is expected to need.
CHEAP: Final = 0.2


@compiled
def end_looks(facts: Any, runners: NDArray[np.void], order: Order) -> NDArray[np.void]:
    """Those that were looked at are put aside, and those that lent their slots go on.

    Args:
        facts: a FACTS record; the numbers of slots and running requests are brought up to date.
        runners: array of RUNNER.
        order: of all requests.

    Returns:
        The runners as `choose_active` takes them: who was read counts as paused, who lent its slot
        as running.
    """
    table, runners = order.table, runners.copy()
    over, draft = 0, new_draft(facts, len(runners), 0)
    for place in range(len(runners)):
        runner = runners[place]
        if not runner.paused and _is_read(table[runner.row], runner):
            runner.paused, runner.may_make_way = True, False  # it is not freed in this very step
            over += 1
        draft.fate[place] = PAUSES if runner.paused else RUNS
    back = 0
    for place in range(len(runners)):
        runner = runners[place]
        if table[runner.row].look != LENT or not runner.paused:
            continue
        if back < facts.free_slots + over and adapter_fits(
            facts, runners, order, draft, runner.row, -1
        ):
            runner.paused, runner.may_make_way = False, True
            draft.fate[place] = RUNS
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
    order: Order,
    kept: Rows,
    paused: Rows,
) -> None:
    """Write down who runs for good, and who has been put aside.

    Args:
        facts: a FACTS record.
        runners: array of RUNNER, as the engine has them.
        active: the same, of `end_looks`.
        order: of all requests.
        kept: places of those that run.
        paused: places of those that are paused.
    """
    table = order.table
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
    order: Order,
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
        order: of all requests.
        waiting: the waiting rows that may come in, in order.
        kept: places of those that run.
        paused: places of those that are paused.
        front: the waiting rows that come in for good.

    Returns:
        The same with looks: places of those that run and that are paused, and who comes in.
    """
    table = order.table
    remaining = np.empty(len(kept) + len(front))
    own = new_draft(facts, len(runners), len(front) + rules.max_swaps)
    draft: Draft = borrowed(own)
    left = draft.left[0]
    for k in range(len(kept)):
        keep(facts, runners, draft, kept[k])
        remaining[k] = table[runners[kept[k]].row].remaining
    for k in range(len(front)):
        admit(facts, order, draft, front[k])
        table[front[k]].look = 0
        remaining[len(kept) + k] = table[front[k]].remaining
    for row in waiting:
        if left.paused == rules.max_swaps or left.places <= len(kept) + len(front):
            break  # places are kept for those whose turn comes
        request = table[row]
        if (draft.admitted[: left.admitted] == row).any() or not _is_worth_it(facts, request):
            continue
        lends = _may_lend(runners, order)
        lender = last_to_lend(facts, runners, order, draft, row, lends)
        if lender < 0:
            break
        needed = growth_meanwhile(facts, remaining, -1, request.remaining)
        spare = growth(facts, runners[lender])
        if not comes_in(facts, order, draft, row, spare - needed):
            break
        left.blocks += spare
        left.tokens += runners[lender].wanted_tokens
        pause(draft, lender)
        request.look = LOOKING
    facts.looking += left.paused
    running = np.empty(len(kept), np.int64)
    size = 0
    for place in kept:
        if draft.fate[place] == RUNS:
            running[size] = place
            size += 1
    lenders = own.paused[: left.paused]
    for place in lenders:
        request = table[runners[place].row]
        request.state, request.look = PAUSED, LENT
        request.pauses += 1
        request.paused_s = facts.now_s
    return running[:size], np.append(paused, lenders), own.admitted[: left.admitted]


@compiled
def _is_worth_it(facts: Any, request: Any) -> bool:
    """Whether the probe may know more of a waiting request, and it is cheap to ask."""
    if request.age > 0 or request.predicted == BY_PROBE:
        return False
    return bool(facts.token_work * uncached_tokens(request) <= CHEAP * request.remaining)


@compiled
def _is_read(request: Any, runner: Any) -> bool:
    """Whether a request that runs was only looked at, and that is over."""
    return bool(request.look == LOOKING and runner.age > 0 and runner.may_make_way)


@compiled
def _may_lend(runners: NDArray[np.void], order: Order) -> NDArray[np.bool_]:
    """Which runners may lend their slots: nobody that is looked at, overdue, or safe to its end."""
    lends = np.empty(len(runners), np.bool_)
    for place in range(len(runners)):
        row = runners[place].row
        overdue = order.groups[row] % TIERS == OVERDUE
        looked_at = order.table[row].look == LOOKING
        lends[place] = not looked_at and not overdue and order.ranks[row] != -math.inf
    return lends
