"""Commands of ours as users run them: processes, what they say, and what they leave behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

psutil: Any = pytest.importorskip("psutil", reason="psutil, which vLLM brings, is not installed")
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
START_S = 400.0  # generous: a loaded machine takes minutes to import vLLM three times
COMMAND = [sys.executable, "-c", "from lengthwise.cli.main import main; main()"]


@contextmanager
def started(tmp_path: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A command of ours in a terminal of its own, its output in files."""
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}
    environment["VLLM_LOGGING_LEVEL"] = "INFO"  # tests of this process may want less
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        process = subprocess.Popen(
            [*COMMAND, *arguments], stdout=out, stderr=err, env=environment, text=True
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def wait_for(
    what: Callable[[], object],
    process: subprocess.Popen[str],
    tmp_path: Path,
    patience_s: float = START_S,
) -> None:
    deadline = time.monotonic() + patience_s
    while not what():
        assert process.poll() is None, (tmp_path / "err").read_text()[-3000:]
        assert time.monotonic() < deadline, (tmp_path / "err").read_text()[-3000:]
        time.sleep(0.1)


def children_of(process: subprocess.Popen[str]) -> list[Any]:
    found: list[Any] = psutil.Process(process.pid).children(recursive=True)
    return found


def assert_gone(processes: list[Any]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert alive == []


#: vLLM's front end may see its engine stop before it has itself been told to, and logs that. Had
#: the engine failed, a traceback of its own would stand above.
STOPPED_FIRST = re.compile(r"(?:^\(APIServer .*\[async_llm\.py:\d+\].*\n)+", re.MULTILINE)


def last_line(tmp_path: Path) -> str:
    text = STOPPED_FIRST.sub(
        lambda found: "" if "EngineDeadError" in found[0] else found[0],
        (tmp_path / "err").read_text(),
    )
    assert "Traceback" not in text
    # A library of vLLM's may leave its own last line open.
    return re.sub(r"(?<!\n)(?=lengthwise: stopped)", "\n", text).strip().splitlines()[-1]
