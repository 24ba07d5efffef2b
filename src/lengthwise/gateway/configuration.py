"""What the settings say, made ready: exchanged as a whole, between two requests.

The settings file is the scheduler's, watched by the scheduler's own watcher, so that whatever
changes it (a hand, or learning) works here as well. Loading happens in the watcher's thread.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lengthwise.counters import Counters
from lengthwise.gateway.discipline import discipline_of, refuse_unsuited
from lengthwise.gateway.lengths import Source
from lengthwise.hints.predictor import PromptEncoder, PromptPredictor
from lengthwise.policy.discipline import Discipline
from lengthwise.policy.warm_up import warm_up
from lengthwise.predict.load import NO_PREDICTOR
from lengthwise.predict.token_text import token_text_of
from lengthwise.settings import Settings
from lengthwise.telemetry.length_log_writer import LengthLog

DEFAULT_TOKENIZER: Final = "reference"  #: cuts prompts into words where nothing names another


@dataclass(frozen=True)
class Configuration:
    """Everything that the settings decide.

    Attributes:
        settings: they themselves.
        source: of predictions and features.
    """

    settings: Settings
    source: Source


class Opener:
    """Makes settings ready, and keeps what stays the same.

    Args:
        tokenizer: the served model's; None: the predictor's own.
        model: what the length log calls what is served.
        slots: answers in flight at most, to try the discipline with.
        counters: the log's.

    Attributes:
        opened: the settings that were made ready last.
    """

    def __init__(self, tokenizer: str | None, model: str, slots: int, counters: Counters) -> None:
        self._tokenizer, self._model, self._slots = tokenizer, model, slots
        self._counters = counters
        self.opened = Settings()
        self._spec: str | None = None
        self._source = Source(None, None, None, None)

    def open(self, settings: Settings) -> Configuration:
        """Load what settings name; slow.

        Raises:
            InputError: something that they name cannot be used, or is for engines.
        """
        refuse_unsuited(settings)
        discipline = discipline_of(settings, self._slots)
        warm_up(discipline)
        before = self._source
        spec = self._wanted_predictor(settings, discipline)
        predictor = before.predictor
        if spec != self._spec:
            predictor = self._load(spec)
        log = before.log
        if settings.length_log is None:
            log = None
        elif log is None or log.key != settings.length_log:
            log = self._open_log(settings, predictor)
        encoder = None if predictor is None else predictor.encoder
        if encoder is None and log is not None:
            encoder = before.encoder or PromptEncoder(self._tokenizer or DEFAULT_TOKENIZER)
        if before.log is not None and before.log is not log:
            threading.Thread(target=before.log.close).start()  # it may have much to write
        self._spec = spec
        self._source = Source(predictor, encoder, log, None if spec is None else Path(spec).name)
        self.opened = settings
        return Configuration(settings, self._source)

    def close(self) -> None:
        """Write what is left of the log."""
        if self._source.log is not None:
            self._source.log.close()

    def _wanted_predictor(self, settings: Settings, discipline: Discipline) -> str | None:
        if not discipline.needs_predictions or settings.predictor == NO_PREDICTOR:
            return None
        return settings.predictor

    def _load(self, spec: str | None) -> PromptPredictor | None:
        if spec is None:
            return None
        tokenizer = self._tokenizer
        if tokenizer is None and not Path(spec).is_dir():
            tokenizer = DEFAULT_TOKENIZER  # those that are built in read no words
        predictor = PromptPredictor(spec, tokenizer)
        predictor.warm_up()
        return predictor

    def _open_log(self, settings: Settings, predictor: PromptPredictor | None) -> LengthLog:
        assert settings.length_log is not None
        encoder = None if predictor is None else predictor.encoder
        encoder = encoder or PromptEncoder(self._tokenizer or DEFAULT_TOKENIZER)
        text = token_text_of(encoder.tokenizer)
        return LengthLog(settings.length_log, text, self._model, self._counters)
