"""A share for every tenant: the counters, the guard, names in bounded memory, hints in vLLM."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bench.tenants import measurements
from lengthwise.policy.discipline import make_discipline
from lengthwise.policy.guards import (
    BEHIND,
    MOST_TENANTS,
    ORDINARY,
    OVERDUE,
    Shares,
    Tenants,
    guard_record,
    new_shares,
    service,
    take_leads,
    tier,
)
from lengthwise.request import RUNNING, WAITING, RequestTable, new_table


def table_of(*rows: tuple[int, int, int, float]) -> RequestTable:
    """Requests: tenant, state, prompt tokens, predicted tokens."""
    table = new_table(len(rows))
    for row, (tenant, state, prompt, expected) in zip(table, rows, strict=True):
        row["tenant"], row["state"] = tenant, state
        row["prompt_tokens"], row["expected"] = prompt, expected
    return table


def leads(shares: Shares, table: RequestTable) -> list[int]:
    take_leads(shares, table, len(table))
    return [int(row["lead"]) for row in table if row["state"] == WAITING]


def test_an_answers_token_counts_twice_and_from_its_first_step_on() -> None:
    assert service(100, 50.4) == 200
    shares = new_shares(2)
    table = table_of((0, RUNNING, 100, 50.4), (0, WAITING, 10, 10.0), (1, WAITING, 10, 10.0))
    assert leads(shares, table) == [200, 0]
    # It has ended, and was longer than predicted.
    table["state"][0] = 0
    shares.tenants["ended"][0] += service(100, 70.0)
    assert leads(shares, table) == [240, 0]


def test_a_request_that_was_put_back_counts_on() -> None:
    table = table_of((0, WAITING, 100, 50.0), (1, WAITING, 10, 10.0))
    assert leads(new_shares(2), table) == [0, 0]
    table["age"][0] = 3
    assert leads(new_shares(2), table) == [200, 0]


def test_no_credit_is_saved_up_while_nobody_waits() -> None:
    shares = new_shares(3)
    shares.tenants["ended"] = 5000, 9000, 0
    table = table_of((0, WAITING, 1, 1.0), (1, WAITING, 1, 1.0), (2, 0, 1, 1.0))
    assert leads(shares, table) == [0, 4000]
    table["state"][2] = WAITING  # who comes late begins where the last one stands
    assert leads(shares, table) == [0, 4000, 0]
    shares.tenants["ended"][0] += 700  # and from then on what it is served counts
    assert leads(shares, table) == [700, 4000, 0]
    # Where nobody waited meanwhile, too.
    table["state"] = 0
    leads(shares, table)
    table["state"][1] = table["state"][2] = WAITING
    shares.tenants["ended"][1] = 0
    assert leads(shares, table) == [0, 0]
    assert shares.tenants["served"][1] == 5000


def test_the_tier() -> None:
    guards = guard_record(max_overtakes=5, max_wait_s=60.0, max_tenant_lead=100.0)[0]

    def placed(**fields: Any) -> int:
        table = new_table(1)
        for name, value in {"state": WAITING, **fields}.items():
            table[name] = value
        return int(tier(table[0], guards))

    assert placed(lead=100) == ORDINARY
    assert placed(lead=101) == BEHIND
    assert placed(lead=101, overtaken=9) == BEHIND
    assert placed(lead=101, wait_s=60.0) == OVERDUE
    assert placed(lead=101, state=RUNNING) == ORDINARY
    assert placed(lead=100, overtaken=9) == OVERDUE


def test_a_flood_does_not_hold_up_others() -> None:
    without, capped, strict = measurements(0)
    assert (without["max_tenant_lead"], strict["max_tenant_lead"]) == (None, 0)
    assert capped["light_ttft_s"] < without["light_ttft_s"] / 2
    assert strict["light_ttft_s"] < without["light_ttft_s"] / 2
    assert strict["makespan_s"] < 1.05 * without["makespan_s"]  # nothing is held back


def test_names_take_bounded_memory() -> None:
    tenants = Tenants()
    assert tenants.arrive("") == 0
    rows = [tenants.arrive(f"t{number}") for number in range(MOST_TENANTS)]
    assert rows == [*range(1, MOST_TENANTS), 0]  # no room for the last one, as all are there
    assert tenants.arrive("t5") == 6
    for row in rows[:-1]:
        tenants.leave(row, 10, row)
    tenants.leave(6, 10, 0)  # it had not begun
    assert tenants.shares.tenants["ended"][6] == 10 + 2 * 6
    assert tenants.arrive("new") == 1  # those served least make room
    assert tenants.shares.tenants["ended"][1] == 0
    assert tenants.arrive(f"t{MOST_TENANTS - 2}") == MOST_TENANTS - 1
    assert len(tenants.shares.tenants) == MOST_TENANTS
    for number in range(3 * MOST_TENANTS):
        tenants.leave(tenants.arrive(f"u{number}"), 1, 1)
    assert len(tenants.shares.tenants) == MOST_TENANTS


def test_nobody_is_forgotten_while_a_row_is_free() -> None:
    tenants = Tenants()

    def once(name: str, tokens: int) -> int:
        row = tenants.arrive(name)
        tenants.leave(row, 10, tokens)
        return row

    heavy = {f"heavy{number}": once(f"heavy{number}", 10_000_000) for number in range(20)}
    for number in range(MOST_TENANTS - 21):
        once(f"light{number}", 100)
    known = {name: once(name, 50) for name in ["one more", *map(str, range(400))]}
    assert {name: tenants.arrive(name) for name in known} == known
    assert len(set(known.values()) | set(heavy.values())) == 421  # each has a row of its own
    for number in range(20 * MOST_TENANTS):  # a client that makes up names
        once(f"made up {number}", 50)
    assert {name: tenants.arrive(name) for name in heavy} == heavy
    assert (tenants.shares.tenants["ended"][list(heavy.values())] == 20_000_010).all()


def test_the_setting_reaches_the_guard() -> None:
    from lengthwise.settings import parse_settings

    settings = parse_settings({"policy": "priority", "max_tenant_lead": 0})
    discipline = make_discipline(**settings.discipline_arguments(8))
    assert discipline.shares_service
    assert discipline.needs_predictions
    assert not make_discipline("srpt").shares_service
    assert np.isinf(make_discipline("srpt").guards["max_tenant_lead"][0])


def test_a_hint_names_the_tenant_in_vllm() -> None:
    pytest.importorskip("vllm", reason="needs vLLM: pip install 'lengthwise[cpu]'")
    from bench.support.engine_harness import Ask, SteppedEngine, build_scheduler
    from lengthwise.predict.load import EXPECTED_TOKENS
    from lengthwise.predict.prediction import TENANT
    from lengthwise.vllm import Scheduler

    settings = {"policy": "sjf", "predictor": "declared", "max_tenant_lead": 20.0}
    scheduler = build_scheduler(Scheduler, max_num_seqs=1, lengthwise={"settings": settings})
    engine = SteppedEngine(scheduler)
    for place in range(4):
        hints = {EXPECTED_TOKENS: 3, TENANT: "flood"}
        engine.add(Ask(f"flood-{place}", [7] * 8, 3, hints=hints))
    for name, tenant in (("seven", 7), ("none", None), ("list", ["flood"])):
        hints = {EXPECTED_TOKENS: 30} | ({} if tenant is None else {TENANT: tenant})
        engine.add(Ask(name, [7] * 8, 30, hints=hints))
    admitted = [request_id for step in engine.run() for request_id in step.admitted]
    # By length alone all four of the flood would go first.
    assert admitted[:2] == ["flood-0", "flood-1"]
    assert set(admitted[2:4]) == {"seven", "none"}  # who says nothing usable has no name
    assert len(admitted) == 7
