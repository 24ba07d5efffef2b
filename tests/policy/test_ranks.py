"""Each built-in policy ranks as published, and users can add their own."""

from __future__ import annotations

import math
import queue
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lengthwise.errors import InputError
from lengthwise.policy import get_policy, policy_names, register
from lengthwise.policy.length_law import expected_tail, inverse_gittins_index
from lengthwise.request import RUNNING, WAITING, new_table


def rank(policy: str, parameters: dict[str, float] | None = None, **fields: Any) -> float:
    table = new_table(1)
    for name, value in {"state": WAITING, **fields}.items():
        table[name] = value
    chosen = get_policy(policy)
    record = chosen.parameter_record(parameters or {})
    return float(chosen.rank(table[0], 0.0, record[0]))


def test_every_built_in_policy_is_listed_with_a_summary() -> None:
    expected = {"fcfs", "priority", "sjf", "srpt", "ltr", "trail", "hrrn", "mlfq", "oracle"}
    expected |= {"gittins", "tie"}
    assert expected <= set(policy_names())
    for name in expected:  # other tests register policies of their own
        assert get_policy(name).summary.endswith("."), name


def test_fcfs_ranks_by_place_in_the_queue_and_not_by_the_clock() -> None:
    assert rank("fcfs", sequence=-3, arrival_s=100.0) < rank("fcfs", sequence=1, arrival_s=1.0)


def test_sjf_is_the_total_and_srpt_what_remains() -> None:
    assert rank("sjf", expected=200.0, remaining=20.0) == 200.0
    assert rank("srpt", expected=200.0, remaining=20.0) == 20.0
    assert rank("ltr", score=-1.5, expected=7.0) == -1.5


def test_trail_never_preempts_past_its_cutoff() -> None:
    fields = {"initial": 100.0, "expected": 120.0, "remaining": 30.0}
    assert rank("trail", {"c": 0.8}, state=RUNNING, age=79, **fields) == 30.0
    assert rank("trail", {"c": 0.8}, state=RUNNING, age=80, **fields) == -math.inf


def test_trail_does_not_send_a_waiting_request_past_its_cutoff_to_the_end() -> None:
    assert rank("trail", {"c": 0.5}, state=WAITING, age=90, initial=100.0, remaining=12.0) == 12.0


def test_gittins_ranks_by_its_index_and_tie_by_the_inflated_length() -> None:
    doubt = {"expected": 120.0, "low": 30.0, "median": 100.0, "high": 250.0}
    assert rank("gittins", age=10, **doubt) == inverse_gittins_index(0.0, *doubt.values(), 10.0)
    inflated = 120.0 + 0.5 * expected_tail(120.0, 30.0, 250.0)
    assert rank("tie", {"beta": 0.5}, **doubt) == pytest.approx(inflated)
    assert rank("tie", {"beta": 0.5}, wait_s=60.0, **doubt) == pytest.approx(0.81 * inflated)


def test_hrrn_prefers_the_higher_response_ratio() -> None:
    def ratio(wait_s: float, service: float) -> float:
        return (wait_s + service) / service

    cases = [(10.0, 50.0), (10.0, 5.0), (100.0, 400.0), (0.0, 3.0)]
    ours = sorted(cases, key=lambda c: rank("hrrn", wait_s=c[0], remaining=c[1]))
    assert ours == sorted(cases, key=lambda c: -ratio(*c))


def test_shortest_prefill_first_counts_only_what_is_not_cached() -> None:
    long_but_cached = rank("shortest-prefill-first", prompt_tokens=1000, cached_tokens=990)
    assert long_but_cached < rank("shortest-prefill-first", prompt_tokens=20)


def test_mlfq_joins_by_prefill_and_sinks_with_service() -> None:
    parameters = {"quantum": 16.0, "growth": 2.0, "levels": 4.0, "prefill_cost": 1 / 64}
    # quanta: 16, 32, 64, …; a prompt of 64 · 20 tokens takes 20 steps and skips the first level
    assert rank("mlfq", parameters, prompt_tokens=10, age=0) == 0
    assert rank("mlfq", parameters, prompt_tokens=64 * 20, age=0) == 1
    assert rank("mlfq", parameters, prompt_tokens=10, age=15) == 0
    assert rank("mlfq", parameters, prompt_tokens=10, age=16) == 1
    assert rank("mlfq", parameters, prompt_tokens=10, age=16 + 32) == 2
    assert rank("mlfq", parameters, prompt_tokens=10, age=10_000) == 3


def test_a_policy_of_ones_own_takes_one_function_and_one_registration() -> None:
    @register("test-youngest", parameters={"weight": 2.0})
    def youngest(request: Any, now: float, parameters: Any) -> float:
        """The latest arrival first."""
        return float(-parameters.weight * request.arrival_index)

    assert rank("test-youngest", arrival_index=5) == -10.0
    assert rank("test-youngest", {"weight": 1.0}, arrival_index=5) == -5.0


def test_a_policy_can_come_from_a_file_of_the_user(tmp_path: Path) -> None:
    module = tmp_path / "their_policy.py"
    module.write_text(
        "from lengthwise.policy import register\n\n"
        "@register('test-from-file')\n"
        "def rank(request, now, parameters):\n"
        "    '''By prompt.'''\n"
        "    return float(request.prompt_tokens)\n"
    )
    assert get_policy(f"{module}#test-from-file").name == "test-from-file"
    with pytest.raises(InputError, match="cannot import the policy module"):
        get_policy(f"{tmp_path / 'absent.py'}#anything")


OWN = """
import pathlib
from lengthwise.policy import register
with pathlib.Path(__file__).with_name("executed").open("a") as file:
    file.write(".")

@register("{name}")
def rank(request, now, parameters):
    return {value}

{more}
"""


def test_a_file_is_imported_once_and_again_when_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "queue.py"
    path.write_text(OWN.format(name=tmp_path.name, value=1.0, more=""))
    first = get_policy(f"{path}#{tmp_path.name}")
    assert get_policy(f"{path}#{tmp_path.name}") is first
    assert (tmp_path / "executed").read_text() == "."
    path.write_text(
        OWN.format(name=tmp_path.name, value=2.0, more="")
    )  # as long as before, and as fast as can be
    assert get_policy(f"{path}#{tmp_path.name}").rank.py_func(None, 0.0, None) == 2.0
    assert sys.modules["queue"] is queue


@pytest.mark.parametrize("more", ["1 / 0", "raise SystemExit", "def", "register('a:b')(rank)"])
def test_a_file_that_fails_leaves_what_it_had_registered(tmp_path: Path, more: str) -> None:
    path = tmp_path / "their.py"
    path.write_text(OWN.format(name=tmp_path.name, value=1.0, more=""))
    good = get_policy(f"{path}#{tmp_path.name}")
    path.write_text(OWN.format(name=tmp_path.name, value=2.0, more=more))
    with pytest.raises(InputError) as caught:
        get_policy(f"{path}#{tmp_path.name}")
    assert "\n" not in str(caught.value)
    assert get_policy(tmp_path.name) is good
    path.unlink()
    path.write_text(OWN.format(name=tmp_path.name, value=3.0, more=""))
    assert get_policy(f"{path}#{tmp_path.name}").rank.py_func(None, 0.0, None) == 3.0


def test_wrong_names_are_refused_in_one_line_with_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown policy 'srtp': did you mean 'srpt'"):
        get_policy("srtp")
    with pytest.raises(InputError, match="unknown parameter of policy 'trail' 'd'"):
        get_policy("trail").parameter_record({"d": 1.0})
    with pytest.raises(InputError, match="has no parameters"):
        get_policy("fcfs").parameter_record({"c": 1.0})
    with pytest.raises(InputError, match="already registered"):
        register("srpt")(lambda request, now, parameters: 0.0)
    with pytest.raises(InputError, match="contains one of"):
        register("a:b")


def test_parameters_keep_their_defaults() -> None:
    record = get_policy("mlfq").parameter_record({"quantum": 4.0})
    assert record["quantum"][0] == 4.0
    assert record["growth"][0] == 2.0
    assert record.dtype.names is not None
    assert np.all([record.dtype[name] == np.float64 for name in record.dtype.names])
