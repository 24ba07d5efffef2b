"""A version of vLLM that is not supported is refused in one line; those that are, are not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lengthwise.vllm.compat.version import NEWEST, OLDEST
from scripts.vllm_versions import VERSIONS

pytest.importorskip("vllm", reason="vLLM is not installed")

COMMAND = [sys.executable, "-c", "from lengthwise.cli.main import main; main()"]
CHECK = "from lengthwise.vllm.compat.version import require_supported_version as r; print(r())"


def with_version(
    folder: Path, version: str, command: list[str]
) -> subprocess.CompletedProcess[str]:
    """A command where the metadata of another version comes first on the path."""
    metadata = folder / f"vllm-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "XDG_STATE_HOME": str(folder / "state")}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize("version", ["0.30.2", "0.34.0", "1.0.0+cpu"])
def test_another_version_is_refused_in_one_line(tmp_path: Path, version: str) -> None:
    command = [*COMMAND, "serve", "reference", "--policy", "fcfs", "--port", "18999"]
    done = with_version(tmp_path, version, command)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"vLLM {version} is not supported: install a version from 0.31 to 0.33" in line


@pytest.mark.parametrize("version", VERSIONS)
def test_those_that_are_tried_are_taken(tmp_path: Path, version: str) -> None:
    done = with_version(tmp_path, f"{version}+cpu", [sys.executable, "-c", CHECK])
    assert done.stdout.strip() == f"{version}+cpu", done.stderr


def test_all_that_is_supported_is_tried() -> None:
    tried = [tuple(map(int, version.split(".")[:2])) for version in VERSIONS]
    assert tried == [(0, minor) for minor in range(OLDEST[1], NEWEST[1] + 1)]
