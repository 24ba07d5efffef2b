"""The built-in policies: each is a few lines, and the whole of its ordering.

Sources: LTR is Fu et al., "Efficient LLM Scheduling by Learning to Rank", NeurIPS 2024
(arXiv 2408.15792). TRAIL is Shahout et al., "Don't Stop Me Now: Embedding Based Scheduling for
LLMs", ICLR 2025 (arXiv 2410.01035). Skip-join MLFQ is FastServe, Wu et al. (arXiv 2305.05920).
HRRN (highest response ratio next) is Brinch Hansen's, 1971.
"""

from __future__ import annotations

import math
from typing import Any

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
    return float(request.expected)


@register("srpt", preemption="pays")
def srpt(request: Any, now: float, parameters: Any) -> float:
    """Shortest remaining processing time: the predicted remaining length."""
    return float(request.remaining)


@register("ltr")
def ltr(request: Any, now: float, parameters: Any) -> float:
    """Learning to rank: the predicted score (arXiv 2408.15792, algorithm 1).

    The paper's starvation prevention is the guard `starvation_threshold` (N) with
    `starvation_quantum` (M), counted in scheduler iterations.
    """
    return float(request.score)


@register("trail", parameters={"c": 0.8}, preemption="pays")
def trail(request: Any, now: float, parameters: Any) -> float:
    """TRAIL: remaining length with limited preemption (arXiv 2410.01035, section 3.3).

    A running request whose age has reached c times its first prediction is never preempted again.
    A *waiting* request past its cutoff keeps its remaining length: ranking it last, as the
    authors' released code does, would be the reverse of the theory.
    """
    if request.state == RUNNING and request.age >= parameters.c * request.expected:
        return -math.inf
    return float(request.remaining)


@register("hrrn")
def hrrn(request: Any, now: float, parameters: Any) -> float:
    """Highest response ratio next: (wait + service) / service, largest first.

    Service is the predicted remaining length. The order does not depend on the time per token,
    because scaling the service scales every ratio's excess over one alike.
    """
    return float(-request.wait_s / max(request.remaining, 1.0))


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
    return float(request.remaining)


@register("oracle-sjf", predictor="oracle")
def oracle_sjf(request: Any, now: float, parameters: Any) -> float:
    """sjf that knows the true lengths: the bound without preemption."""
    return float(request.expected)
