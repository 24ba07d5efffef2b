"""What the documentation says about the code is read from the code when the site is built.

A page asks with a line `<!-- generate: NAME ARGUMENT -->`; `GENERATORS` has the names, and
scripts/generated/ what writes them. MkDocs calls `on_page_markdown` (see `hooks:` in mkdocs.yml)
and tests/test_docs.py builds the pages too.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from scripts.generated import commands, fields, figures, packages, registered

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


GENERATORS: dict[str, Callable[[str], str]] = {
    "command": commands.command,
    "counters": registered.counters,
    "fields": fields.fields,
    "file": file,
    "guards-figure": figures.guards_figure,
    "guards-table": figures.guards_table,
    "guessed-columns": registered.guessed_columns,
    "hint-outcomes": registered.hint_outcomes,
    "gateway-outcomes": registered.gateway_outcomes,
    "keys": fields.keys,
    "layouts": registered.layouts,
    "policies": registered.policies,
    "policy": registered.policy,
    "prompt-layouts": registered.prompt_layouts,
    "python": packages.python,
    "reference-flags": registered.reference_flags,
    "request": fields.request,
    "rooms": packages.rooms,
    "settings": fields.settings,
    "tau-figure": figures.tau_figure,
    "theory": figures.theory,
}
