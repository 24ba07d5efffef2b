"""The built-in policies: each is a few lines, and the whole of its ordering.

Sources: LTR is Fu et al., "Efficient LLM Scheduling by Learning to Rank", NeurIPS 2024
(arXiv 2408.15792). TRAIL is Shahout et al., "Don't Stop Me Now: Embedding Based Scheduling for
LLMs", ICLR 2025 (arXiv 2410.01035). Skip-join MLFQ is FastServe, Wu et al. (arXiv 2305.05920).
HRRN (highest response ratio next) is Brinch Hansen's, 1971. The Gittins index is explained in
`policy.length_law`. TIE is Zheng et al., "Scheduling LLM Inference with Uncertainty-Aware Output
Length Predictions", ICML 2026 (arXiv 2604.00499).

A rank that is a length counts `prefill_work` too, which is 0 unless the setting `service_time` is
on: then it is a time, in output tokens of work. TRAIL's comparisons (trail-bert, trail+, sjf-bert)
do not.
"""

from __future__ import annotations

import math
from typing import Any

from lengthwise.policy.length_law import expected_tail, inverse_gittins_index
from lengthwise.policy.registry import register
from lengthwise.request import RUNNING


@register("fcfs", predicts=False)
def fcfs(request: Any, now: float, parameters: Any) -> float:
    """First come, first served: the queue's own order, exactly as stock vLLM.

    The rank is the place in the queue and not the arrival time, which is the client's clock.
    """
    return float(request.sequence)


@register("priority", predicts=False)
def priority(request: Any, now: float, parameters: Any) -> float:
    """The request's priority class, and within a class the order of arrival.

    The class is the outermost key under every policy, so only the order of arrival is left.
    """
    return float(request.arrival_index)


@register("sjf")
def sjf(request: Any, now: float, parameters: Any) -> float:
    """Shortest job first: the predicted total length, never preempting."""
    return float(request.expected + request.prefill_work)


@register("srpt", preemption="pays")
def srpt(request: Any, now: float, parameters: Any) -> float:
    """Shortest remaining processing time: the predicted remaining length."""
    return float(request.remaining + request.prefill_work)


@register("deadline", preemption="pays")
def deadline(request: Any, now: float, parameters: Any) -> float:
    """srpt for requests without a deadline; others move to the front as theirs comes near.

    The remaining length is scaled by the share of the time to the first token that is left. As that
    runs out every rank goes to 0, and equal ranks run first come, first served. A deadline that is
    met, or that cannot be met any more, counts no longer.
    """
    work = request.remaining + request.prefill_work
    left_s = request.deadline_s - request.wait_s
    if request.age > 0 or left_s <= 0.0:
        return float(work)
    return float(work * left_s / request.deadline_s)


@register("ltr")
def ltr(request: Any, now: float, parameters: Any) -> float:
    """Learning to rank: the predicted score (arXiv 2408.15792, algorithm 1).

    The paper's starvation prevention is the guard `starvation_threshold` (N) with
    `starvation_quantum` (M), counted in scheduler iterations.
    """
    return float(request.score)


@register("trail", parameters={"c": 0.8}, preemption="pays", adapts="c")
def trail(request: Any, now: float, parameters: Any) -> float:
    """TRAIL: remaining length with limited preemption (arXiv 2410.01035, section 3.3).

    A running request whose age has reached c times its first prediction is never preempted again.
    The first prediction is the one of the whole answer that was there at its first token, whatever
    was learnt later. A *waiting* request past its cutoff keeps its remaining length: ranking it
    last, as the authors' released code does, would be the reverse of the theory.
    """
    if request.state == RUNNING and request.age >= parameters.c * request.initial:
        return -math.inf
    return float(request.remaining + request.prefill_work)


@register("gittins", preemption="pays")
def gittins(request: Any, now: float, parameters: Any) -> float:
    """The Gittins index: the best chance to be done soon, given how sure the prediction is.

    Of two answers with the same expected length, the one that may end early goes first; one that
    has outlived its prediction goes back.
    """
    return float(
        inverse_gittins_index(
            request.prefill_work,
            request.expected,
            request.low,
            request.median,
            request.high,
            request.age,
        )
    )


@register("tie", parameters={"beta": 0.3, "decay": 0.9, "decay_s": 30.0})
def tie(request: Any, now: float, parameters: Any) -> float:
    """Tail-inflated expectation: the expected length plus beta times that of its longest tenth.

    The rank shrinks by the factor `decay` in every `decay_s` seconds of waiting (arXiv 2604.00499,
    equation 11 and section 5). There beta follows the queue's length between 0.1 and 0.5; here it
    is fixed, since a rank is a function of one request.
    """
    inflated = request.expected + parameters.beta * expected_tail(
        request.expected, request.low, request.high
    )
    inflated += request.prefill_work
    return float(inflated * parameters.decay ** (request.wait_s / parameters.decay_s))


@register("trail-bert", parameters={"c": 0.8}, preemption="pays", adapts="c", refines=False)
def trail_bert(request: Any, now: float, parameters: Any) -> float:
    """TRAIL's baseline: the same rule with the prompt's prediction alone, counted down."""
    if request.state == RUNNING and request.age >= parameters.c * request.initial:
        return -math.inf
    return float(request.remaining)


@register("trail+", parameters={"c": 0.8}, preemption="pays", adapts="c", predictor="oracle")
def trail_plus(request: Any, now: float, parameters: Any) -> float:
    """TRAIL's bound: the same rule with the true lengths."""
    if request.state == RUNNING and request.age >= parameters.c * request.initial:
        return -math.inf
    return float(request.remaining)


@register("sjf-bert", refines=False)
def sjf_bert(request: Any, now: float, parameters: Any) -> float:
    """TRAIL's baseline: requests that have not run yet first, then the shortest predicted answer.

    Those that had to be preempted for memory come last, since they have been served before.
    """
    return float(request.expected + (1e9 if request.age > 0 else 0.0))


@register("hrrn")
def hrrn(request: Any, now: float, parameters: Any) -> float:
    """Highest response ratio next: (wait + service) / service, largest first.

    Service is the predicted remaining length. The order does not depend on the time per token,
    because scaling the service scales every ratio's excess over one alike.
    """
    service = request.remaining + request.prefill_work
    return float(-request.wait_s / max(service, 1.0))


@register("shortest-prefill-first", predicts=False, reads_prefix_cache=True)
def shortest_prefill_first(request: Any, now: float, parameters: Any) -> float:
    """The fewest prompt tokens still to compute: prompt minus what the prefix cache holds."""
    return float(request.prompt_tokens - request.cached_tokens)


@register(
    "mlfq",
    parameters={"quantum": 16.0, "growth": 2.0, "levels": 8.0, "prefill_cost": 1.0 / 64.0},
    preemption="greedy",
    predicts=False,
)
def mlfq(request: Any, now: float, parameters: Any) -> float:
    """Skip-join multi-level feedback queue: no prediction, levels by service received.

    Level k has a quantum of quantum · growth^k output tokens. A request joins at the first level
    whose quantum covers its prefill (`prefill_cost` decode steps a prompt token) and moves down
    one level each time it has used a quantum up (FastServe, arXiv 2305.05920, section 4.1).
    """
    quantum = parameters.quantum
    level = 0.0
    last = parameters.levels - 1.0
    prefill = request.prompt_tokens * parameters.prefill_cost
    while level < last and quantum < prefill:
        quantum *= parameters.growth
        level += 1.0
    used = request.age + 0.0
    while level < last and used >= quantum:
        used -= quantum
        quantum *= parameters.growth
        level += 1.0
    return level


@register("oracle", preemption="pays", predictor="oracle")
def oracle(request: Any, now: float, parameters: Any) -> float:
    """srpt that knows the true lengths: the bound that predictions are compared with."""
    return float(request.remaining + request.prefill_work)


@register("oracle-sjf", predictor="oracle")
def oracle_sjf(request: Any, now: float, parameters: Any) -> float:
    """sjf that knows the true lengths: the bound without preemption."""
    return float(request.expected + request.prefill_work)
