"""The engines' folder: what a killed server leaves is taken away, and nothing that others hold."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from lengthwise.serve.whereabouts import EnginesFolder

HOLDS = (
    "import time; from lengthwise.serve.whereabouts import EnginesFolder;"
    "folder = EnginesFolder(); print(folder.name, flush=True); time.sleep(99)"
)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_it_is_gone_with_the_server(temporary: Path) -> None:
    with EnginesFolder() as name:
        (Path(name) / "engine-0-1.json").write_text("{}")
    assert list(temporary.iterdir()) == []


def test_what_a_killed_server_left_is_taken_away_by_the_next() -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDS], stdout=subprocess.PIPE, text=True) as one:
        assert one.stdout is not None
        folder = Path(one.stdout.readline().strip())
        (folder / "engine-0-1.json").write_text("{}")
        with EnginesFolder():
            assert folder.is_dir(), "its server runs"
        one.kill()
    assert folder.is_dir()
    with EnginesFolder() as name:
        assert not folder.exists()
        assert Path(name).is_dir()


def test_what_nobody_says_is_a_servers_stays(temporary: Path) -> None:
    new, file = temporary / "lengthwise-engines-new", temporary / "lengthwise-engines-file"
    new.mkdir()
    file.write_text("")
    with EnginesFolder():
        assert new.is_dir()
        assert file.is_file()
