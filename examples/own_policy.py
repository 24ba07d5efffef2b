"""A policy of your own: the shortest answer first, until patience runs out."""

from lengthwise.policy import register


@register("patient", parameters={"patience_s": 10.0}, preemption="pays")
def patient(request, now, parameters):
    """Shortest remaining first; who waited `patience_s` goes ahead."""
    if request.wait_s > parameters.patience_s:
        return -request.wait_s
    return request.remaining
