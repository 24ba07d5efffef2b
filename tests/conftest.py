"""What tests share: the command line in this process, and one server, whose start takes long."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from lengthwise.compare.progress import Silent
from lengthwise.compare.session import Session, open_session
from tests.support.command_line import Run, command_line

# Small networks are learnt several times faster by one thread than by threads that wait for one
# another on busy cores. torch reads this when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Whether a change is good must not depend on luck: the same examples each time, unless asked for
# others (`make test-random`).
settings.register_profile("same", derandomize=True)
settings.register_profile("random", derandomize=False, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


def pytest_configure() -> None:
    # A shell starts background jobs with SIGINT ignored, and so would be the commands under test.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give one process the simulator to compile, and the other engines to start meanwhile.

    Compiling takes a minute and a half, and two processes that need the same at once both do it.
    """
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    within = item.path.relative_to(Path(__file__).parent).parts
    return 0 if within == _COMPILES else 1 if within[0] == "engine" else 2


_COMPILES = ("advise", "test_calibrate.py")


@pytest.fixture
def log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> pytest.LogCaptureFixture:
    """What our loggers say, also where vLLM has been imported, whose loggers tell the root nothing
    and may have been told to say nothing but errors."""
    logger = logging.getLogger("vllm.lengthwise")
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    monkeypatch.setattr(logger, "disabled", False)
    monkeypatch.setattr(logger, "level", logging.WARNING)
    monkeypatch.setattr(logger, "_cache", {})  # of levels that are enabled
    return caplog


@pytest.fixture(scope="session")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """The built-in model, served by vLLM with the Lengthwise scheduler."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    out = tmp_path_factory.mktemp("session")
    with open_session("reference", out, flags=(), port=None, progress=Silent()) as running:
        yield running


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs a command line in this process: its exit code, and what it printed."""
    with command_line(monkeypatch, capsys) as call:
        yield call
