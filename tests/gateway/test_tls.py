"""Upstreams behind https: their certificates are checked."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from typing import NamedTuple

import pytest

from lengthwise.gateway.limits import Limits
from tests.support.gateways import gateway_before, until
from tests.support.small_upstream import small_upstream


class Tls(NamedTuple):
    """A certificate as whoever has it, and whoever trusts it, uses it."""

    server: ssl.SSLContext
    trusted: ssl.SSLContext


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    folder = tmp_path_factory.mktemp("tls")
    key, own = folder / "key.pem", folder / "cert.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -out {own}"
    names = ["-keyout", str(key), "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(own, key)
    return Tls(server, ssl.create_default_context(cafile=own))


def test_an_https_upstream_is_checked(tls: Tls) -> None:
    async def run() -> None:
        async with small_upstream(tls.server) as upstream:
            upstream.scheme = "https"
            async with gateway_before(upstream, upstream_ssl=tls.trusted) as client:
                assert (await client.ask("a")).status == 200
            async with gateway_before(upstream, limits=Limits(wait_s=1.0)) as client:
                assert (await client.ask("b")).status == 503
            assert upstream.begun == {"a": 1}

    asyncio.run(run())


def test_an_https_upstream_that_is_not_trusted_cannot_be_reached_and_why_is_said(
    tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lengthwise.gateway.upstream._TRY_EVERY_S", 0.02)

    async def run() -> None:
        async with small_upstream(tls.server) as upstream:
            upstream.scheme = "https"
            async with gateway_before(upstream, limits=Limits(wait_s=60.0)) as client:
                there = client.gateway.pool.upstreams[0]
                assert await client.gateway.reachability.look() == [there]
                assert "its certificate is not trusted" in there.refusal
                for _ in range(10):
                    said = await client.ask("a")
                    assert (said.status, said.headers["Retry-After"]) == (503, "1")
                    assert there.refusal in said.error
                    assert upstream.url not in said.error
                    await asyncio.sleep(0.05)
                assert not upstream.begun
            async with gateway_before(upstream, upstream_ssl=tls.trusted) as client:
                there = client.gateway.pool.upstreams[0]
                assert await client.gateway.reachability.look() == []
                await upstream.stop()
                assert await client.gateway.reachability.look() == [there]
                assert there.refusal == "Connection refused"
                await upstream.start(tls.server)
                await until(lambda: there.reachable)
                assert (await client.ask("b")).status == 200

    asyncio.run(run())
