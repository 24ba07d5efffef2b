"""Compiled code is kept between processes, and never used when its sources have changed."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lengthwise

SOURCE = Path(lengthwise.__file__).parent
COUNT = (
    "from lengthwise.policy.select import surviving_tokens\n"
    "arguments = (100.0, 50.0, 50.0, 16.0, 16)\n"
    "assert surviving_tokens(*arguments) == 96.0 == surviving_tokens.py_func(*arguments)\n"
    "stats = surviving_tokens.stats\n"
    "print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))\n"
)


def copy_of_policy(folder: Path) -> None:
    for name in ("__init__.py", "compiled.py", "errors.py", "request.py"):
        (folder / "lengthwise").mkdir(exist_ok=True)
        shutil.copy(SOURCE / name, folder / "lengthwise" / name)
    no_cache = shutil.ignore_patterns("__pycache__")
    shutil.copytree(SOURCE / "policy", folder / "lengthwise" / "policy", ignore=no_cache)


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
    copy_of_policy(tmp_path)
    assert hits_and_misses(tmp_path) == "0 1"
    assert hits_and_misses(tmp_path) == "1 0"
    with (tmp_path / "lengthwise" / "policy" / "length_law.py").open("a") as file:
        file.write("\n# another version\n")
    assert hits_and_misses(tmp_path) == "0 1"


@pytest.mark.slow
def test_code_of_a_version_whose_names_are_gone_is_compiled_anew(tmp_path: Path) -> None:
    """An upgrade moves a class; what was kept of functions that took it still names its place."""
    copy_of_policy(tmp_path)
    assert hits_and_misses(tmp_path) == "0 1"
    for damage in (b"clengthwise.policy.no_such_module\nOrder\n.", b"\x80", b""):
        for index in (tmp_path / "cache").rglob("*surviving_tokens*.nbi"):
            version = pickle.dumps(pickle.loads(index.read_bytes()), protocol=-1)
            index.write_bytes(version + damage)
        assert hits_and_misses(tmp_path) == "0 1"
        assert hits_and_misses(tmp_path) == "1 0"


def test_without_a_folder_to_write_to_it_compiles_and_says_once_what_to_do(tmp_path: Path) -> None:
    copy_of_policy(tmp_path)
    for folder in ("", "policy"):  # files where the folders would be: no user may make those
        (tmp_path / "lengthwise" / folder / "__pycache__").write_text("")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "HOME": "/dev/null"}
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        environment.pop(name, None)
    for _ in range(2):
        finished = subprocess.run(
            [sys.executable, "-c", COUNT],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert finished.stdout.strip() == "0 1"
        (line,) = finished.stderr.splitlines()
        assert "NUMBA_CACHE_DIR" in line


RANKING = (
    "import sys\n"
    "from lengthwise.policy import get_policy, ranking, register\n"
    "from lengthwise.policy.ranks import ltr\n"
    "register('own', parameters={'a': 1.0})(ltr)\n"
    "@register('users')\n"
    "def ltr(request, now, parameters):\n"
    "    return 1.0\n"
    "for name in sys.argv[1:]:\n"
    "    policy = get_policy(name)\n"
    "    names = policy.parameter_record({}).dtype.names\n"
    "    stats = ranking._compiled(policy.rank, names)[0].stats\n"
    "    print(name, sum(stats.cache_hits.values()))\n"
)


def test_rankings_of_our_policies_are_kept_and_those_of_users_are_not(tmp_path: Path) -> None:
    copy_of_policy(tmp_path)
    environment = {
        **os.environ,
        "PYTHONPATH": str(tmp_path),
        "NUMBA_CACHE_DIR": str(tmp_path / "cache"),
    }

    def hits(*names: str) -> list[str]:
        finished = subprocess.run(
            [sys.executable, "-c", RANKING, *names],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return finished.stdout.split("\n")[:-1]

    assert hits("ltr", "users") == ["ltr 0", "users 0"]
    # The same function with other parameters is another ranking.
    assert hits("ltr", "own") == ["ltr 1", "own 0"]
    kept = (tmp_path / "cache").rglob("*rank_requests*.nbc")
    assert sorted(path.name.split(".")[4].rsplit("-", 1)[0] for path in kept) == [
        "ltr-a",
        "ltr-unused",
    ]
    with (tmp_path / "lengthwise" / "policy" / "ranks.py").open("a") as file:
        file.write("\n# another version\n")
    assert hits("ltr") == ["ltr 0"]
