"""Policies: who runs next.

ranks        the built-in policies, a few lines each
registry     policies by name
discipline   a policy with its parameters, guards and preemption rule
guards       what no policy may do to a request or a tenant
length_law   what is known of an answer's length
ranking      every request ranked once, its derived fields brought up to date
order        who goes before whom, and the first few of those that wait
borrowed     the arrays of that, handed on as one pointer

prepass      what comes before a step: facts in, decision out
replay       a step's facts as a file, to decide it again
facts        what it is told, and whether there is anything to decide
select       who makes way where KV is lost by it, if that pays
prices       what steps and preemptions cost, measured while serving
memory       the KV that requests will need at their worst
draft        who runs in a step where those that make way are paused, as it is being decided
pausing      that decision
offloading   the same where host memory holds copies
peek         whose prompt is read early

replicas     which of several engines a request goes to
"""

from lengthwise.policy import ranks as _ranks  # registers the built-in policies
from lengthwise.policy.registry import Policy, Preemption, get_policy, policy_names, register

__all__ = ["Policy", "Preemption", "get_policy", "policy_names", "register"]
del _ranks
