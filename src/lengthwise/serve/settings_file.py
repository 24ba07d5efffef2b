"""The settings file that a server is started with, and what learns beside it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lengthwise.errors import InputError

if TYPE_CHECKING:
    from lengthwise.learn.supervisor import LearnerProcess
    from lengthwise.settings import Settings


def settings_in_force(file: Path, given: list[str]) -> Settings:
    """The settings that a file of the user's holds, which says everything."""
    from lengthwise.settings import read_settings

    if given:
        raise InputError(
            f"{file} exists and says what to do: leave {' and '.join(given)} out, "
            "or remove it to have it made anew"
        )
    return read_settings(file)[0]


def new_settings(
    policy: str | None,
    predictor: str | None,
    log: Path | None,
    log_text: bool,
    host: str,
    *,
    pausing: bool = False,
) -> Settings:
    """The settings to begin with; metrics are for whoever may reach the server.

    Args:
        policy: with options, as on a command line.
        predictor: as on a command line.
        log: folder of a log of lengths.
        log_text: whether it keeps prompts.
        host: the address to listen on.
        pausing: whoever makes way keeps its KV, where that can be.
    """
    from lengthwise.settings import LengthLogSettings, Settings, parse_spec

    length_log = None
    if log is not None:
        length_log = LengthLogSettings(folder=str(log.absolute()), text=log_text)
    base = Settings(
        predictor=predictor_setting(predictor) or "declared",
        length_log=length_log,
        metrics_host=host or None,
        pausing=pausing and "auto",
    )
    return parse_spec(policy or "srpt", base)


def learnt_before(log: Path) -> str:
    """What learning begins with: what it had come to, or no predictor."""
    from lengthwise.learn.learner import latest_predictor
    from lengthwise.predict.load import NO_PREDICTOR

    latest = latest_predictor(log)
    if latest is None:
        say("no predictor yet: requests are served as they come until one is learnt")
    return latest or NO_PREDICTOR


def learner_of(settings: Settings, path: Path, every: int) -> LearnerProcess:
    """The process that learns from the log that the settings name."""
    from lengthwise.learn.supervisor import LearnerProcess

    assert settings.length_log is not None
    return LearnerProcess(Path(settings.length_log.folder), path, every, say)


def predictor_setting(predictor: str | None) -> str | None:
    """A predictor's folder as an absolute path, since the engine may run elsewhere."""
    if predictor is not None and Path(predictor).exists():
        return str(Path(predictor).absolute())
    return predictor


def write_settings(settings: Settings, path: Path) -> None:
    """Write the settings file that is to be watched."""
    try:
        settings.write(path)
    except OSError as error:
        raise InputError(
            f"cannot write the settings to {path} ({error.strerror}): "
            "name a file that can be written with --settings"
        ) from error


def own_settings_file(port: int) -> Path:
    """Where the settings are that the user gave no file for."""
    from lengthwise.serve.whereabouts import state_folder

    return state_folder(port) / "settings.json"


def say_if_off(path: Path, port: int) -> None:
    """Tell that an earlier `lengthwise off` still holds: whoever said so may have had a reason."""
    from lengthwise.settings import off_path

    if off_path(path).exists():
        say(
            f"switched off: {off_path(path)} is there, and the order is that of arrival; "
            f"`lengthwise on http://localhost:{port}` lets the settings decide"
        )


def say(line: str) -> None:
    """Tell whoever started the command; standard output is for results."""
    print(f"lengthwise: {line}", file=sys.stderr, flush=True)
