"""Which policies and settings a gateway takes, and which only an engine can."""

from __future__ import annotations

import pytest

from lengthwise.counters import Counters
from lengthwise.errors import InputError
from lengthwise.gateway.configuration import discipline_of, refuse_unsuited
from lengthwise.gateway.ranked_queue import Entry, Queue
from lengthwise.policy import policy_names
from lengthwise.predict.prediction import Prediction
from lengthwise.settings import Settings, parse_spec


@pytest.mark.parametrize("name", policy_names())
def test_every_policy_orders_or_is_refused_in_one_line(name: str) -> None:
    chosen = parse_spec(name, Settings(predictor="declared"))
    if name in {"trail", "trail-bert", "trail+", "mlfq", "shortest-prefill-first"}:
        with pytest.raises(InputError, match="use srpt"):
            refuse_unsuited(chosen)
        return
    refuse_unsuited(chosen)
    queue = Queue(discipline_of(chosen, 4), Counters())
    assert queue.discipline.preemption == "never"
    for number, tokens in enumerate((300.0, 20.0)):
        queue.add(Entry(str(number)), 0.0)
        queue.predict(Entry(str(number)), Prediction(*[tokens] * 5), 1)
    first = queue.next(1.0)
    assert first is not None
    assert first.id == ("0" if name in ("fcfs", "priority") else "1")


@pytest.mark.parametrize(
    "spec",
    [
        "srpt:preemption=pays",
        "srpt:memory_growth=1",
        "srpt:service_time=true",
        "srpt:starvation_threshold=5",
        "srpt:pausing=true",
        "srpt:peek=auto",
        "srpt:shadow=true",
        "srpt:journal=build/j",
    ],
)
def test_what_only_an_engine_can_do_is_refused(spec: str) -> None:
    name = spec.partition(":")[2].partition("=")[0]
    with pytest.raises(InputError, match=f"'{name}' is for the scheduler inside an engine"):
        refuse_unsuited(parse_spec(spec, Settings(predictor="declared")))
    refuse_unsuited(parse_spec("srpt:preemption=never", Settings(predictor="declared")))
