"""The settings file: what is written is read again, and what is no settings file is refused."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lengthwise.errors import InputError
from lengthwise.settings import Settings, read_settings, status_path
from tests.support.strange_files import STRANGE

PATIENCE_S = 20.0


def test_a_file_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "settings.json"
    settings = Settings(policy="trail", parameters={"c": 0.5}, predictor="oracle", max_overtakes=7)
    digest = settings.write(path)
    assert read_settings(path) == (settings, digest)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert status_path(path).name == "settings.status.json"
    assert list(path.parent.iterdir()) == [path], "no temporary file is left"


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not JSON"), ("[1]", "must hold a JSON object")]
)
def test_a_broken_file_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "settings.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_settings(path)


def test_a_missing_file_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the settings file"):
        read_settings(tmp_path / "absent.json")


def test_folders_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    path = tmp_path / "settings.json"
    path.write_text('{"policy": "ltr", "predictor": "p", "length_log": {"folder": "log"}}')
    settings, _ = read_settings(path)
    assert settings.predictor == str(tmp_path / "p")
    assert settings.length_log is not None
    assert settings.length_log.folder == str(tmp_path / "log")
    settings.write(path)
    assert read_settings(path)[0] == settings


def test_the_file_is_plain_json(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    Settings().write(path)
    assert json.loads(path.read_text())["policy"] == "fcfs"


@pytest.mark.parametrize("strange", STRANGE)
def test_a_settings_file_of_any_kind_is_refused(strange: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    STRANGE[strange](path)
    started = time.monotonic()
    with pytest.raises(InputError) as caught:
        read_settings(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000
    assert time.monotonic() - started < PATIENCE_S


@pytest.mark.parametrize("mode", [0o644, 0o600, 0o664])
def test_a_settings_file_keeps_its_mode_and_its_link(tmp_path: Path, mode: int) -> None:
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    real.write_text("{}")
    real.chmod(mode)
    link.symlink_to(real)
    Settings(policy="priority").write(link)
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == mode
    assert read_settings(real)[0].policy == "priority"


def test_a_new_settings_file_has_the_mode_that_the_user_gives_to_files(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from lengthwise.settings import Settings;"
        "os.umask(0o027); Settings().write(Path(sys.argv[1]))"
    )
    path = tmp_path / "new.json"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=120)
    assert path.stat().st_mode & 0o777 == 0o640
