"""vLLM's own tests of its scheduler, with ours in its place: `make test-vllm`.

The wheel has no tests, so vLLM's source distribution of the installed version is fetched by name
from the package index (45 MB, once). Those files of `tests/v1/core` that build a scheduler then run
twice, with vLLM's own and with Lengthwise's under policy fcfs, and what stock passes and ours fails
is printed. Tests that need a model's weights, a GPU or a hub fail with both and show nothing; so do
those of models that see, whose preprocessing is not installed here.

    make test-vllm
    .venv/bin/python scripts/vllm_tests.py -k priority      # what follows goes to pytest
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parent.parent))

from lengthwise.errors import LengthwiseError
from lengthwise.vllm.compat.version import installed_version
from scripts.vllm_source import unpack

ROOT: Final = Path(__file__).parent.parent
BUILD: Final = ROOT / "build" / "vllm-tests"
#: models that the tests name, of which only the shape is read: the default one of each kind
SHAPES: Final = {
    "facebook/opt-125m": ("OPTConfig", "OPTForCausalLM"),
    "facebook/opt-350m": ("OPTConfig", "OPTForCausalLM"),
}
#: tests that cannot hold for another class, and why
LEFT_OUT: Final = {
    "test_abort_request_when_structured_output_fsm_cannot_advance": "makes no use of a constructor",
    "test_diffusion_scheduler_is_selected_by_default": "asks which class vLLM itself would choose",
}
OPTIONS: Final = (
    "--quiet",
    "--tb=line",
    "--disable-warnings",
    "-p",
    "no:cacheprovider",
    "--timeout=120",
)


def fetch(version: str) -> Path:
    """The folder with vLLM's tests, fetched where it is not there yet."""
    folder = unpack(version, "tests", BUILD / f"vllm-{version}")
    # What all of vLLM's tests share needs packages that those of the scheduler do not.
    (folder / "tests" / "conftest.py").unlink(missing_ok=True)
    return folder


def lay_out_models() -> Path:
    """A hub's cache with the shapes of the models that the tests name, and no weights."""
    import transformers

    hub = BUILD / "hub"
    for name, (kind, architecture) in SHAPES.items():
        folder = hub / f"models--{name.replace('/', '--')}"
        config = getattr(transformers, kind)(architectures=[architecture]).to_dict()
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / "main").write_text("here", encoding="utf-8")
        (folder / "snapshots" / "here").mkdir(parents=True, exist_ok=True)
        (folder / "snapshots" / "here" / "config.json").write_text(json.dumps(config))
    return hub


def tests_of_schedulers(folder: Path) -> list[Path]:
    """The files of tests that build a scheduler."""
    every = sorted((folder / "tests" / "v1" / "core").rglob("test_*.py"))
    return [path for path in every if "cheduler(" in path.read_text(encoding="utf-8")]


def run(folder: Path, scheduler: str, given: list[str]) -> dict[str, str]:
    """Run the tests with one of the schedulers: what became of each, by name."""
    report = BUILD / f"{scheduler}.xml"
    report.unlink(missing_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "scripts"), str(ROOT / "src"), str(folder)]),
        "HF_HUB_CACHE": str(lay_out_models()),
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    pytest = [sys.executable, "-m", "pytest", *OPTIONS]
    if scheduler == "ours":
        pytest += ["-p", "vllm_tests_plugin"]
    where = [f"--rootdir={folder}", "-c", os.devnull, *map(str, tests_of_schedulers(folder))]
    with (BUILD / f"{scheduler}.log").open("w") as log:
        subprocess.run(
            [*pytest, f"--junitxml={report}", *where, *given],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    if not report.is_file():
        sys.exit(f"pytest wrote no report: see {log.name}")
    outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname', '').removeprefix('tests.v1.core.')}.{case.get('name')}"
        kinds = {each.tag for each in case} & {"failure", "error", "skipped"}
        outcomes[name] = kinds.pop() if kinds else "passed"
    return outcomes


def main() -> None:
    """Fetch, run both, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    given = parser.parse_known_args()[1]
    version = (installed_version() or "").partition("+")[0]
    if not version:
        sys.exit("vLLM is not installed: run make install")
    BUILD.mkdir(parents=True, exist_ok=True)
    try:
        folder = fetch(version)
    except LengthwiseError as error:
        sys.exit(str(error))
    stock = run(folder, "stock", given)
    ours = run(folder, "ours", given)
    passed = [name for name, outcome in stock.items() if outcome == "passed"]
    left_out = [name for name in passed if name.partition(".")[2].partition("[")[0] in LEFT_OUT]
    differ = [name for name in passed if ours.get(name) != "passed" and name not in left_out]
    for name in differ:
        print(f"{ours.get(name, 'missing')}: {name}")
    for name in left_out:
        print(f"left out: {name}: it {LEFT_OUT[name.partition('.')[2].partition('[')[0]]}")
    print(f"of {len(stock)} tests, vLLM {version} passes {len(passed)} here;", end=" ")
    print(f"with the Lengthwise scheduler {len(differ)} of these do not pass ({BUILD}/ours.log)")
    sys.exit(1 if differ or not passed else 0)


if __name__ == "__main__":
    main()
