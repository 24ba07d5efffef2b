"""What tests with a real engine share: one server, since a start takes half a minute."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from lengthwise.compare.progress import Silent
from lengthwise.compare.session import Session, open_session

ONE_ENGINE = "test_end_to_end.py"  #: in `make test`: the path that a user takes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start an engine are slow, but for those of the one path."""
    for item in items:
        if item.get_closest_marker("engine") and item.path.name != ONE_ENGINE:
            item.add_marker(pytest.mark.slow)


def pytest_configure() -> None:
    # A shell starts background jobs with SIGINT ignored, and so would be the commands under test.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """The built-in model, served by vLLM with the Lengthwise scheduler."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    out = tmp_path_factory.mktemp("session")
    with open_session("reference", out, flags=(), port=None, progress=Silent()) as running:
        yield running
