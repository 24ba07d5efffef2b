"""A policy of your own: shortest remaining answer first, until patience runs out.

lengthwise bench prompts.parquet --policy 'fcfs,examples/own_policy.py#patient' --burst ...
"""

from lengthwise.policy import register


@register("patient", parameters={"patience_s": 10.0}, preemption="pays")
def patient(request, now, parameters):
    """Shortest remaining first; a request that waited `patience_s` goes ahead of them."""
    if request.wait_s > parameters.patience_s:
        return -request.wait_s
    return request.remaining
