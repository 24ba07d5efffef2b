"""Choose a policy and its bounds for a workload, by simulation.

What to make better and what must not get worse are figures of a simulation beside fcfs. Candidates
are policies with bounds. All are simulated on the same arrivals as fcfs, judged by caps and gain,
and put in order.

The field is narrowed in rungs, each dearer per candidate than the last (as in successive halving,
Jamieson and Talwalkar, AISTATS 2016, arXiv 1502.07943): every bound under orders that never
preempt; the bounds that did best under those that do, with recompute and with pauses; of a long
trace up to here only the stretch with the most waiting; then the better ones on the whole of it;
and the best are judged on seeds that chose nothing, since the seeds that did flatter what they
chose.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.advise.sweep import Cell, Figures, Workload, arrivals_of, run_sweep
from lengthwise.errors import InputError, LengthwiseError, unknown_name
from lengthwise.intervals import standard_error
from lengthwise.policy.discipline import make_discipline
from lengthwise.simulate.simulation import simulate

Stage = Callable[[str, int], None]
Done = Callable[[int], None]

#: Latencies by the names that users write, and the keys of `sweep.summary`; lower is better.
LATENCIES: Final = {
    "mean-e2el": "mean_e2el_ms",
    "p50-e2el": "median_e2el_ms",
    "p95-e2el": "p95_e2el_ms",
    "p99-e2el": "p99_e2el_ms",
    "max-e2el": "max_e2el_ms",
    "mean-ttft": "mean_ttft_ms",
    "p50-ttft": "median_ttft_ms",
    "p99-ttft": "p99_ttft_ms",
    "max-ttft": "max_ttft_ms",
    "mean-tpot": "mean_tpot_ms",
    "p99-tpot": "p99_tpot_ms",
    "mean-latency-per-output-token": "mean_latency_per_output_token_ms",
    "p99-latency-per-output-token": "p99_latency_per_output_token_ms",
}

GOODPUT: Final = "goodput"
OBJECTIVES: Final = (
    "mean-e2el",
    "p50-e2el",
    "mean-latency-per-output-token",
    "mean-ttft",
    "p99-ttft",
    GOODPUT,
)

MAX_WAIT: Final = "max-wait-s"
MOST_S: Final = 10**9  #: of a cap on waiting: a bound of half of it is one that settings can have
MARGIN: Final = 0.01  #: of a cap, to spare on every seed

FRESH_SEEDS: Final = 8
FRESH: Final = 1_000  #: where fresh seeds begin, counted from the seed that was given
NOTHING_TO_GAIN: Final = 0.01  #: a change of the objective below which order makes no difference

_STRETCH: Final = 20_000  # requests that a field is narrowed on: an hour at 5.5 a second
_SLACK: Final = 1.1  # times a cap there, since a stretch tells the tail of the whole roughly
_REFINED: Final = 8  # bounds that preempting policies are tried with
_KEPT: Final = 24  # candidates that are tried on the whole
_FINALISTS: Final = 4  # judged at once on fresh seeds, the most promising first
_BATCHES: Final = 3  # of finalists at most, until one passes


def require_objective(name: str) -> str:
    """The name, if it is one of OBJECTIVES.

    Raises:
        InputError: it is none; the message lists them.
    """
    if name not in OBJECTIVES:
        raise unknown_name("objective", name, OBJECTIVES)
    return name


def gain(objective: str, figures: Figures, fcfs: Figures) -> float:
    """How many times better than fcfs: fcfs / policy for latencies, policy / fcfs for goodput.

    Goodput counts as one request where there was none, so that the quotient exists.
    """
    if objective == GOODPUT:
        ours, theirs = (
            max(each["request_goodput"], 1.0 / each["duration"]) for each in (figures, fcfs)
        )
        return float(ours / theirs)
    return 1.0 / times_fcfs(objective, figures, fcfs)


def times_fcfs(metric: str, figures: Figures, fcfs: Figures) -> float:
    """A latency as a multiple of that under fcfs; 1 where neither has it."""
    ours, theirs = figures.get(LATENCIES[metric]), fcfs.get(LATENCIES[metric])
    return float(ours / theirs) if ours and theirs else 1.0


@dataclass(frozen=True)
class Cap:
    """What a figure may be at most.

    Attributes:
        metric: one of LATENCIES, for which the limit is a multiple of that under fcfs on the same
            arrivals; or MAX_WAIT, the longest that any request waits for its first or its next
            token, for which the limit is in s.
        limit: above 0, and at most MOST_S of a wait.
    """

    metric: str
    limit: float

    def measured(self, figures: Figures, fcfs: Figures) -> float:
        """What the limit limits, in its unit."""
        if self.metric == MAX_WAIT:
            return float(figures["max_waiting_time_ms"]) / 1000.0
        return times_fcfs(self.metric, figures, fcfs)

    def __str__(self) -> str:
        """As in a sentence: p99-e2el ≤ 1.1 × fcfs."""
        unit = " s" if self.metric == MAX_WAIT else " × fcfs"
        return f"{self.metric.removesuffix('-s')} ≤ {self.limit:g}{unit}"


def parse_caps(texts: Iterable[str]) -> list[Cap]:
    """Caps as users write them: `p99-e2el=1.1` or `max-wait-s=30`.

    Raises:
        InputError: an unknown metric (the message lists them), one given twice, or a limit that is
            not above 0 or, of a wait, above MOST_S.
    """
    caps: dict[str, Cap] = {}
    for text in texts:
        metric, separator, value = text.partition("=")
        if metric not in (*LATENCIES, MAX_WAIT):
            raise unknown_name("cap", metric, (*LATENCIES, MAX_WAIT))
        try:
            limit = float(value)
        except ValueError:
            limit = math.nan
        if metric == MAX_WAIT and limit > MOST_S:
            raise InputError(f"--cap {text}: give at most {MOST_S:,} seconds, or leave it out")
        if not separator or not (math.isfinite(limit) and limit > 0.0):
            meaning = "seconds" if metric == MAX_WAIT else "times the figure of fcfs"
            raise InputError(
                f"--cap {text}: give a number above 0, in {meaning}, such as "
                f"{metric}={30 if metric == MAX_WAIT else 1.1}"
            )
        if metric in caps:
            raise InputError(f"--cap {metric} was given twice: give each once")
        caps[metric] = Cap(metric, limit)
    return list(caps.values())


# How many may overtake, times slots, and for each that a request found waiting; and shares of
# admissions in policy order. From the tightest, since of two that are equally good the first is
# taken.
_OVERTAKES: Final = (
    *((0.5, 0.0), (1.0, 0.0), (2.0, 0.0)),
    *((1.0, 0.25), (1.0, 0.5), (1.0, 1.0)),
    *((5.0, 0.0), (20.0, 0.0)),
)
_LEADS: Final = (50.0, 110.0)  # mean requests that may be served before one beyond the queue
_BLENDS: Final = (1.0, 0.95, 0.9, 0.7, 0.5)

#: Orders that do not preempt, and their refinements that do. Of those alike one is enough: ltr
#: orders as sjf does, since an expected length grows with the score, and so does an srpt or a trail
#: that never preempts.
ORDERS: Final = ("sjf", "hrrn")
REFINEMENTS: Final[tuple[tuple[str, dict[str, float]], ...]] = (
    ("srpt", {}),
    ("trail", {"c": 0.2}),
    ("trail", {"c": 0.5}),
    ("trail", {"c": 0.8}),
)
#: The same where whoever makes way keeps its KV, with bounds on its stall, s, the tightest first;
#: with a probe, also with looks at requests before their turn.
PAUSING: Final[tuple[tuple[str, dict[str, float]], ...]] = (("srpt", {}), ("gittins", {}))
_STALLS_S: Final = (2.0, 10.0)


@dataclass(frozen=True)
class Candidate:
    """Something to choose.

    Attributes:
        policy: its name.
        parameters: of the policy.
        guards: the other arguments of `make_discipline` that are not the defaults.
    """

    policy: str
    parameters: dict[str, float] = field(default_factory=dict)
    guards: dict[str, Any] = field(default_factory=dict)

    @property
    def discipline(self) -> dict[str, Any]:
        """The arguments of `make_discipline`, which are settings of `serve` too."""
        return {"policy": self.policy, "parameters": self.parameters, **self.guards}

    @property
    def label(self) -> str:
        """As `lengthwise simulate --policy` takes it."""
        options = {**self.parameters, **self.guards}.items()
        shown = ";".join(f"{name}={str(value).lower()}" for name, value in options)
        return f"{self.policy}:{shown}" if shown else self.policy


def orders(slots: int, caps: Sequence[Cap] = ()) -> Iterator[Candidate]:
    """Every order with every bound, the simplest and tightest first.

    Args:
        slots: of the engine, in which bounds on overtaking are counted.
        caps: one on waiting adds a bound on waiting, at half of it.
    """
    bounds: list[dict[str, Any]] = [
        {"max_overtakes": max(1, int(times * slots))} | ({"overtake_share": share} if share else {})
        for times, share in _OVERTAKES
    ]
    bounds += [{"max_lead": lead} for lead in _LEADS]
    bounds += [{"max_wait_s": 0.5 * cap.limit} for cap in caps if cap.metric == MAX_WAIT]
    for policy, bound, blend in itertools.product(ORDERS, (*bounds, {}), _BLENDS):
        yield Candidate(policy, {}, bound | ({"blend": blend} if blend < 1.0 else {}))


def refinements(
    bounds: Iterable[dict[str, Any]], pauses: bool = False, looks: bool = False
) -> Iterator[Candidate]:
    """Every preempting policy with each of these bounds.

    Args:
        bounds: arguments of `make_discipline`.
        pauses: there are places for paused requests.
        looks: there is a probe, which reads prompts before their turn.
    """
    bounds = list(bounds)
    for guards, (policy, parameters) in itertools.product(bounds, REFINEMENTS):
        yield Candidate(policy, parameters, guards)
    if not pauses:
        return
    peeks: tuple[dict[str, Any], ...] = ({}, {"peek": True}) if looks else ({},)
    for guards, (policy, parameters), stall_s, peek in itertools.product(
        bounds, PAUSING, _STALLS_S, peeks
    ):
        pausing = {"pausing": True, "max_stall_s": stall_s, **peek}
        yield Candidate(policy, parameters, {**guards, **pausing})


def grid(
    slots: int, caps: Sequence[Cap] = (), pauses: bool = False, looks: bool = False
) -> Iterator[Candidate]:
    """Every policy with every bound, for an exhaustive search."""
    found = list(orders(slots, caps))
    yield from found
    bounds = (each.guards for each in found if each.policy == ORDERS[0])
    yield from refinements(bounds, pauses, looks)


@dataclass(frozen=True)
class Judged:
    """A candidate beside fcfs on the same arrivals.

    Attributes:
        candidate: which.
        figures: see `sweep.summary`, one for each seed.
        fcfs: those of fcfs, one for each seed.
        gains: how many times better than fcfs on the objective, shape [seeds].
        measured: what each cap limits, in its unit, shape [seeds, caps]; without caps p99-e2el.
    """

    candidate: Candidate
    figures: list[Figures]
    fcfs: list[Figures]
    gains: NDArray[np.float64]
    measured: NDArray[np.float64]

    @property
    def gain(self) -> float:
        """Mean over the seeds."""
        return float(self.gains.mean())


@dataclass
class Player:
    """Plays candidates beside fcfs, and compares them."""

    base: Cell
    objective: str
    caps: tuple[Cap, ...]
    jobs: int | None
    stage: Stage
    done: Done
    simulations: int = 0
    baselines: dict[tuple[int, int], Figures] = field(default_factory=dict)

    def play(
        self, title: str, workload: Workload, some: Sequence[Candidate], seeds: Sequence[int]
    ) -> list[Judged]:
        """Simulate each with each seed; those whose worker died are left out."""
        names = [(len(workload.trace), seed) for seed in seeds]  # a stretch and the whole differ
        missing = [name for name in names if name not in self.baselines]
        asked = [(Candidate("fcfs"), seed) for _, seed in missing]
        asked += [(each, seed) for each in some for seed in seeds]
        cells = [
            replace(self.base, label=each.label, discipline=each.discipline, seed=seed)
            for each, seed in asked
        ]
        self.stage(title, len(cells))
        rows = run_sweep(cells, workload, jobs=self.jobs, done=self.done)
        self.simulations += len(cells)
        self.baselines.update(zip(missing, rows, strict=False))
        fcfs = [self.baselines[name] for name in names]
        for row in fcfs:
            if "error" in row:
                raise LengthwiseError(f"fcfs could not be simulated: {row['error']}")
        rows = rows[len(missing) :]
        groups = [rows[start : start + len(seeds)] for start in range(0, len(rows), len(seeds))]
        return [
            self._judge(each, group, fcfs)
            for each, group in zip(some, groups, strict=True)
            if not any("error" in row for row in group)
        ]

    def _judge(self, candidate: Candidate, rows: list[Figures], fcfs: list[Figures]) -> Judged:
        pairs = list(zip(rows, fcfs, strict=True))
        gains = np.array([gain(self.objective, row, base) for row, base in pairs])
        axes = self.caps or (Cap("p99-e2el", math.inf),)
        measured = np.array([[cap.measured(row, base) for cap in axes] for row, base in pairs])
        return Judged(candidate, rows, fcfs, gains, measured)

    def use(self, judged: Judged) -> float:
        """How much of its caps a candidate uses up, 1 for all, by the worst cap and seed."""
        limits = [cap.limit for cap in self.caps] or [math.inf]
        return float((judged.measured / limits).max())

    def passes(self, judged: Judged) -> bool:
        """Whether it betters fcfs and keeps the caps, with every seed."""
        return bool(judged.gains.min() > 1.0) and self.use(judged) <= 1.0 - MARGIN

    def best(self, some: Sequence[Judged], slack: float) -> list[Judged]:
        """Those within the caps times `slack` by their gain, then the others by their excess.

        Where gains are alike to the third digit the order given, from the simplest, remains.
        """
        return sorted(some, key=lambda each: (max(self.use(each), slack), -round(each.gain, 3)))

    def front(self, some: Sequence[Judged], chosen: Judged | None = None) -> list[Judged]:
        """The choice, and all that nothing betters both on the objective and the first cap.

        Steps of less than two per cent are left out.
        """
        front: list[Judged] = []
        for each in sorted(some, key=lambda each: (_first(each), -each.gain)):
            if each is chosen or not front or each.gain > 1.02 * max(seen.gain for seen in front):
                front.append(each)
        return front

    def why_none(self, fcfs: Judged, tried: Sequence[Judged]) -> str:
        """Why nothing but fcfs was left."""
        caps = " and ".join(map(str, self.caps))
        broken = self.use(fcfs) > 1.0
        if not any(self.use(each) <= 1.0 - MARGIN for each in tried):
            return (
                f"no candidate keeps {caps}, and neither does fcfs"
                if broken
                else f"no other candidate keeps {caps}"
            )
        within = f" within {caps}" if caps else ""
        beyond = ", which fcfs itself does not keep" if broken else ""
        return f"no candidate is better on {self.objective}{within}{beyond}"


def _first(judged: Judged) -> float:
    """What the first cap limits."""
    return float(judged.measured[:, 0].mean())


@dataclass(frozen=True)
class Tuning:
    """What was chosen, and why.

    Attributes:
        chosen: the choice, on fresh seeds unless it is fcfs.
        reason: in a clause, why nothing but fcfs was left; else empty.
        ideal: shortest first with true lengths and without bounds, for comparison: what never
            preempts or what does, whichever gains more.
        front: the choice, and what of fcfs and all that was tried on the whole workload is bettered
            by none both on the objective and on the first cap (p99-e2el without one); by that cap.
        finalists: what was judged on fresh seeds.
        simulations: how many it took.
    """

    chosen: Judged
    reason: str
    ideal: Judged
    front: list[Judged]
    finalists: list[Judged]
    simulations: int


def tune(
    workload: Workload,
    base: Cell,
    objective: str,
    caps: Sequence[Cap],
    *,
    jobs: int | None = None,
    stage: Stage = lambda title, total: None,
    done: Done = lambda finished: None,
) -> Tuning:
    """Choose what gains most on the objective within the caps.

    A choice must better fcfs, and keep all caps with a MARGIN to spare, on each of FRESH_SEEDS
    seeds that took no part in finding it. Of those within a standard error of the best the simplest
    with the tightest bounds is taken.

    Args:
        workload: the requests.
        base: engine, costs, load, predictor, service-level objectives and seed; its discipline is
            replaced.
        objective: one of OBJECTIVES.
        caps: what must be kept.
        jobs: processes at once; None for one a core.
        stage: told what begins, and how many simulations it takes.
        done: told how many of them are behind.

    Raises:
        InputError: something cannot be simulated; see `simulate`.
        LengthwiseError: fcfs could not be simulated.
    """
    if math.isfinite(workload.trace.rate):
        # Once, since a stretch has another rate than the whole.
        workload = Workload(arrivals_of(base, workload.trace), workload.predictions)
        base = replace(base, load="trace")
    player = Player(base, objective, tuple(caps), jobs, stage, done)
    seed = (base.seed,)
    pauses, looks = base.engine.places > base.engine.slots, base.probe is not None
    told = [Candidate("oracle-sjf"), Candidate("oracle", {}, {"pausing": True} if pauses else {})]
    fcfs, *told_apart = player.play(
        "simulating fcfs and true lengths", workload, [Candidate("fcfs"), *told], seed
    )
    ideal = max(told_apart, key=lambda each: each.gain)
    # Shortest first is not what goodput asks for.
    if objective != GOODPUT and all(abs(each.gain - 1.0) < NOTHING_TO_GAIN for each in told_apart):
        reason = (
            "there is nothing to gain: even with true lengths, shortest first changes "
            f"{objective} by {abs(ideal.gain - 1.0):.1%}, as hardly anything queues"
        )
        return Tuning(fcfs, reason, ideal, [fcfs], [], player.simulations)

    part = _stretch(workload, base)
    plain = list(orders(base.engine.slots, caps))
    tried = player.play("trying bounds", part, plain, seed)
    refined = list(_refinements(player.best(tried, _SLACK), pauses, looks))
    tried += player.play("trying preemption", part, refined, seed)
    if part is not workload:
        kept = player.best(tried, _SLACK)[:_KEPT] + player.front(tried)
        labels = {each.candidate.label for each in kept}
        some = [each for each in (*plain, *refined) if each.label in labels]
        tried = player.play("trying the better ones on the whole", workload, some, seed)

    finalists: list[Judged] = []
    passed: list[Judged] = []
    promising = [each for each in _distinct(player.best(tried, 1.0)) if player.passes(each)]
    for batch in range(0, min(len(promising), _BATCHES * _FINALISTS), _FINALISTS):
        some = [each.candidate for each in promising[batch : batch + _FINALISTS]]
        finalists += player.play("judging on fresh seeds", workload, some, _fresh(base, workload))
        passed = [each for each in finalists if player.passes(each)]
        if passed:
            break
    order = [each.label for each in (*plain, *refined)]
    chosen = _choose(passed, order) or fcfs
    reason = "" if passed else player.why_none(fcfs, tried)
    judged = {each.candidate.label: each for each in (*tried, *finalists)}
    front = player.front([fcfs, *judged.values()], chosen)
    return Tuning(chosen, reason, ideal, front, finalists, player.simulations)


def _refinements(best: Sequence[Judged], pauses: bool, looks: bool) -> Iterator[Candidate]:
    """Preempting policies, with the bounds under which shortest first did best."""
    shortest = [each for each in best if each.candidate.policy == ORDERS[0]]
    bounds = (each.candidate.guards for each in _distinct(shortest)[:_REFINED])
    yield from refinements(bounds, pauses, looks)


def _choose(passed: Sequence[Judged], order: Sequence[str]) -> Judged | None:
    """Of those within a standard error of the best, the first in order."""
    best = max(passed, key=lambda each: each.gain, default=None)
    if best is None:
        return None
    least = best.gain - standard_error(best.gains)
    good = [each for each in passed if each.gain >= least]
    return min(good, key=lambda each: order.index(each.candidate.label))


def _distinct(some: Sequence[Judged]) -> list[Judged]:
    """The first of those that are alike, in the order given."""
    found: dict[tuple[float, ...], Judged] = {}
    for each in some:
        measured = each.measured.mean(axis=0).round(2)
        found.setdefault((round(each.gain, 3), *measured), each)
    return list(found.values())


def _fresh(base: Cell, workload: Workload) -> range:
    """Seeds that nothing was chosen on; one is enough where nothing is drawn."""
    noisy = any(str(each).startswith("noisy-oracle") for each in (base.predictor, base.probe))
    drawn = noisy or (
        base.load not in ("trace", "burst") and not math.isfinite(workload.trace.rate)
    )
    return range(base.seed + FRESH, base.seed + FRESH + (FRESH_SEEDS if drawn else 1))


def _stretch(workload: Workload, base: Cell) -> Workload:
    """The stretch of so many requests that wait longest under fcfs; all where there are few."""
    trace = workload.trace
    if len(trace) <= _STRETCH or not math.isfinite(trace.rate):
        return workload
    served = simulate(trace, make_discipline("fcfs"), base.cost, base.engine).requests
    waited = np.concatenate([[0.0], np.cumsum(served["scheduled_s"] - served["arrival_s"])])
    start = int(np.argmax(waited[_STRETCH:] - waited[:-_STRETCH]))
    first, last = trace.arrival_s[[start, min(start + _STRETCH, len(trace) - 1)]]
    if first == last:  # they arrive at once: a part would be another load
        return workload
    rows = slice(*np.searchsorted(trace.arrival_s, [first, last]))
    predictions = workload.predictions
    return Workload(trace.between(first, last), None if predictions is None else predictions[rows])
