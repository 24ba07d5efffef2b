"""Code that is compiled ahead is found, also where nothing can be written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

READ_ONLY = "mount --make-rprivate / && mount --bind {0} {0} && mount -o remount,ro,bind {0}"

USES = """
import numpy as np
from lengthwise.policy.length_law import stand_in
from lengthwise.request import new_table
stand_in(new_table(2), 2, 1.0, 1.0, 1.0, 1.0, 1.0)
print(sum(stand_in.stats.cache_hits.values()), sum(stand_in.stats.cache_misses.values()))
"""
MORE = "stand_in(new_table(2)[:1], np.int32(1), 1.0, 1.0, 1.0, 1.0, np.float32(1.0)); print('fine')"

SERVES = """
from tests.support.virtual_workloads import COST, LONGEST, random_engine, random_workload
from lengthwise.emulate.driver import OURS, open_virtual_engine

engine = random_engine(1)
with open_virtual_engine(COST, engine, longest=LONGEST, scheduler=OURS) as virtual:
    for number in range(8):
        workload = random_workload(1000 + number, engine)
        virtual.use(workload.settings)
        virtual.run(workload.asked)
"""


def run(script: str, cache: Path, prefix: str = "") -> subprocess.CompletedProcess[str]:
    """A program that keeps compiled code in a folder, behind shell commands of its own."""
    python = f'{prefix} exec {sys.executable} -B -c "$SCRIPT"'
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "SCRIPT": script}
    return subprocess.run(
        ["unshare", "-m", "bash", "-c", python] if prefix else ["bash", "-c", python],
        env={**environment, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )


def can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    tried = ["unshare", "-m", "mount", "--make-rprivate", "/"]
    return subprocess.run(tried, capture_output=True).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="no folder can be made read-only here")
def test_a_read_only_folder_of_compiled_code_is_used(tmp_path: Path) -> None:
    cache = tmp_path / "compiled"
    cache.mkdir()
    assert run(USES, cache).stdout == "0 1\n"
    before = sorted(cache.rglob("*"))
    read_only = READ_ONLY.format(cache) + " &&"
    done = run(USES + MORE, cache, read_only)
    assert done.stdout == "1 0\nfine\n", done.stderr
    assert "can be written" not in done.stderr
    assert sorted(cache.rglob("*")) == before


@pytest.mark.slow
def test_nothing_is_compiled_or_loaded_in_the_midst_of_a_step() -> None:
    """Whatever a step may call is there before the settings that call it are in force."""
    pytest.importorskip("vllm", reason="needs vLLM: pip install 'lengthwise[cpu]'")
    child = [sys.executable, "-m", "tests.support.serving_child"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    served = subprocess.run(child, env=environment, capture_output=True, text=True)
    assert served.returncode == 0, served.stderr
    assert served.stdout == ""


@pytest.mark.slow
def test_servers_find_all_their_code_compiled(tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="needs vLLM: pip install 'lengthwise[cpu]'")
    cache = tmp_path / "compiled"
    command = [sys.executable, "-c", "from lengthwise.cli.main import main; main()", "compile"]
    done = subprocess.run([*command, "--into", str(cache), "--json"], capture_output=True)
    said = json.loads(done.stdout)
    compiled = sorted(cache.rglob("*.nbc"))
    assert said["functions"] == len(compiled) > 50
    served = run(SERVES, cache)
    assert served.returncode == 0, served.stderr
    assert sorted(cache.rglob("*.nbc")) == compiled
