"""The servers behind: their addresses, and the limits that are found for them."""

from __future__ import annotations

import pytest

from lengthwise.errors import InputError, LengthwiseError
from lengthwise.gateway.upstream import (
    Pool,
    Upstream,
    adapted,
    parse_upstreams,
    waiting_of,
)


@pytest.mark.parametrize(
    ("given_address", "meant"),
    [
        ("http://a:1", ["http://a:1"]),
        ("http://a:1/v1/, https://b/openai", ["http://a:1", "https://b/openai"]),
    ],
)
def test_addresses_end_before_the_path_of_the_api(given_address: str, meant: list[str]) -> None:
    assert parse_upstreams(given_address) == meant


@pytest.mark.parametrize(
    "address",
    [
        "",
        "a:1",
        "ftp://a",
        "http://",
        "http://a:x",
        "http://a..b",
        f"http://{'a' * 64}.b",
        "http://u:sk-1@a",
        "http://a?k=sk-1",
    ],
)
def test_what_is_no_address_is_refused_without_its_key(address: str) -> None:
    with pytest.raises(InputError, match="--upstream") as refusal:
        parse_upstreams(address)
    assert "sk-1" not in str(refusal.value)
    with pytest.raises(InputError, match="twice"):
        parse_upstreams("http://a,http://a/v1")


def test_a_limit_follows_what_waits() -> None:
    limit = 16
    for _ in range(40):  # an engine that runs 40 at a time, all of them wanted
        waiting = max(limit - 40, 0)
        limit = adapted(limit, limit, waiting)
        assert limit <= 44
    assert limit >= 38
    assert adapted(40, 10, 0) == 40
    assert adapted(40, 40, 100) == 20
    assert adapted(1, 1, 5) == 1


def test_what_is_passed_on_goes_where_least_of_it_is_under_way() -> None:
    large, small = Upstream("http://large", 30), Upstream("http://small", 10)
    pool = Pool([large, small])
    for _ in range(40):
        pool.any_reachable().passing += 1
    assert (large.passing, small.passing) == (30, 10)
    large.passing = small.passing = 0
    taken = [pool.any_reachable() for _ in range(4)]  # one after the other
    assert taken[:2] == taken[2:]
    assert set(taken) == {large, small}


def test_an_upstream_that_was_away_is_not_flooded() -> None:
    """What it was not sent meanwhile is no reason to send it everything now."""
    here, away = Upstream("http://here", 4), Upstream("http://away", 4)
    pool = Pool([here, away])
    away.reachable = False
    for _ in range(100):
        assert pool.any_reachable() is pool.choose(1) is here
    away.reachable = True
    passed_on = [pool.any_reachable() for _ in range(10)]
    assert passed_on.count(away) == 5
    queued = [pool.choose(1) for _ in range(10)]  # each ends before the next one comes
    assert queued.count(away) == 5


NO_NUMBERS = (b"x", b"+Inf", b"NaN")


def test_what_waits_is_read_of_all_engines() -> None:
    page = b'# HELP x\nvllm:num_requests_waiting{engine="0"} 3.0\n'
    page += b'vllm:num_requests_waiting{engine="1"} 4.0\nvllm:num_requests_waiting_by_reason 9\n'
    assert waiting_of(page) == 7.0
    for said in (b"", *(b"vllm:num_requests_waiting %s\n" % each for each in NO_NUMBERS)):
        with pytest.raises(LengthwiseError, match="num_requests_waiting"):
            waiting_of(said)
