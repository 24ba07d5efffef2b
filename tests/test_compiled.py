"""Compiled code is kept between processes, and never used when its sources have changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import lengthwise

SOURCE = Path(lengthwise.__file__).parent
COUNT = (
    "from lengthwise.policy.rollout import surviving_tokens\n"
    "arguments = (100.0, 50.0, 50.0, 16.0, 16)\n"
    "assert surviving_tokens(*arguments) == 96.0 == surviving_tokens.py_func(*arguments)\n"
    "stats = surviving_tokens.stats\n"
    "print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))\n"
)


def hits_and_misses(folder: Path) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "NUMBA_CACHE_DIR": str(folder / "cache"),
    }
    finished = subprocess.run(
        [sys.executable, "-c", COUNT], env=environment, capture_output=True, text=True, check=True
    )
    return finished.stdout.strip()


def test_a_change_in_another_file_compiles_anew(tmp_path: Path) -> None:
    for name in ("__init__.py", "compiled.py", "errors.py", "request.py"):
        (tmp_path / "lengthwise").mkdir(exist_ok=True)
        shutil.copy(SOURCE / name, tmp_path / "lengthwise" / name)
    shutil.copytree(SOURCE / "policy", tmp_path / "lengthwise" / "policy")
    assert hits_and_misses(tmp_path) == "0 1"
    assert hits_and_misses(tmp_path) == "1 0"
    with (tmp_path / "lengthwise" / "policy" / "remaining.py").open("a") as file:
        file.write("\n# another version\n")
    assert hits_and_misses(tmp_path) == "0 1"
