"""Policies: who runs next."""

from lengthwise.policy import ranks as _ranks  # registers the built-in policies
from lengthwise.policy.registry import Policy, Preemption, get_policy, policy_names, register

__all__ = ["Policy", "Preemption", "get_policy", "policy_names", "register"]
del _ranks
