"""The documentation is true: its code runs, its commands exist, its tables are those measured."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import typer.main

from lengthwise.cli.main import app
from lengthwise.measure.results import (
    RequestRecord,
    ResultsWriter,
    RoundInfo,
    RunInfo,
    describe_machine,
)
from lengthwise.policy import get_policy, policy_names
from lengthwise.settings import OVERTAKE_SHARE, parse_settings

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)(#[^)]*)?\)|src=\"([^\"]+)\"")


def name_of(path: Path) -> str:
    """A path as test ids show it."""
    return str(path.relative_to(ROOT))


def blocks(language: str) -> list[Any]:
    """Every fenced block of a language, as test parameters; included files are no blocks."""
    return [
        pytest.param(found[2], id=f"{name_of(page)}-{number}")
        for page in PAGES
        for number, found in enumerate(BLOCK.finditer(page.read_text(encoding="utf-8")))
        if found[1] == language and "--8<--" not in found[2]
    ]


def script(name: str) -> ModuleType:
    """A module of scripts/."""
    return importlib.import_module(f"scripts.{name}")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the project's root."""
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("path", EXAMPLES, ids=name_of)
def test_examples_run(path: Path) -> None:
    finished = run(str(path))
    assert finished.returncode == 0, finished.stderr


def test_the_policy_of_the_example_can_be_named_by_its_file() -> None:
    finished = run(
        "-c",
        "from lengthwise.policy.discipline import make_discipline\n"
        "from lengthwise.policy.prepass import warm_up\n"
        "discipline = make_discipline(\n"
        "    'examples/own_policy.py#patient', parameters={'patience_s': 5.0}\n"
        ")\n"
        "warm_up(discipline)\n"
        "assert discipline.preemption == 'pays'\n",
    )
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("text", blocks("python"))
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
    for line in re.findall(r"^(?:\S*/)?lengthwise .*$", text.replace("\\\n", " "), re.MULTILINE):
        words = shlex.split(line, comments=True)
        own = words[2 : words.index("--")] if "--" in words else words[2:]
        command = COMMANDS[words[1]]
        options = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
        given = {word.partition("=")[0] for word in own if word.startswith("--")}
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
    titles = [section.split("\n")[0].partition(" {")[0] for section in sections]
    # Other tests may have registered policies of their own.
    built_in = "lengthwise.policy.ranks"
    ours = {name for name in policy_names() if get_policy(name).rank.__module__ == built_in}
    assert set(titles) == ours
    for section in sections:
        for part in ("What it does", "Why choose it", "Trade-offs"):
            assert f"**{part}.**" in section, section.split("\n")[0]


def test_every_verb_is_described() -> None:
    text = (ROOT / "docs/reference/command-line.md").read_text(encoding="utf-8")
    described = re.findall(r"^<!-- generate: command ([\w-]+) -->$", text, re.MULTILINE)
    assert sorted(described) == sorted(COMMANDS)


@pytest.mark.parametrize("page", ["README.md", "docs/background/guards.md"])
def test_the_stated_bound_is_the_default(page: str) -> None:
    assert OVERTAKE_SHARE == 0.5
    assert "**K = slots + ½ w**" in (ROOT / page).read_text(encoding="utf-8")


def test_measured_tables_are_up_to_date() -> None:
    finished = run("scripts/fill_tables.py", "--check")
    assert finished.returncode == 0, finished.stderr


def test_no_command_names_a_folder_outside_of_the_project() -> None:
    caption = script("fill_tables").caption
    kept = {"machine": {"cores": 2, "processor": "x"}, "versions": {}, "date": "2026-01-02"}
    for path in ("../shared/data/a.parquet", "/home/me/data/a.parquet", "a.parquet"):
        command = f"lengthwise bench {path} --data={path} --out build/b --load 0.9,1.2"
        shown = caption({**kept, "command": command})
        assert "`lengthwise bench a.parquet --data=a.parquet --out build/b --load 0.9,1.2`" in shown
    for page in PAGES:
        assert "../shared" not in page.read_text(encoding="utf-8"), page
    as_typed = script("fill_tables").as_typed
    for path in (ROOT / "docs" / "results").glob("*.json"):
        command = json.loads(path.read_text(encoding="utf-8")).get("command", "")
        assert command == as_typed(command), path


def test_targets_say_what_was_not_reached() -> None:
    results = {
        name: {"rows": [{"label": "built-in", "queued": 100_000, **row}]}
        for name, row in {
            "memory": {"added_mib": 101},
            "drift": {"drifted_over_fcfs_high": 1.05, "retrained_over_fcfs_high": 0.9},
            "probe": {
                "ratio_prompt_only": 1.7,
                "ratio_prompt_only_low": 1.5,
                "ratio_prompt_only_high": 1.9,
                "ratio_reestimated": 1.4,
                "ratio_raw": 1.0,
            },
        }.items()
    }
    text = "\n".join(script("targets").targets_table(results))
    assert "| MiB with 100,000 queued | ≤ 100 | 101 | **no** |" in text
    assert "over fcfs, largest | ≤ 1.05 | 1.05 | yes |" in text
    assert "| error of the prompt alone / probe | ≥ 1.60 | 1.70 (1.50–1.90) | yes |" in text
    assert "| error of prompt and age / probe | ≥ 1.50 | 1.40 | **no** |" in text
    assert "| `tune`, s | ≤ 300 | not measured | — |" in text


def test_a_table_is_filled_from_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = script("fill_tables")
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "results")
    info = RunInfo("lengthwise bench x", "2026-01-02T03:04:05+00:00", "reference", "x", 1)
    writer = ResultsWriter(tmp_path / "run", dataclasses.replace(info, machine=describe_machine()))
    for number, (policy, latency_s) in enumerate([("fcfs", 3.0), ("srpt", 2.0), ("oracle", 1.0)]):
        record = RequestRecord(
            round=number,
            policy=policy,
            load="burst",
            request=0,
            scheduled_s=0.0,
            sent_s=0.0,
            first_token_s=0.5,
            finish_s=latency_s,
            token_times=np.array([0.5, latency_s], dtype=np.float32),
            prompt_tokens=3,
            output_tokens=2,
        )
        writer.append(RoundInfo(number, policy, "burst", 0), [record])
    tables.keep("trail-loads", [str(tmp_path / "run")])
    block = "<!-- begin: trail-loads -->\nold\n<!-- end: trail-loads -->"
    text = tables.filled(f"a\n{block}\nb\n")
    assert "old" not in text
    assert text.startswith("a\n<!-- begin: trail-loads -->\n| load |")
    assert text.endswith("<!-- end: trail-loads -->\nb\n")
    assert "| All at once | `srpt` | 2.00 | 1.50× | 1.00 | 1.50× | 2.00 |" in text
    assert "| 50 % |" in text
    assert "`lengthwise bench x`" in text
    assert tables.filled(text) == text


def test_the_picture_is_the_one_its_script_draws() -> None:
    assert (ROOT / "docs/assets/overview.svg").read_text() == script("draw_overview").draw()
