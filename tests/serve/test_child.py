"""The server's process and what it started end with its parent, also with one that is killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from lengthwise.serve import child
from tests.support.waiting import wait_until

#: Ignores SIGTERM, as vLLM seems to while connections are open on which nothing comes.
STUBBORN = """
import os, signal, subprocess, sys, time
from lengthwise.serve.child import end_with_parent
signal.signal(signal.SIGTERM, signal.SIG_IGN)
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
end_with_parent(os.getppid(), 0.5)
print(os.getpid(), other.pid, flush=True)
time.sleep(300)
"""
PARENT = """
import subprocess, sys
child = [sys.executable, "-c", sys.argv[1]]
subprocess.Popen(child, stdin=subprocess.DEVNULL, start_new_session=True).wait()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's signal is Linux's")
def test_a_group_that_does_not_end_when_told_is_killed_with_its_parent() -> None:
    command = [sys.executable, "-c", PARENT, STUBBORN]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        processes = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        parent.kill()
    wait_until(
        lambda: not any(each.is_running() and each.status() != "zombie" for each in processes)
    )
    assert len(processes) == 2


@pytest.mark.parametrize(
    ("flags", "several"),
    [
        (["--api-server-count", "2"], True),
        (["--api_server_count=2"], True),
        (["-asc", "2"], True),
        (["-asc=2"], True),
        (["--config", "FILE"], True),
        (["--served-model-name", "api-server-count"], False),
        ([], False),
    ],
)
def test_several_api_servers_are_vllms_own_command(
    flags: list[str], several: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("api_server_count: 2\n")
    given = ["--port", "1", *(str(file) if flag == "FILE" else flag for flag in flags)]
    became: list[object] = []
    monkeypatch.setattr(child, "end_with_parent", lambda *_: None)
    monkeypatch.setattr(child, "serve_by_several", became.append)
    monkeypatch.setattr(child.runpy, "run_module", lambda module, **_: became.append(module))
    monkeypatch.setattr(sys, "argv", ["child", "1", "0.5", *given])
    child.main()
    assert became == [given if several else "vllm.entrypoints.openai.api_server"]
