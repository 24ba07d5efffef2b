"""The pre-pass in front of vLLM's own step: the decision, carried out.

`PausedCounts` corrects what vLLM's scheduler says of itself where requests may be paused. An engine
in which nobody can be paused does without: it would call these a few times a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.counters import Counters
from lengthwise.policy.discipline import make_discipline
from lengthwise.policy.guards import TIERS, Tenants, take_leads
from lengthwise.policy.prepass import (
    NO_ADMISSIONS,
    SPARE,
    StepOrder,
    begin_one,
    decide_one,
    look_one,
)
from lengthwise.policy.replay import Decision, RecordedStep
from lengthwise.request import LOOKED, LOOKING, PAUSED, RUNNING, LiveTable
from lengthwise.vllm.compat import requests, schedulers
from lengthwise.vllm.engine_facts import EngineFacts
from lengthwise.vllm.live_settings import Active
from lengthwise.vllm.observers import POLICY, Observers


class Planner:
    """Plans one step after the other for one scheduler.

    Ranking is put off until something asks for the order: where no slot is free and nothing may
    be preempted, a step costs the same with 100,000 waiting requests as with none.

    Args:
        scheduler: vLLM's scheduler.
        live: the table of its requests.
        counters: what is counted there.
        observers: know whether the policy is to be followed, and are told when it has raised.
        by_priority: vLLM's own order goes by priority class.

    Attributes:
        discipline: what decides; exchanged when the settings change.
        facts: what is known of the engine.
        tenants: whose the requests are.
        preempting: true while the planner itself preempts, rather than the parent for memory.
        paused: requests left out of the step, or of the last one between two steps.
        left_out: how many of them are in no queue of vLLM's now, while it plans a step.
        on_decision: called with every decision and what it was made from; None for nobody.
    """

    def __init__(
        self,
        scheduler: Any,
        live: LiveTable,
        counters: Counters,
        observers: Observers,
        by_priority: bool,
    ) -> None:
        self.discipline = make_discipline("fcfs")
        self.facts = EngineFacts(scheduler, live)
        self.tenants = Tenants()
        self.preempting = False
        self.paused: list[Any] = []
        self.left_out = 0
        self.on_decision: Callable[[RecordedStep, Decision], None] | None = None
        self._scheduler = scheduler
        self._live = live
        self._counters = counters
        self._observers = observers
        self._by_priority = by_priority
        self._parent_chooses_victims = False  # where memory runs out, by vLLM's own rule
        self._disciplines = self.discipline, self.discipline  # and while the policy is doubted
        self._order = StepOrder()
        self._unranked = live.table[:0]  # before this step's ranking, if that is recorded
        self._overtaking = NO_ADMISSIONS
        self._now = 0.0
        self._step = 0
        self._throttled = False
        self._gathered = False
        self._ranked = False
        self._handed_out = 0
        self._admitted: list[tuple[int, int]] = []  # see `policy.ranking`

    def use(self, active: Active) -> None:
        """The settings have changed."""
        # Under `--scheduling-policy priority`, that policy is what stock vLLM does.
        as_stock = self._by_priority and active.discipline.policy.name == "priority"
        self._disciplines = active.fcfs if as_stock else active.discipline, active.fcfs
        self.choose_order()

    def choose_order(self) -> None:
        """The policy's order; that of fcfs while its predictions are below the floor.

        To be called whenever that may have changed, rather than in each step.
        """
        discipline = self._disciplines[self._observers.doubts_policy]
        if discipline is self.discipline:
            return
        looks_end = self.discipline.peeks and not discipline.peeks
        self.discipline = discipline
        if looks_end:
            self._end_looks()
        self._parent_chooses_victims = self._by_priority and discipline.is_fcfs
        schedulers.let_parent_choose_victims(self._scheduler, self._parent_chooses_victims)

    def plan(self, now: float, step: int, throttled: bool) -> tuple[bool, list[int] | None]:
        """Prepare the step: preempt, arrange memory victims, choose who may come in.

        Args:
            now: the step's clock reading, seconds.
            step: the step's number.
            throttled: the parent was told to hold prefills back.

        Returns:
            Whether the queue is to be served in the policy's order, and the only rows to serve in
            this step, None for no limit.
        """
        self._now, self._step, self._throttled = now, step, throttled
        self._gathered, self._ranked, self._handed_out = False, False, 0
        if self.paused:
            self._take_out()
            still = bool(self.paused) and not self.discipline.pauses
            if still and schedulers.free_slots(self._scheduler) > 0:
                return True, []  # slots are kept for those whose adapters do not fit yet
        if self.discipline.is_fcfs and not self._scheduler.waiting.classes_matter:
            return False, None
        if not self.facts.may_decide(self.discipline, step, self.paused):
            return True, None
        try:
            front = self._decide() if self._gather() else None
        except Exception as error:  # a user's policy may do anything; requests are served
            self._abandon(error)
            return self._reorders, None
        if front is None and self.paused and self._scheduler.running:
            return True, []  # a slot that is free then is kept for one whose KV is being loaded
        return True, front

    def put_back(self) -> None:
        """Between two steps vLLM knows of the paused requests as of running ones."""
        self.left_out = 0
        self._scheduler.running.extend(self.paused)

    @property
    def paused_now(self) -> int:
        """Paused requests that have not ended since."""
        return sum(requests.is_running(request) for request in self.paused)

    def next_rows(self) -> list[int]:
        """The waiting rows that come next in this step's order."""
        try:
            return self._next_rows()
        except Exception as error:
            self._abandon(error)
            return self._next_rows()

    def admitted(self, row: int) -> None:
        """Note that a waiting request got a slot; the starvation guard may promote it."""
        self.facts.admissions += 1
        if not self._reorders:
            return
        columns = self._live.table[row]
        if columns["look"] == LOOKING:
            self._counters.peeks += 1
        else:
            self._admitted.append((int(columns["arrival_index"]), int(columns["priority"])))
        if not self.discipline.counts_steps:
            return
        guards = self.discipline.guards[0]
        if columns["promoted"] == 0 and columns["idle_steps"] >= guards["starvation_threshold"]:
            columns["promoted"] = guards["starvation_quantum"]
            self._counters.promotions += 1

    def place_of(self, row: int) -> tuple[float | None, int | None]:
        """A request's rank and tier in this step; None of either where nothing was ranked."""
        if not self._ranked:
            return None, None
        rank, group = float(self._order.ranks[row]), int(self._order.groups[row])
        return (rank if math.isfinite(rank) else None), group % TIERS

    def ran(self, request_ids: Iterable[str]) -> None:
        """Note which requests run in this step, for the guard that counts steps."""
        rows = np.array([self._live.row(request_id) for request_id in request_ids], np.int64)
        self._live.table["last_step"][rows] = self._step
        self._live.table["promoted"][rows] = np.maximum(self._live.table["promoted"][rows] - 1, 0)

    # Decision -------------------------------------------------------------------------------

    def _gather(self) -> bool:
        """Write the facts of this step; whether there may be anything to decide."""
        self._gathered = True
        return self.facts.gather(
            self.discipline, self._now, self._step, self.paused, self._throttled
        )

    def _decide(self) -> list[int] | None:
        """Preempt and put memory victims last; the only rows that may come in, None for all."""
        scheduler, table, chosen = self._scheduler, self._live.table, self.discipline
        # Where nobody is paused any longer, those that still are go on as slots get free.
        paused_before = self.paused if chosen.pauses else []
        running: list[Any] = [*scheduler.running, *paused_before]
        facts = self.facts.array
        runners = self.facts.runners(running, len(paused_before))
        if not begin_one(chosen.rules, facts, runners, table, chosen.values):
            return None
        self._rank(everyone=True)
        order = self._order.of(table)
        waiting = look_one(chosen.rules, facts, runners, order)
        self.facts.ask_of(running, runners, chosen)
        ready, failed = self.facts.ready(waiting, chosen)
        seen = table["look"][runners["row"]] if chosen.peeks else None
        recorded = None if self.on_decision is None else self._recorded(runners, ready)
        decision = decide_one(chosen.rules, facts, runners, order, waiting, ready)
        victims, front, limited, kept, paused = decision
        if self.on_decision is not None and recorded is not None:
            self.on_decision(recorded, Decision(*decision))
        self._preempt([running[place] for place in victims], runners["row"][victims])
        if self._parent_chooses_victims:
            kept = np.sort(kept)  # as it was: the tail is not where victims are taken from
        scheduler.running[:] = [running[place] for place in kept]
        if chosen.pauses:
            self._counters.pauses += int((paused < len(running) - len(paused_before)).sum())
            self.paused = [running[place] for place in paused]
            self.left_out = len(self.paused)
        if seen is not None:
            looked = (seen == LOOKING) | (seen == LOOKED)
            here = runners["row"][kept[looked[kept]]]
            # Those whose turn has come count as admitted from now on.
            self._count_admitted(here[table["look"][here] == 0])
        return [*failed, *front.tolist()] if limited else None

    def _recorded(self, runners: NDArray[np.void], ready: NDArray[np.bool_]) -> RecordedStep:
        chosen = self.discipline
        return RecordedStep(
            chosen.policy.name,
            chosen.rules,
            chosen.values.copy(),
            chosen.guards,
            self.facts.array.copy(),
            self._unranked,
            self._overtaking,
            runners.copy(),
            ready,
        )

    def _preempt(self, victims: list[Any], rows: NDArray[np.int64]) -> None:
        """Those that are PAUSED lose their memory to what runs, the others to a newcomer."""
        scheduler, states = self._scheduler, self._live.table["state"][rows].tolist()
        try:
            for victim, state in zip(victims, states, strict=True):
                self.preempting = state != PAUSED
                if victim in scheduler.running:  # else it was paused in the step before
                    scheduler.running.remove(victim)
                scheduler._preempt_request(
                    victim, self._now, drop_stale_output=scheduler.requires_kv_delivery
                )
        finally:
            self.preempting = False

    # Pauses ---------------------------------------------------------------------------------

    def _end_looks(self) -> None:
        """Nobody is looked at any longer: who has been runs, or is paused, as if its turn had come,
        and waits no more."""
        table = self._live.table[: self._live.count]
        looked = (table["look"] == LOOKING) | (table["look"] == LOOKED)
        holds = (table["state"] == RUNNING) | (table["state"] == PAUSED)
        if self._reorders:
            self._count_admitted(np.flatnonzero(looked & holds))
        table["look"] = 0

    def _count_admitted(self, rows: NDArray[np.int64]) -> None:
        """At the next ranking these count for those that they have overtaken."""
        table = self._live.table
        self._admitted += zip(
            table["arrival_index"][rows].tolist(), table["priority"][rows].tolist(), strict=True
        )

    def _take_out(self) -> None:
        """Who is paused and has not ended or been preempted since is kept out of the parent's
        step; the last of `running` are these."""
        self.paused = [request for request in self.paused if requests.is_running(request)]
        if self.paused:
            running = self._scheduler.running
            del running[len(running) - len(self.paused) :]
            if not self.discipline.pauses:
                self._go_on()
        self.left_out = len(self.paused)

    def _go_on(self) -> None:
        """Nobody is paused any longer: those that are go on before newcomers, as soon as there is a
        slot, and room for their adapters, of which vLLM takes no more than a batch may hold."""
        scheduler, live = self._scheduler, self._live
        room, rest = schedulers.Room(scheduler, adapters=True), []
        for request in self.paused:
            if schedulers.free_slots(scheduler) > 0 and room.take(request):
                live.table["state"][live.row(request.request_id)] = RUNNING
                scheduler.running.append(request)
            else:
                rest.append(request)
        self.paused = rest

    # Order ----------------------------------------------------------------------------------

    @property
    def _reorders(self) -> bool:
        """Whether the queue may be served in another order than its own."""
        return self._scheduler.waiting.classes_matter or not self.discipline.is_fcfs

    def _next_rows(self) -> list[int]:
        """More each time: whoever asks again has met requests that wait for something else."""
        self._rank(everyone=False)
        want = int(self.facts.array["free_slots"][0]) + SPARE + self._handed_out
        rows = self._first(want)
        self._handed_out += len(rows)
        return rows

    def _first(self, want: int) -> list[int]:
        live, before = self._live, self.facts.admissions + self._handed_out
        rows = self._order.first(self.discipline, live.table, live.count, want, before)
        return [int(row) for row in rows]

    def _rank(self, everyone: bool) -> None:
        """Rank all requests, or only those that wait, once a step.

        Whatever needs the ranks of running requests comes before the queue is asked.
        """
        if self._ranked:
            return
        self._ranked = True
        if not self._gathered:
            self._gather()
        if self.discipline.shares_service:
            take_leads(self.tenants.shares, self._live.table, self._live.count)
        if self.discipline.reads_prefix_cache:
            self._rank_by(everyone, NO_ADMISSIONS)
            # A look-up is too dear for all: those who would be next.
            for row in self._first(int(self.facts.array["free_slots"][0]) + SPARE):
                cached = schedulers.cached_tokens(self._scheduler, self._live.request(row))
                self._live.table["cached_tokens"][row] = cached
        admitted = np.array(self._admitted, np.int64).reshape(-1, 2)
        if self.on_decision is not None:
            self._unranked = self._live.table[: self._live.count].copy()
            self._overtaking = admitted
        self._rank_by(everyone, admitted)
        self._admitted.clear()

    def _rank_by(self, everyone: bool, admitted: NDArray[np.int64]) -> None:
        facts = self.facts.array
        facts["rows"] = self._live.count
        self._order.rank(self.discipline, self._live.table, facts, admitted, everyone)

    def _abandon(self, error: Exception) -> None:
        """The policy has raised: rank anew by the order of the queue.

        Where it had begun, overtaking is counted twice for some, which puts them nearer to the
        front: no bound is broken.
        """
        self._observers.contained.switch_off(POLICY, error)
        self.choose_order()
        self._ranked = False


class PausedCounts:
    """Goes before `LengthwiseMixin` and counts paused requests apart from those that run."""

    _planner: Planner

    def get_request_counts(self) -> tuple[int, int]:
        """Running and waiting requests; within a step, too, paused ones are there to be served."""
        running, waiting = super().get_request_counts()  # type: ignore[misc]
        return running + self._planner.left_out, waiting

    def make_stats(self, *args: Any, **kwargs: Any) -> Any:
        """The parent's, without paused requests among the running ones: see the gauges."""
        stats = super().make_stats(*args, **kwargs)  # type: ignore[misc]
        if stats is not None and self._planner.paused:
            stats.num_running_reqs -= self._planner.paused_now
        return stats
