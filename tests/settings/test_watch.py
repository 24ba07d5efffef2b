"""The watcher of a settings file: what its status file says, and that it is never torn."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import pytest

from lengthwise.counters import Counters
from lengthwise.settings import Settings, file, status_path
from lengthwise.settings.file import SettingsWatcher
from tests.support.status_file import status_of
from tests.support.waiting import wait_until


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "settings.json"


def test_the_status_says_who_and_when(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "_SIGN_OF_LIFE_S", 0.2)
    Settings().write(path)
    watcher = SettingsWatcher(path, lambda settings: None, Counters())
    first = status_of(path)
    assert (first["pid"], first["engine"]) == (os.getpid(), 0)
    assert abs(first["time"] - time.time()) < 60
    wait_until(lambda: status_of(path)["time"] > first["time"])  # with no news
    watcher.close()


def test_a_status_that_cannot_be_written_is_said_once(path: Path) -> None:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("vllm.lengthwise")
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)  # whatever vLLM itself is to say in other tests
    Settings().write(path)
    status_path(path).mkdir()  # whoever is root may write anywhere else
    counters = Counters()
    watcher = SettingsWatcher(path, lambda settings: None, counters)
    for _ in range(10):
        counters.steps += 1
        time.sleep(0.11)
    watcher.close()
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)
    assert len(said) == 1
    assert "cannot write" in said[0]
    assert [each.name for each in path.parent.iterdir() if ".json." in each.name] == []


def test_a_status_file_is_never_torn(path: Path) -> None:
    Settings().write(path)
    counters = [Counters() for _ in range(4)]
    watchers = [SettingsWatcher(path, lambda settings: None, each) for each in counters]
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        for each in counters:
            each.steps += 1
        status_of(path)
    for watcher in watchers:
        watcher.close()
