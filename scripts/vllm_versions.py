"""Our tests of the scheduler against each version of vLLM that is supported: `make test-versions`.

One Python cannot have several versions installed, and the index has no CPU build of the newest. So
each version's own Python code is unpacked from its source distribution into a folder that comes
before the installed one on the path, together with metadata that says which version it is. What is
compiled is that of the installed version: schedulers are Python, and no test here computes a model.

    make test-versions
    .venv/bin/python scripts/vllm_versions.py 0.33.0 -k preempt     # what follows goes to pytest
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent.parent))

from lengthwise.errors import LengthwiseError
from scripts.vllm_source import unpack

ROOT: Final = Path(__file__).parents[1]
BUILD: Final = ROOT / "build" / "vllm-versions"
VERSIONS: Final = ("0.31.0", "0.32.0", "0.33.0")
#: what builds vLLM's scheduler, or runs its engine core in virtual time
TESTS: Final = (
    "vllm/test_scheduler_*.py",
    "serve/test_kill_switch.py",
    "emulate/test_exact.py",
)
OPTIONS: Final = (
    "--quiet",
    "--tb=short",
    "-p",
    "no:cacheprovider",
    "-m",
    "not engine and not slow",
)


def lay_out(version: str) -> Path:
    """A folder for the path with one version of vLLM in it.

    Raises:
        LengthwiseError: the package index does not give it.
    """
    folder = unpack(version, "vllm", BUILD / version)
    metadata = folder / f"vllm-{version}.dist-info"
    metadata.mkdir(exist_ok=True)
    # The platform is chosen by the version's local part.
    said = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n"
    (metadata / "METADATA").write_text(said)
    return folder


def run(version: str, given: list[str]) -> dict[str, Any]:
    """Run the tests with one version: how many there were, by outcome, and which failed."""
    folder = lay_out(version)
    report = BUILD / f"{version}.xml"
    report.unlink(missing_ok=True)
    path = [str(folder), str(ROOT / "src"), str(ROOT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    files = sorted(str(each) for name in TESTS for each in (ROOT / "tests").glob(name))
    with (BUILD / f"{version}.log").open("w") as log:
        subprocess.run(
            [sys.executable, "-m", "pytest", *OPTIONS, f"--junitxml={report}", *files, *given],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    if not report.is_file():
        raise LengthwiseError(f"pytest wrote no report: see {log.name}")
    outcomes: Counter[str] = Counter()
    failed = []
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = {each.tag for each in case} & {"failure", "error", "skipped"}
        outcome = kinds.pop() if kinds else "passed"
        outcomes[outcome] += 1
        if outcome in ("failure", "error"):
            failed.append(f"{case.get('classname')}.{case.get('name')}")
    return {
        "version": version,
        "ran_with": imported_version(environment),
        "passed": outcomes["passed"],
        "failed": outcomes["failure"] + outcomes["error"],
        "skipped": outcomes["skipped"],
        "failures": failed,
    }


def imported_version(environment: dict[str, str]) -> str:
    """What vLLM says of itself to whoever imports it, and nothing where it is another's files."""
    code = "import vllm; print(vllm.__version__, vllm.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    version, _, file = (done.stdout.splitlines() or [""])[-1].partition(" ")
    return version if Path(file).is_relative_to(BUILD) else "not from the folder"


def main() -> None:
    """Run all, print a line each, and fail where one does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("versions", nargs="*", default=VERSIONS)
    known, given = parser.parse_known_args()
    versions = [each for each in known.versions if each[0].isdigit()] or list(VERSIONS)
    rows = []
    for version in versions:
        try:
            rows.append(run(version, given))
        except LengthwiseError as error:
            sys.exit(str(error))
        row = rows[-1]
        if not known.json:
            print(
                f"vLLM {row['ran_with']}: {row['passed']} passed, {row['failed']} failed, "
                f"{row['skipped']} skipped ({BUILD}/{version}.log)"
            )
            print("".join(f"  failed: {name}\n" for name in row["failures"]), end="", flush=True)
    if known.json:
        print(json.dumps(rows))
    sound = all(
        row["ran_with"].startswith(row["version"]) and row["passed"] and not row["failed"]
        for row in rows
    )
    sys.exit(0 if sound else 1)


if __name__ == "__main__":
    main()
