"""What the documentation says about the code is read from the code when the site is built.

A page asks with a line `<!-- generate: NAME ARGUMENT -->`; `GENERATORS` has the names. MkDocs calls
`on_page_markdown` (see `hooks:` in mkdocs.yml) and tests/test_docs.py builds the pages too.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import re
import runpy
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MARKER = re.compile(r"^<!-- generate: (?P<name>[\w-]+) ?(?P<argument>.*?) *-->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: object) -> str:
    """The hook: every marker of a page replaced by what it asks for."""
    return MARKER.sub(lambda found: GENERATORS[found["name"]](found["argument"]), markdown)


def file(name: str) -> str:
    """A Markdown file of the project's root, with its links as seen from docs/."""
    text = (ROOT / name).read_text(encoding="utf-8")
    text = re.sub(r"(\]\(|src=\")docs/", r"\1", text)
    text = re.sub(r"\[([^\]]+)\]\(LICENSE\)", r"\1", text)
    return text.replace("](CHANGELOG.md)", "](changes.md)").replace(
        "](CONTRIBUTING.md)", "](contributing.md)"
    )


def command(verb: str) -> str:
    """A verb of the command line: its help text and its options as a table."""
    import typer.main

    from lengthwise.cli.main import app

    group: Any = typer.main.get_command(app)
    found = group.commands[verb]
    usage = " ".join(["lengthwise", verb, *map(shown, arguments_of(found)), "[OPTIONS]"])
    rows = [
        (
            ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts)),
            default_of(option),
            one_line(option.help),
        )
        for option in found.params
        if option.param_type_name == "option" and "--help" not in option.opts
    ]
    arguments = [(f"`{shown(p)}`", one_line(p.help)) for p in arguments_of(found)]
    parts = [plain(found.help), f"```text\n{usage}\n```"]
    if arguments:
        parts.append(table(("argument", "meaning"), arguments))
    parts.append(table(("option", "default", "meaning"), rows))
    return "\n\n".join(parts)


def arguments_of(found: Any) -> list[Any]:
    """The positional parameters of a command."""
    return [p for p in found.params if p.param_type_name == "argument"]


def shown(argument: Any) -> str:
    """How the usage line names an argument."""
    name = argument.metavar or argument.name.upper()
    return name if argument.required or name.startswith("[") else f"[{name}]"


def default_of(option: Any) -> str:
    """An option's default as a table shows it."""
    if isinstance(option.show_default, str):
        return f"`{option.show_default}`"
    value = option.default
    if (
        value is None
        or value is False
        or callable(value)
        or isinstance(value, (list, tuple))
        or value == ""
    ):
        return ""
    return f"`{value}`"


def plain(text: str | None) -> str:
    """A command's help as Markdown: Typer's paragraph marks removed, examples as code."""
    paragraphs = inspect.cleandoc(text or "").replace("\b\n", "").split("\n\n")
    return "\n\n".join(
        f"```bash\n{inspect.cleandoc(part)}\n```"
        if part.startswith(("    ", "lengthwise "))
        else part
        for part in paragraphs
    )


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


def policies(_: str) -> str:
    """All built-in policies, one row each."""
    from lengthwise.policy import get_policy, policy_names

    rows = []
    for name in policy_names():
        policy = get_policy(name)
        anchor = name.replace("+", "-plus")
        rows.append((f"[`{name}`](#{anchor})", policy.summary, f"`{policy.preemption}`"))
    return table(("policy", "order", "preemption by default"), rows)


def policy(name: str) -> str:
    """What a policy reads and takes, from its function and its registration."""
    from lengthwise.policy import get_policy

    found = get_policy(name)
    source = inspect.getsource(found.rank.py_func)
    body = source[source.index("def ") :]
    fields = sorted(set(re.findall(r"\brequest\.(\w+)", body)))
    inputs = ", ".join(f"[`{field}`](request.md#fields)" for field in fields)
    predictor = f"`{found.predictor}`, always" if found.predictor else "yours"
    parameters = ", ".join(f"`{key}` = {value:g}" for key, value in found.parameters.items())
    rows = [
        ("Inputs", inputs or "none"),
        ("Predictor", predictor if found.predicts else "not needed"),
        ("Parameters", parameters or "none"),
        ("Preemption", f"`{found.preemption}` by default"),
    ]
    return "\n".join(f"- *{name}:* {value}" for name, value in rows)


def counters(_: str) -> str:
    """The scheduler's counters, as the status file and Prometheus have them."""
    from lengthwise.counters import HELP, Counters

    rows = [
        (f"`{name}`", f"`lengthwise_{name}_total`", HELP[name]) for name in Counters().snapshot()
    ]
    return table(("status file", "Prometheus", "what is counted"), rows)


def hint_outcomes(_: str) -> str:
    """What the middleware that writes hints counts."""
    from lengthwise.hints.counts import OUTCOMES

    rows = [(f"`{name}`", says) for name, says in OUTCOMES.items()]
    return table(("outcome", "what became of the request"), rows)


def gateway_outcomes(_: str) -> str:
    """What a gateway counts of requests."""
    from lengthwise.gateway.prometheus import OUTCOMES

    rows = [(f"`{name}`", says) for name, says in OUTCOMES.items()]
    return table(("outcome", "what became of the request"), rows)


def reference_flags(_: str) -> str:
    """What the built-in model is served with."""
    from lengthwise.serve.served_model import REFERENCE_FLAGS

    flags = (f"{name} {value}" if value else name for name, value in REFERENCE_FLAGS.items())
    return "\n".join(("```text", *flags, "```"))


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


def layouts(_: str) -> str:
    """The layouts of traces, in the order in which they are tried."""
    from lengthwise.workload import layouts as known
    from lengthwise.workload.servegen import LAYOUT
    from lengthwise.workload.trace_records import NESTED

    units = {1.0: "s", 1e-3: "ms", 1e-9: "ns"}
    rows = [
        (
            f"`{each.name}`",
            each.source,
            f"`{each.arrival}` ({units[each.unit_s]})",
            f"`{each.prompt}`",
            f"`{each.output}`",
            ", ".join(
                [f"`{mark}`" for mark in each.marks]
                + [f"`{each.blocks}` (optional, {each.block_tokens} tokens)"] * bool(each.blocks)
            ),
        )
        for each in (LAYOUT, *(nested.layout for nested in NESTED), *known.LAYOUTS)
    ]
    guesses = (known.ARRIVAL_COLUMNS, known.PROMPT_COLUMNS, known.OUTPUT_COLUMNS)
    arrival, prompt, output = (" or ".join(f"`{name}`" for name in each) for each in guesses)
    rows.append((f"`{known.PLAIN}`", "any other table", f"{arrival} (s)", prompt, output, ""))
    return table(("layout", "from", "arrival", "prompt", "answer", "further columns"), rows)


def prompt_layouts(_: str) -> str:
    """The layouts of prompts with answers, in the order in which they are tried."""
    from lengthwise.workload import prompt_layouts as known

    rows = [
        (f"`{each.name}`", each.source, each.prompt or "none", each.answer)
        for each in known.LAYOUTS
    ]
    rows.append(("`columns`", "any other table", "a column of prompts", "a column of answers"))
    return table(("layout", "from", "prompt", "answer"), rows)


def guessed_columns(_: str) -> str:
    """The columns that a table of no published layout is searched for."""
    from lengthwise.workload.prompt_layouts import named_columns as known

    found = {
        "prompts": known.PROMPT_COLUMNS,
        "lengths of answers, in tokens": known.LENGTH_COLUMNS,
        "answers, whose tokens are counted": known.ANSWER_COLUMNS,
    }
    rows = [(what, ", ".join(f"`{name}`" for name in names)) for what, names in found.items()]
    return table(("column of", "the first of these that is there"), rows)


def fields(where: str) -> str:
    """The fields of a dataclass, `module:Class`, with the comments that stand beside them."""
    module, _, name = where.partition(":")
    lines = inspect.getsource(getattr(importlib.import_module(module), name)).splitlines()
    found = (re.match(r"    (\w+): (.+?)(?: = .+?)?  # (.+)$", line) for line in lines)
    rows = [(f"`{m[1]}`", code(m[2]), escape(m[3])) for m in found if m]
    return table(("field", "type", "meaning"), rows)


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


def theory(name: str) -> str:
    """A part of the theory page, computed now: a function of scripts/theory_numbers.py."""
    part = theory_numbers()[name]()
    return part if isinstance(part, str) else table(*part)


@functools.cache
def theory_numbers() -> dict[str, Any]:
    """The names of that script, which runs once however many parts are asked for."""
    return runpy.run_path(str(ROOT / "scripts" / "theory_numbers.py"))


def tau_figure(_: str) -> str:
    """Latency against tau, drawn from docs/results/tau.json."""
    kept = json.loads((ROOT / "docs" / "results" / "tau.json").read_text(encoding="utf-8"))
    drawing: str = runpy.run_path(str(ROOT / "scripts" / "draw_tau.py"))["draw"](kept["rows"])
    # One line: Markdown takes an empty one for the end of the figure.
    return f'<figure class="plot">{" ".join(drawing.split())}</figure>'


def guards_figure(_: str) -> str:
    """Mean against tail for kinds of guards, drawn from docs/results/choose-guard.json."""
    drawing: str = runpy.run_path(str(ROOT / "scripts" / "draw_guards.py"))["draw"](guard_rows())
    return f'<figure class="plot">{" ".join(drawing.split())}</figure>'


def guards_table(_: str) -> str:
    """The rows of docs/results/choose-guard.json."""
    figures = ("mean", "p99", "longest_wait", "worst_wait")
    heads = ("load", "guard", "pausing", *figures, "bounds")
    rows = [
        (
            row["load"],
            code(row["guard"]),
            "on" if row["pausing"] else "off",
            *(f"{row[name]:.2f}×" for name in figures),
            row["bound"],
        )
        for row in guard_rows()
    ]
    return table(heads, rows)


def guard_rows() -> list[dict[str, Any]]:
    """What `python bench/guards.py --json` gave."""
    kept = (ROOT / "docs" / "results" / "choose-guard.json").read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = json.loads(kept)["rows"]
    return rows


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


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def one_line(text: str | None) -> str:
    """Text as one table cell."""
    return escape(" ".join((text or "").split()))


def code(text: str) -> str:
    """Text as code in a table cell."""
    return "`" + text.replace("|", "\\|") + "`"


def escape(text: str) -> str:
    """Keep `|` from ending a table cell, and `[` from looking like a link."""
    return text.replace("|", "\\|").replace("[", "\\[")


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


GENERATORS: dict[str, Callable[[str], str]] = {
    "command": command,
    "counters": counters,
    "fields": fields,
    "file": file,
    "guards-figure": guards_figure,
    "guards-table": guards_table,
    "guessed-columns": guessed_columns,
    "hint-outcomes": hint_outcomes,
    "gateway-outcomes": gateway_outcomes,
    "keys": keys,
    "layouts": layouts,
    "policies": policies,
    "policy": policy,
    "prompt-layouts": prompt_layouts,
    "python": python,
    "reference-flags": reference_flags,
    "request": request,
    "rooms": rooms,
    "settings": settings,
    "tau-figure": tau_figure,
    "theory": theory,
}
