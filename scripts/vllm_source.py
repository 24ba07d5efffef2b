"""vLLM's source distributions, fetched by name and version from the package index (45 MB each)."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Final

from lengthwise.errors import LengthwiseError

#: what vLLM's setup.py imports to say which version it is; kept out of the environment
_TOOLS: Final = ("setuptools-scm", "setuptools-rust")


def unpack(version: str, part: str, into: Path) -> Path:
    """A folder of a version's source distribution, fetched where it is not there yet.

    Args:
        version: such as "0.32.0".
        part: the folder's name in it: `vllm` or `tests`.
        into: where it is put, as `into`/`part`.

    Returns:
        `into`.

    Raises:
        LengthwiseError: the index does not give it.
    """
    if (into / part).is_dir():
        return into
    into.mkdir(parents=True, exist_ok=True)
    archive = _download(version, into)
    root = f"vllm-{version}/"
    with tarfile.open(archive) as packed:
        members = [each for each in packed if each.name.startswith(f"{root}{part}/")]
        for member in members:
            member.name = member.name.removeprefix(root)
        packed.extractall(into, members, filter="data")
    archive.unlink()
    return into


def _download(version: str, into: Path) -> Path:
    tools = into.parent / "tools"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    if not tools.is_dir():
        own = {**os.environ, "PIP_NO_WARN_CONFLICTS": "1"}
        install = [*pip, "install", "--target", str(tools), *_TOOLS]
        subprocess.run(install, env=own, stderr=subprocess.DEVNULL)
    # pip asks setup.py for the version even of what it only downloads.
    environment = {
        **os.environ,
        "PYTHONPATH": str(tools),
        "VLLM_TARGET_DEVICE": "empty",
        "VLLM_VERSION_OVERRIDE": version,
    }
    options = ["--no-deps", "--no-build-isolation", "--no-binary", "vllm", "--dest", str(into)]
    done = subprocess.run(
        [*pip, "download", *options, f"vllm=={version}"],
        env=environment,
        capture_output=True,
        text=True,
    )
    archive = into / f"vllm-{version}.tar.gz"
    if not archive.is_file():
        last = (done.stderr.strip().splitlines() or ["nothing was downloaded"])[-1]
        raise LengthwiseError(
            f"the package index gave no source distribution of vLLM {version}: {last}"
        )
    return archive
