"""One thread looks at something again and again, whatever it finds."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from lengthwise.settings.polling import Polling
from tests.support.waiting import PATIENCE_S, wait_until


def test_what_fails_is_said_once_until_it_works_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lengthwise.settings import polling

    said: list[str] = []
    monkeypatch.setattr(polling.logger, "warning", lambda line, *values: said.append(line % values))
    looks = 0
    fails = threading.Event()

    def look() -> None:
        nonlocal looks
        looks += 1
        if fails.is_set():
            raise OSError("no such\nfile")

    one = Polling("mirror", 0.001, look)
    for again in (1, 2):
        fails.set()
        wait_until(lambda again=again: len(said) == again)
        before = looks
        wait_until(lambda before=before: looks > before + 5)
        fails.clear()
        wait_until(lambda: not one._failed)
    assert said == 2 * ["Lengthwise: looking at the mirror failed: OSError: no such file"]
    one.close()
    before = looks
    time.sleep(0.05)
    assert looks == before


def test_closing_does_not_wait_for_ever() -> None:
    goes_on = threading.Event()
    stuck = Polling("stuck", 0.001, goes_on.wait)  # type: ignore[arg-type]
    start = time.monotonic()
    stuck.close(patience_s=0.1)
    assert time.monotonic() - start < PATIENCE_S
    goes_on.set()


def test_it_can_be_closed_before_its_first_wait_is_over(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        rare = Polling("rare", 1000.0, lambda: None)
        rare.close()
    assert not rare._thread.is_alive()
