"""What is in a settings file, a request and a record."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import types
import typing
from pathlib import Path
from typing import Any

from scripts.generated.markdown import code, escape, one_line, table

ROOT = Path(__file__).parents[2]


def settings(_: str) -> str:
    """Every key of the settings file."""
    return keys("lengthwise.settings:Settings")


def keys(where: str) -> str:
    """Every key of an object that a pydantic model describes, `module:Class`."""
    module, _, name = where.partition(":")
    model = getattr(importlib.import_module(module), name)
    rows = [
        (
            f"`{name}`",
            f"`{type_name(field.annotation)}`",
            "" if field.is_required() else f"`{json.dumps(field.default)}`",
            one_line(field.description),
        )
        for name, field in model.model_fields.items()
    ]
    return table(("key", "type", "default", "meaning"), rows)


def type_name(annotation: Any) -> str:
    """A short name for a setting's type, as JSON users know it."""
    origin = typing.get_origin(annotation)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(type_name(part) for part in typing.get_args(annotation))
    if origin is typing.Annotated:
        return type_name(typing.get_args(annotation)[0])
    if origin is typing.Literal:
        return " or ".join(json.dumps(part) for part in typing.get_args(annotation))
    if hasattr(annotation, "model_fields"):
        return "object"
    json_names = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}
    name = getattr(annotation, "__name__", str(annotation))
    return {"NoneType": "null", "dict": "object", **json_names}.get(name, name)


def request(_: str) -> str:
    """The fields of REQUEST, with the comments that stand beside them."""
    from lengthwise.request import REQUEST

    text = (ROOT / "src/lengthwise/request.py").read_text(encoding="utf-8")
    comments = dict(re.findall(r'^ +\("(\w+)", np\.\w+\),  # (.+)$', text, re.MULTILINE))
    names = REQUEST.names or ()
    rows = [
        (f"`{name}`", f"`{REQUEST[name]}`", escape(comments.get(name, name.replace("_", " "))))
        for name in names
    ]
    return table(("field", "type", "meaning"), rows)


def fields(where: str) -> str:
    """The fields of a dataclass, `module:Class`, with the comments that stand beside them."""
    module, _, name = where.partition(":")
    lines = inspect.getsource(getattr(importlib.import_module(module), name)).splitlines()
    found = (re.match(r"    (\w+): (.+?)(?: = .+?)?  # (.+)$", line) for line in lines)
    rows = [(f"`{m[1]}`", code(m[2]), escape(m[3])) for m in found if m]
    return table(("field", "type", "meaning"), rows)
