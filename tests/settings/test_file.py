"""The settings file: what is written is read again, and what is no settings file is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from lengthwise.errors import InputError
from lengthwise.settings import Settings, read_settings, status_path


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
