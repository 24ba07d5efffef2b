"""The settings file that a server is started with, and what learns beside it."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lengthwise.errors import InputError

if TYPE_CHECKING:
    from lengthwise.learn.process import LearnerProcess
    from lengthwise.settings import Settings


@dataclass(frozen=True)
class AskedFor:
    """What a command line says of a server's settings.

    Attributes:
        policy: with options; None for srpt.
        predictor: a folder or a name; None for what learning has come to, or for `declared`.
        log: folder of a log of lengths.
        log_text: it keeps prompts.
        learn: a predictor is learnt from it.
        shadow: the policy decides nothing.
    """

    policy: str | None = None
    predictor: str | None = None
    log: Path | None = None
    log_text: bool = False
    learn: bool = False
    shadow: bool = False

    def settings(self, file: Path | None, host: str, *, pausing: bool = False) -> Settings:
        """The settings to begin with.

        Args:
            file: the user's own; it says everything, if it is there.
            host: the address to listen on: metrics are for whoever may reach the server.
            pausing: whoever makes way keeps its KV, where that can be.

        Raises:
            InputError: the file is damaged, or the command line says something else; or there is
                no log to learn from.
        """
        from lengthwise.settings import read_settings

        if file is not None and file.exists():
            self._refuse_beside(file)
            chosen = read_settings(file)[0]
        else:
            chosen = self._new_settings(host, pausing)
        if chosen.length_log is None and (self.learn or self.log_text):
            raise InputError("--learn and --log-text need a log: add --log DIR")
        return chosen

    def _refuse_beside(self, file: Path) -> None:
        named = {
            "--policy": self.policy,
            "--predictor": self.predictor,
            "--log": self.log,
            "--log-text": self.log_text,
            "--shadow": self.shadow,
        }
        given = [name for name, value in named.items() if value]
        if given:
            raise InputError(
                f"{file} exists and says what to do: leave {' and '.join(given)} out, "
                "or remove it to have it made anew"
            )

    def _new_settings(self, host: str, pausing: bool) -> Settings:
        from lengthwise.settings import LengthLogSettings, Settings, parse_spec

        predictor, length_log = self.predictor, None
        if self.log is not None:
            length_log = LengthLogSettings(folder=str(self.log.absolute()), text=self.log_text)
            if self.learn and predictor is None:
                predictor = _learnt_before(self.log)
        base = Settings(
            predictor=predictor_setting(predictor) or "declared",
            length_log=length_log,
            metrics_host=host or None,
            pausing=pausing and "auto",
        )
        chosen = parse_spec(self.policy or "srpt", base)
        return chosen.model_copy(update={"shadow": chosen.shadow or self.shadow})


def _learnt_before(log: Path) -> str:
    """What learning begins with: what it had come to, or no predictor."""
    from lengthwise.learn.learner import latest_predictor
    from lengthwise.predict.load import NO_PREDICTOR

    latest = latest_predictor(log)
    if latest is None:
        say("no predictor yet: requests are served as they come until one is learnt")
    return latest or NO_PREDICTOR


def learner_of(settings: Settings, path: Path, every: int) -> LearnerProcess:
    """The process that learns from the log that the settings name."""
    from lengthwise.learn.process import LearnerProcess

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
    """Tell whoever started the command; standard output is for results.

    A server, and what watches it, goes on where nobody can be told.
    """
    with contextlib.suppress(OSError):
        print(f"lengthwise: {line}", file=sys.stderr, flush=True)
