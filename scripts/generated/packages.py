"""The packages of the source and their public names."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

from scripts.generated.markdown import escape, one_line, table

ROOT = Path(__file__).parents[2]


def rooms(_: str) -> str:
    """The packages of the source, each with its purpose, those that import nothing first."""
    source = ROOT / "src/lengthwise"
    uses = {
        folder.name: {
            name
            for path in folder.rglob("*.py")
            for name in re.findall(r"from lengthwise\.(\w+)", path.read_text(encoding="utf-8"))
            if (source / name).is_dir() and name != folder.name
        }
        for folder in sorted(source.iterdir())
        if (folder / "__init__.py").is_file()
    }
    rows: list[tuple[str, str, str]] = []
    while uses:
        lowest = [name for name in uses if not uses[name] & uses.keys()]
        assert lowest, f"packages import each other in a circle: {', '.join(uses)}"
        for name in lowest:
            says = (source / name / "__init__.py").read_text(encoding="utf-8")
            purpose = says.removeprefix('"""').partition('"""')[0].partition("\n\n")[0]
            below = ", ".join(f"`{each}`" for each in sorted(uses[name])) or "—"
            rows.append((f"`{name}`", one_line(purpose), below))
        uses = {name: used for name, used in uses.items() if name not in lowest}
    return table(("package", "what it is", "imports"), rows)


def python(_: str) -> str:
    """The public names of every room, with the first line of their docstrings."""
    parts = []
    rooms = ("policy", "predict", "probe", "workload", "measure", "theory", "reference")
    for name in ("lengthwise", *(f"lengthwise.{room}" for room in rooms)):
        module = importlib.import_module(name)
        names = getattr(module, "__all__", [])
        if names:
            rows = [member(getattr(module, name), name) for name in names]
            parts += [f"## {module.__name__}", first_line(module), table(("name", "meaning"), rows)]
    return "\n\n".join(parts)


def member(value: object, name: str) -> tuple[str, str]:
    """A table row for one public name."""
    documented = inspect.isroutine(value) or inspect.isclass(value)
    return f"`{name}{signature(value)}`", first_line(value) if documented else "a constant"


def signature(value: object) -> str:
    """The names of a function's parameters."""
    if not inspect.isroutine(value):
        return ""
    return f"({', '.join(inspect.signature(value).parameters)})"


def first_line(value: object) -> str:
    """The first line of a docstring."""
    return escape((inspect.getdoc(value) or "").split("\n")[0])
