"""What a tuner may choose."""

from __future__ import annotations

import numpy as np

from lengthwise.advise.tune import MAX_WAIT, ORDERS, PAUSING, REFINEMENTS, Cap, grid
from lengthwise.compare.specs import parse_policies
from lengthwise.policy.discipline import make_discipline

SLOTS = 8


def test_labels_are_policies_that_other_verbs_understand() -> None:
    found = list(grid(SLOTS, [Cap(MAX_WAIT, 30.0)], pauses=True, looks=True))
    labels = [each.label for each in found]
    assert len(set(labels)) == len(labels)
    parsed = parse_policies(labels, "declared")
    for each in found:
        ours = make_discipline(**each.discipline)
        theirs = make_discipline(**parsed[each.label].discipline_arguments(SLOTS))
        for name in ("policy", "parameters", "guards", "preemption", "blend", "pausing", "peek"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name)), each.label
    policies = {each.policy for each in found}
    assert policies == {*ORDERS, *(name for name, _ in (*REFINEMENTS, *PAUSING))}
    stalls = {each.guards["max_stall_s"] for each in found if each.guards.get("pausing")}
    assert len(stalls) > 1
    assert any(each.guards.get("peek") for each in found)
    without = list(grid(SLOTS))
    assert not any(each.guards.get("pausing") for each in without), "nobody can be paused there"
    assert not any(each.guards.get("peek") for each in grid(SLOTS, pauses=True)), "without a probe"
