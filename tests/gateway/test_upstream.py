"""The servers behind: their addresses, and the limits that are found for them."""

from __future__ import annotations

import pytest

from lengthwise.errors import InputError
from lengthwise.gateway.upstream import adapted, parse_upstreams, waiting_of


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


def test_what_waits_is_read_of_all_engines() -> None:
    page = b'# HELP x\nvllm:num_requests_waiting{engine="0"} 3.0\n'
    page += b'vllm:num_requests_waiting{engine="1"} 4.0\nvllm:num_requests_waiting_by_reason 9\n'
    assert waiting_of(page) == 7.0
    for other in (b"", b"vllm:num_requests_waiting x\n"):
        with pytest.raises(Exception, match="num_requests_waiting"):
            waiting_of(other)
