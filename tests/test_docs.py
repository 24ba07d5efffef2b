"""The documentation is true: its code runs, its commands exist, its tables are those measured."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main

from lengthwise.cli.main import app
from lengthwise.policy import policy_names
from lengthwise.vllm.settings import parse_settings

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)(#[^)]*)?\)|src=\"([^\"]+)\"")


def name_of(path: Path) -> str:
    """A path as test ids show it."""
    return str(path.relative_to(ROOT))


def blocks(language: str) -> Iterator[Any]:
    """Every fenced block of a language, as a test parameter."""
    for page in PAGES:
        found = [m[2] for m in BLOCK.finditer(page.read_text(encoding="utf-8")) if m[1] == language]
        for number, text in enumerate(found):
            yield pytest.param(text, id=f"{name_of(page)}-{number}")


def script(name: str) -> ModuleType:
    """A module of scripts/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the project's root."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("path", EXAMPLES, ids=name_of)
def test_examples_run(path: Path) -> None:
    finished = run(str(path))
    assert finished.returncode == 0, finished.stderr


def test_the_policy_of_the_example_can_be_named_by_its_file() -> None:
    finished = run(
        "-c",
        "from lengthwise.policy import get_policy\n"
        "policy = get_policy('examples/own_policy.py#patient')\n"
        "assert policy.parameters == {'patience_s': 10.0}\n"
        "assert policy.preemption == 'pays'\n",
    )
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("text", [p for p in blocks("python") if "--8<--" not in p.values[0]])
def test_python_blocks_run(text: str) -> None:
    finished = run("-c", text)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("text", blocks("json"))
def test_json_blocks_are_json_and_settings_are_valid(text: str) -> None:
    value = json.loads(text)
    if "policy" in value:
        parse_settings(value)


@pytest.mark.parametrize("text", blocks("bash"))
def test_commands_exist_with_their_options(text: str) -> None:
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words or Path(words[0]).name != "lengthwise":
            continue
        command = COMMANDS[words[1]]
        options = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
        given = {word.partition("=")[0] for word in words[2:] if word.startswith("--")}
        assert given <= options | {"--help"}, line


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files(page: Path) -> None:
    for link in LINK.finditer(page.read_text(encoding="utf-8")):
        target = link[1] or link[3]
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_generated_parts_can_be_generated(page: Path) -> None:
    hooks = script("docs_hooks")
    text = page.read_text(encoding="utf-8")
    assert text.count("<!-- generate:") == len(hooks.MARKER.findall(text))
    assert "<!-- generate:" not in hooks.on_page_markdown(text)


def test_every_policy_is_described() -> None:
    text = (ROOT / "docs/reference/policies.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert sorted(section.split("\n")[0] for section in sections) == policy_names()
    for section in sections:
        for part in ("What it does", "Why choose it", "Trade-offs"):
            assert f"**{part}.**" in section, section.split("\n")[0]


def test_every_verb_is_described() -> None:
    text = (ROOT / "docs/reference/command-line.md").read_text(encoding="utf-8")
    described = re.findall(r"^<!-- generate: command ([\w-]+) -->$", text, re.MULTILINE)
    assert sorted(described) == sorted(COMMANDS)


def test_measured_tables_are_up_to_date() -> None:
    finished = run("scripts/fill_tables.py", "--check")
    assert finished.returncode == 0, finished.stderr


def test_the_picture_is_the_one_its_script_draws() -> None:
    assert (ROOT / "docs/assets/overview.svg").read_text() == script("draw_overview").draw()
