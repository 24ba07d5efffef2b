"""Settings: what is accepted, and that what is wrong is refused in one clear line."""

from __future__ import annotations

import pytest

from lengthwise.errors import InputError
from lengthwise.settings import Settings, parse_settings, parse_spec


def test_the_default_is_fcfs() -> None:
    assert parse_settings({}) == Settings()
    assert Settings().policy == "fcfs"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"polcy": "fcfs"}, "unknown setting 'polcy': did you mean 'policy'"),
        ({"policy": "sjff"}, "unknown policy 'sjff': did you mean 'sjf'"),
        ({"policy": "fcfs", "blend": 2}, "setting 'blend'"),
        ({"policy": "fcfs", "max_overtakes": -1}, "setting 'max_overtakes'"),
        ({"policy": "fcfs", "max_wait_s": 0}, "setting 'max_wait_s'"),
        ({"policy": "fcfs", "parameters": {"c": 1.0}}, "has no parameters"),
        ({"policy": "fcfs", "parameters": {"c": "x"}}, "setting 'parameters.c'"),
        ({"policy": "trail", "parameters": {"d": 1}, "predictor": "oracle"}, "parameter of policy"),
        ({"policy": "srpt"}, "policy 'srpt' needs a predictor"),
        ({"policy": "fcfs", "preemption": "sometimes"}, "setting 'preemption'"),
        ({"policy": "fcfs", "tau_floor": 2}, "setting 'tau_floor'"),
        ({"policy": "fcfs", "length_log": "log"}, "setting 'length_log'"),
        ({"length_log": {"folder": "log", "megabytes": 0}}, "setting 'length_log.megabytes'"),
        ({"length_log": {"folder": "log", "mb": 5}}, "setting 'length_log.mb'"),
        ({"length_log": {"megabytes": 5}}, "setting 'length_log.folder'"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        parse_settings(values)
    assert "\n" not in str(refused.value)


def test_overtaking_is_bounded_unless_the_user_says_otherwise() -> None:
    def bounds(values: dict[str, object]) -> tuple[float | None, ...]:
        return tuple(parse_settings(values).bounds_for(16).values())[:2]

    assert bounds({}) == (16, 0.5)
    assert bounds({"overtake_share": 0.75}) == (16, 0.75)
    assert bounds({"max_overtakes": 7}) == (7, 0.0)
    assert bounds({"max_overtakes": 7, "overtake_share": 0.25}) == (7, 0.25)
    assert bounds({"max_overtakes": None}) == (None, 0.0)
    assert bounds({"max_overtakes": "slots"}) == (16, 0.5)
    assert parse_spec("fcfs:max_overtakes=auto", Settings(max_overtakes=3)) == Settings()


def test_a_spec_names_policy_settings_and_parameters() -> None:
    base = Settings(predictor="folder", max_overtakes=100)
    spec = parse_spec("trail:c=0.5;blend=0.9;max_overtakes=off", base)
    assert (spec.policy, spec.parameters, spec.blend) == ("trail", {"c": 0.5}, 0.9)
    assert (spec.predictor, spec.max_overtakes) == ("folder", None)
    assert parse_spec("oracle", base).predictor == "oracle"
    assert parse_spec("srpt", base).max_overtakes == 100


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nothing", "unknown policy 'nothing'"),
        ("fcfs:blend", "must be key=value"),
        ("fcfs:blnd=1", "did you mean 'blend'"),
        ("trail:c=much", "c must be a number"),
        ("fcfs:blend=much", "setting 'blend'"),
    ],
)
def test_a_wrong_spec_is_refused_in_one_line(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_spec(spec, Settings(predictor="oracle"))
