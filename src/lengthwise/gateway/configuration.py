"""What is decided when a gateway starts, and what its settings say, made ready.

The settings are exchanged as a whole, between two requests.

The settings file is the scheduler's, watched by the scheduler's own watcher, so that whatever
changes it (a hand, or learning) works here as well. Loading happens in the watcher's thread.
Settings that mean nothing in front of an engine are refused: a gateway takes back nothing it sent.
"""

from __future__ import annotations

import ssl
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from lengthwise.counters import Counters
from lengthwise.errors import InputError
from lengthwise.gateway.lengths import Source
from lengthwise.gateway.limits import Limits
from lengthwise.gateway.relay import Patience
from lengthwise.gateway.upstream import FIRST_LIMIT
from lengthwise.hints.estimate import PromptEncoder, PromptPredictor
from lengthwise.policy import get_policy
from lengthwise.policy.discipline import Discipline, make_discipline
from lengthwise.policy.prepass import warm_up
from lengthwise.predict.extract import token_text_of
from lengthwise.predict.load import NO_PREDICTOR
from lengthwise.settings import Settings
from lengthwise.telemetry.length_log_writer import LengthLog

DEFAULT_TOKENIZER: Final = "reference"  #: cuts prompts into words where nothing names another


@dataclass(frozen=True)
class Options:
    """What is decided when a gateway starts.

    Attributes:
        upstreams: addresses of the servers behind.
        max_inflight: answers that each may have under way; None: by what it says of its own queue.
        limits: of what waits.
        patience: with upstreams and clients.
        priority_header: the header whose number is a request's class; None: no header is believed.
        tenant_header: the header that says whose a request is; None: its API key does.
        upstream_ssl: what https upstreams are checked against; True for the system's authorities.
    """

    upstreams: list[str]
    max_inflight: int | None
    limits: Limits = field(default_factory=Limits)
    patience: Patience = field(default_factory=Patience)
    priority_header: str | None = None
    tenant_header: str | None = None
    upstream_ssl: ssl.SSLContext | Literal[True] = True

    @property
    def slots(self) -> int:
        """Answers that may be under way in all, to begin with."""
        return len(self.upstreams) * (self.max_inflight or FIRST_LIMIT)


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
        encoder = None if predictor is None else predictor.encoder
        log, wanted = before.log, settings.length_log
        if wanted is None:
            log = None
        else:
            encoder = encoder or before.encoder
            encoder = encoder or PromptEncoder(self._tokenizer or DEFAULT_TOKENIZER)
            # A log says once what its token ids stand for.
            if log is None or log.key != wanted or not _same_tokens(before.encoder, encoder):
                text = token_text_of(encoder.tokenizer)
                log = LengthLog(wanted, text, self._model, self._counters)
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


def _same_tokens(one: PromptEncoder | None, other: PromptEncoder) -> bool:
    """Whether two encoders' token ids stand for the same."""
    return one is not None and (one.tokenizer.name, one.tokenizer.fingerprint) == (
        other.tokenizer.name,
        other.tokenizer.fingerprint,
    )


#: what only an engine can do, with what to use instead, or why it is of no use
_ENGINES_OWN: Final = {
    "preemption": "a gateway preempts nothing that has begun: leave it out",
    "pausing": "a gateway pauses nothing that has begun: leave it out",
    "peek": "a gateway has no probe: leave it out",
    "memory_growth": "a gateway does not see the engine's memory: --max-inflight bounds it",
    "service_time": "a gateway does not know what a step costs: leave it out",
    "starvation_threshold": "it counts an engine's steps: use max_overtakes or max_wait_s",
    "shadow": "a gateway has no order but its own: use --policy fcfs",
    "stand_in": "the running median stands in: leave it out",
    "record": "there are no steps to record: --log DIR keeps answers",
    "journal": "there are no steps to record: --log DIR keeps answers",
    "metrics_port": "a gateway's metrics are on its own port, at /metrics",
}


def refuse_unsuited(settings: Settings) -> None:
    """Refuse what a gateway cannot do.

    Raises:
        InputError: a setting, or the policy, that needs to see into the engine.
    """
    for name, instead in _ENGINES_OWN.items():
        given = getattr(settings, name)
        if given not in (Settings.model_fields[name].default, "never"):
            raise InputError(f"setting {name!r} is for the scheduler inside an engine: {instead}")
    policy = get_policy(settings.policy)
    if policy.adapts is not None and policy.refines:
        raise InputError(
            f"policy {policy.name!r} corrects its predictions from the model's hidden states, "
            "which a gateway never sees: use srpt"
        )
    if policy.adapts is not None or policy.preemption == "greedy":
        raise InputError(
            f"policy {policy.name!r} decides which running request makes way, and a gateway can "
            "take back nothing that has begun: use srpt"
        )
    if policy.reads_prefix_cache:
        raise InputError(
            f"policy {policy.name!r} asks the engine's prefix cache, which a gateway cannot see: "
            "use srpt, or fcfs"
        )


def discipline_of(settings: Settings, slots: int) -> Discipline:
    """The order that the settings ask for, with so many answers in flight at most."""
    return make_discipline(**settings.discipline_arguments(slots) | {"preemption": "never"})
