"""What users may rely on: the exported names, light imports, and arrows that point down only."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import lengthwise

SOURCE = Path(lengthwise.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))

# Which rooms a room may import. These are open to all, and everything to `cli`.
OPEN = {"errors", "compiled", "files", "intervals", "processes"}
MAY_IMPORT = {
    "errors": set(),
    "compiled": set(),
    "files": set(),
    "intervals": set(),
    "processes": set(),
    "counters": set(),
    "request": set(),
    "policy": {"request"},
    "workload": {"request"},
    "measure": set(),
    "theory": set(),
    "simulate": {"request", "policy", "workload"},
    "advise": {"request", "policy", "workload", "measure", "simulate"},
    "reference": {"workload"},
    "predict": {"request", "workload", "reference"},
    "probe": {"predict"},
    "learn": {"workload", "predict"},
    "hints": {"workload", "predict"},
    "settings": {"counters", "policy"},
    "telemetry": {"counters", "settings", "predict", "workload"},
    "vllm": {
        "counters",
        "request",
        "policy",
        "predict",
        "probe",
        "workload",
        "settings",
        "telemetry",
    },
    "emulate": {
        "simulate",
        "policy",
        "workload",
        "settings",
        "vllm",
        "predict",
        "reference",
    },
    "serve": {
        "learn",
        "workload",
        "measure",
        "policy",
        "predict",
        "probe",
        "reference",
        "simulate",
        "settings",
        "telemetry",
        "vllm",
        "emulate",
    },
    "gateway": {
        "counters",
        "request",
        "policy",
        "workload",
        "predict",
        "hints",
        "settings",
        "telemetry",
    },
    "route": {"policy", "hints"},
    "ray": {"policy", "simulate", "predict", "route", "settings", "vllm", "emulate", "serve"},
    "compare": {
        "serve",
        "workload",
        "measure",
        "predict",
        "probe",
        "reference",
        "settings",
        "vllm",
        "policy",
        "simulate",
        "advise",
        "emulate",
    },
}
LIGHT = [
    "lengthwise",
    "lengthwise.policy",
    "lengthwise.workload",
    "lengthwise.measure",
    "lengthwise.simulate",
    "lengthwise.advise",
    "lengthwise.theory",
    "lengthwise.probe",
    "lengthwise.settings",
    "lengthwise.telemetry",
    "lengthwise.learn",
    "lengthwise.learn.learner",
    "lengthwise.hints",
    "lengthwise.gateway.server",
    "lengthwise.ray",
    "lengthwise.route",
]
HEAVY = {"torch", "vllm", "transformers", "ray"}
# Both can run code that hides in data; artifacts are safetensors and JSON.
FORBIDDEN_MODULES = {"pickle", "dill", "cloudpickle", "marshal", "shelve"}
FORBIDDEN_CALLS = {"eval", "exec"}


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Every module that a file imports, at the top or inside a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def executing_names(tree: ast.AST) -> set[str]:
    """What a file imports or calls of that which can run code hidden in data."""
    imported = {name.split(".")[0] for name in imported_names(tree)}
    called = {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    return imported & FORBIDDEN_MODULES | called & FORBIDDEN_CALLS


def room_of(path: Path) -> str:
    """The first name below the package: the room that a file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def constants_and_classes_first(name: str) -> tuple[bool, bool, str]:
    """The order that ruff keeps `__all__` in."""
    return (not name.isupper(), not name[0].isupper(), name)


@pytest.mark.parametrize("module", ["lengthwise", *(f"lengthwise.{room}" for room in MAY_IMPORT)])
def test_exported_names_are_sorted_and_resolve(module: str) -> None:
    imported = importlib.import_module(module)
    exported = getattr(imported, "__all__", [])
    assert list(exported) == sorted(exported, key=constants_and_classes_first)
    assert len(set(exported)) == len(exported)
    for name in exported:
        assert getattr(imported, name) is not None


def test_the_package_says_what_is_public() -> None:
    assert lengthwise.__all__


def test_importing_is_light() -> None:
    lines = [
        f"import {module}; print({module!r}, *({HEAVY!r} & set(sys.modules)))" for module in LIGHT
    ]
    finished = subprocess.run(
        [sys.executable, "-c", "\n".join(["import sys", *lines])],
        capture_output=True,
        text=True,
        check=True,
    )
    assert finished.stdout.split() == LIGHT


def test_imports_point_down() -> None:
    wrong = [
        f"{path.relative_to(SOURCE)} must not import {name}"
        for path in MODULES
        if (room := room_of(path)) not in ("cli", "__init__")
        for name in imported_names(ast.parse(path.read_text()))
        if name.startswith("lengthwise.")
        and name.split(".")[1] not in MAY_IMPORT[room] | {room, *OPEN}
    ]
    assert wrong == []


def test_no_files_import_each_other_in_a_circle() -> None:
    """Not even inside a function, or for types alone: what the two share stands below both."""
    files = {
        ".".join(("lengthwise", *path.relative_to(SOURCE).with_suffix("").parts)): path
        for path in MODULES
        if path.name != "__init__.py"
    }
    order = TopologicalSorter(
        {
            module: {
                found
                for name in imported_names(ast.parse(path.read_text()))
                for found in (name, name.rpartition(".")[0])
                if found in files
            }
            for module, path in files.items()
        }
    )
    order.prepare()  # raises CycleError, which names the circle


def test_nothing_executes_data() -> None:
    wrong = [
        f"{path.relative_to(SOURCE)} uses {name}"
        for path in MODULES
        for name in executing_names(ast.parse(path.read_text()))
    ]
    assert wrong == []
