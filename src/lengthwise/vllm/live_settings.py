"""What the settings decide, opened and ready, and how it changes while requests are served.

prepare  the watcher's thread opens whatever new settings name beside what is in force. Where
         anything of it cannot be had, all of it is closed again: refused means unchanged
take up  what is prepared is offered, and the engine exchanges one object for the other, between two
         steps
retire   the watcher's thread closes what is no longer used
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

from lengthwise.counters import Counters
from lengthwise.errors import InputError, LengthwiseError, one_line
from lengthwise.policy.discipline import Discipline, make_discipline
from lengthwise.policy.prepass import warm_up
from lengthwise.predict.extract import TokenText, token_text_of
from lengthwise.predict.load import NO_PREDICTOR, load_predictor
from lengthwise.predict.prediction import Predictor
from lengthwise.predict.tokenizer import load_tokenizer
from lengthwise.settings import LengthLogSettings, Settings, off_path
from lengthwise.settings.file import OffSwitch, SettingsWatcher
from lengthwise.telemetry.journal import Journal, Recorder
from lengthwise.telemetry.length_log_writer import LengthLog
from lengthwise.telemetry.prometheus import EngineState, MetricsServer
from lengthwise.vllm.predictions import Source, open_source
from lengthwise.vllm.shadow import Shadow

logger = logging.getLogger("vllm.lengthwise")


class Part(Protocol):
    """Something that was opened and has to be closed, once, when nobody uses it any more."""

    @property
    def key(self) -> object:
        """Equal for parts that do the same."""

    def close(self) -> None:
        """End it. What still uses it then goes on without it."""


AnyPart = TypeVar("AnyPart", bound=Part)


@dataclass(frozen=True)
class Active:
    """Settings with all that they name, ready for the engine. Never changed once it is made.

    Attributes:
        settings: what was asked for.
        discipline: the policy with its guards.
        fcfs: the same, with nothing left to predictions.
        predicts: whether requests are predicted.
        predictor: the specification of the predictor that is asked, None where none is.
        source: where predictions come from.
        recorder: where steps and requests are recorded.
        length_log: where the lengths of answers are logged.
        metrics: where the counters are exported.
        journal: where it is noted who came and ran.
        shadow: what is told what the policy would have to decide, where it decides nothing.
    """

    settings: Settings
    discipline: Discipline
    fcfs: Discipline
    predicts: bool = False
    predictor: str | None = None
    source: Source | None = None
    recorder: Recorder | None = None
    length_log: LengthLog | None = None
    metrics: MetricsServer | None = None
    journal: Journal | None = None
    shadow: Shadow | None = None

    @cached_property
    def writes(self) -> bool:
        """Whether anything is written of finished requests."""
        return self.recorder is not None or self.length_log is not None

    @cached_property  # asked at every step
    def measures_work(self) -> bool:
        """Whether anybody wants to know what each step does."""
        return self.recorder is not None or self.shadow is not None

    @property
    def parts(self) -> list[Part]:
        """What has to be closed."""
        observers = (self.recorder, self.length_log, self.journal, self.shadow)
        every = (self.source, self.metrics, *observers)
        return [part for part in every if part is not None]

    def in_stock_order(self) -> Active:
        """The same with vLLM's own order; nothing is predicted, and what watches goes on."""
        fcfs = make_discipline("fcfs")
        settings = self.settings.model_copy(
            update={"policy": "fcfs", "client_priority": False, "shadow": False}
        )
        return replace(
            self,
            settings=settings,
            discipline=fcfs,
            fcfs=fcfs,
            predicts=False,
            predictor=None,
            source=None,
            shadow=None,
        )

    def closed(self) -> Active:
        """The same without anything that is open."""
        return replace(
            self,
            source=None,
            recorder=None,
            length_log=None,
            metrics=None,
            journal=None,
            shadow=None,
        )

    def says(self) -> dict[str, Any]:
        """What the status file says of it once it is in force."""
        return {
            "policy": self.settings.policy,
            "shadow": self.settings.shadow,
            "predictor": self.predictor,
            "metrics_port": None if self.metrics is None else self.metrics.port,
        }


def stock_order() -> Active:
    """What is in force before any settings are read: vLLM's own order."""
    return Active(Settings(), make_discipline("fcfs"), make_discipline("fcfs"))


@dataclass(frozen=True)
class Engine:
    """What settings need to know of the engine that they are for.

    Attributes:
        index: its number among the engines of a data-parallel server.
        limits: what bounds its steps, for the record.
        tokenizer: the served model's.
        model: the name that the model is served by.
        state: the numbers of now.
        by_priority: vLLM's own order goes by priority class.
        refusal_to_pause: why no request can be paused; None where they can.
        has_probe: the worker runs a probe.
    """

    index: int
    limits: Mapping[str, float]
    tokenizer: str
    model: str
    state: Callable[[], EngineState]
    by_priority: bool = False
    refusal_to_pause: str | None = None
    has_probe: bool = False


class Opener:
    """Prepares and retires, for one engine. Used in one thread at a time.

    Attributes:
        engine: which one.
    """

    def __init__(self, engine: Engine, counters: Counters) -> None:
        self.engine = engine
        self._counters = counters
        self._open: list[Part] = []
        self._token_text: TokenText | None = None

    def prepare(self, settings: Settings) -> Active:
        """Open all that settings name; what is open already is shared.

        Raises:
            InputError: something cannot be had; then nothing has changed.
        """
        before = list(self._open)
        try:
            return self._prepare(settings)
        except Exception as error:
            self._close([part for part in self._open if not _is_among(part, before)])
            if isinstance(error, LengthwiseError):
                raise InputError(one_line(error)) from error
            # Whatever a policy's or a predictor's file does, it is the user's to mend.
            raise InputError(
                f"these settings cannot be used: {type(error).__name__}: {one_line(error)}"
            ) from error

    def retire(self, *used: Active) -> None:
        """Close all parts that none of these use."""
        kept = [part for active in used for part in active.parts]
        self._close([part for part in self._open if not _is_among(part, kept)])

    def _prepare(self, settings: Settings) -> Active:
        # Where nobody can be paused, the bounds are those of an engine that preempts.
        possible = {"pausing": self._can_pause(settings), "peek": self._can_peek(settings)}
        able = settings.model_copy(update=possible)
        arguments = able.discipline_arguments(int(self.engine.limits["slots"]))
        discipline = make_discipline(**arguments)
        fcfs = make_discipline(**{**arguments, "blend": 0.0})
        for each in (discipline, fcfs):
            warm_up(each)
        spec = discipline.policy.predictor or settings.predictor
        predicts = discipline.needs_predictions
        if not predicts or spec == NO_PREDICTOR:
            spec = None
        if settings.shadow:
            discipline = fcfs = make_discipline("fcfs")
        # Files come last, so that a refusal leaves no trace of them.
        return Active(
            settings=settings,
            discipline=discipline,
            fcfs=fcfs,
            predicts=predicts,
            predictor=spec,
            source=None if spec is None else self._source(spec, settings.stand_in),
            metrics=self._metrics(settings),
            length_log=self._length_log(settings.length_log),
            recorder=self._recorder(settings.record),
            journal=self._journal(settings.journal),
            shadow=self._shadow(settings),
        )

    def _can_pause(self, settings: Settings) -> bool:
        """Whether requests may be paused.

        Raises:
            InputError: it is asked for and cannot be.
        """
        refusal = self.engine.refusal_to_pause
        if not settings.pausing or refusal is None:
            return bool(settings.pausing)
        if settings.pausing is True:
            raise InputError(f"setting 'pausing': {refusal}")
        if settings.pauses and not settings.shadow:
            logger.warning("Lengthwise: nobody is paused, preemption computes again: %s", refusal)
        return False

    def _can_peek(self, settings: Settings) -> bool:
        """Whether waiting requests may be looked at.

        Raises:
            InputError: it is asked for, and there is no probe.
        """
        if settings.peek is True and not self.engine.has_probe:
            raise InputError("setting 'peek': it is a probe that looks: start with --probe DIR")
        return bool(settings.peek) and self.engine.has_probe

    def _source(self, spec: str, stand_in: str | None) -> Source:
        def load(name: str) -> Predictor:
            return load_predictor(name, tokenizer=self.engine.tokenizer)

        def count_restart() -> None:
            self._counters.worker_restarts += 1

        there = [part for part in self._open if isinstance(part, Source)]
        return self._opened(open_source(spec, stand_in, load, there, count_restart))

    def _metrics(self, settings: Settings) -> MetricsServer | None:
        port, engine = settings.metrics_port, self.engine
        if port is None:
            return None
        key = settings.metrics_host, port + engine.index
        return self._found(MetricsServer, key) or self._opened(MetricsServer(*key, engine.state))

    def _length_log(self, wanted: LengthLogSettings | None) -> LengthLog | None:
        if wanted is None:
            return None
        found = self._found(LengthLog, wanted)
        if found is not None:
            return found
        if self._token_text is None:
            self._token_text = token_text_of(load_tokenizer(self.engine.tokenizer))
        engine = self.engine
        log = LengthLog(wanted, self._token_text, engine.model, self._counters, engine=engine.index)
        return self._opened(log)

    def _recorder(self, folder: str | None) -> Recorder | None:
        if folder is None:
            return None
        path, engine = Path(folder), self.engine
        return self._found(Recorder, path) or self._opened(
            Recorder(path, engine.limits, self._counters, engine.index)
        )

    def _journal(self, folder: str | None) -> Journal | None:
        if folder is None:
            return None
        path, index = Path(folder), self.engine.index
        return self._found(Journal, path) or self._opened(Journal(path, index, self._counters))

    def _shadow(self, settings: Settings) -> Shadow | None:
        if not settings.shadow:
            return None
        engine = self.engine
        return self._found(Shadow, settings) or self._opened(
            Shadow(settings, engine.limits, engine.by_priority)
        )

    def _found(self, kind: type[AnyPart], key: object) -> AnyPart | None:
        """A part that is open already and does the same."""
        for part in self._open:
            if isinstance(part, kind) and part.key == key:
                return part
        return None

    def _opened(self, part: AnyPart) -> AnyPart:
        if not _is_among(part, self._open):
            self._open.append(part)
        return part

    def _close(self, parts: list[Part]) -> None:
        for part in parts:
            self._open = [other for other in self._open if other is not part]
            try:
                part.close()
            except Exception as error:  # one that cannot be closed must not keep the others open
                logger.warning("Lengthwise: closing %s: %s", type(part).__name__, one_line(error))


def _is_among(part: Part, parts: list[Part]) -> bool:
    return any(other is part for other in parts)


class LiveSettings:
    """The settings of one engine.

    Args:
        engine: whose.
        counters: what is refused is counted there.
        planning: whether the engine is planning a step now.
        serves: whether it has any request.

    Attributes:
        engine: see above.
        active: what is in force: what the engine has taken up.
        offered: what it is to take up next; the same where there is nothing new.
        off: whether the kill switch is on.
    """

    def __init__(
        self,
        engine: Engine,
        counters: Counters,
        planning: Callable[[], bool],
        serves: Callable[[], bool],
    ) -> None:
        self.engine = engine
        self.active = self.offered = self._prepared = stock_order()
        self.off = False
        self._counters = counters
        self._planning = planning
        self._serves = serves
        self._opener = Opener(engine, counters)
        self._offering = threading.Lock()
        self._watcher: SettingsWatcher | None = None
        self._off_switch: OffSwitch | None = None

    def begin(self, settings: Path | Settings, state: Callable[[], dict[str, Any]]) -> None:
        """Offer the first settings.

        Args:
            settings: or the file with them, which is watched from now on.
            state: what its status file says beside the settings in force and the counters.

        Raises:
            InputError: they cannot be used.
        """
        if isinstance(settings, Settings):
            self.offer(settings)
            return
        self._watcher = SettingsWatcher(
            settings, self.offer, self._counters, state, self.settle, self.engine.index
        )
        self._off_switch = OffSwitch(off_path(settings), self.switch_off)

    def offer(self, settings: Settings) -> dict[str, Any]:
        """Make settings ready and offer them; called at the start, then in the watcher's thread.

        Returns:
            What the status file says of them once they are in force.

        Raises:
            InputError: they cannot be used; then nothing has changed.
        """
        prepared = self._opener.prepare(settings)
        with self._offering:
            self._prepared = prepared
            self._offer()
        return prepared.says()

    def switch_off(self, off: bool) -> None:
        """Go back to vLLM's own order from the next step on, or on again; from any thread."""
        with self._offering:
            self.off = off
            self._offer()

    def take_up(self) -> Active:
        """Put in force what is offered; only the engine's thread does."""
        self.active = self.offered
        return self.active

    def settle(self) -> bool:
        """Whether what was offered last is in force; closes what is no longer used."""
        # Between two steps it is: whatever comes next takes it up before anything else.
        between_steps = not self._planning()
        if between_steps and not self._serves():
            self._opener.retire(self._prepared)
        else:  # requests that are running still write to what is in force
            self._opener.retire(self._prepared, self.active)
        return self.offered is self.active or between_steps

    def close(self) -> None:
        """The engine ends: what is still to be written is, and all that was opened is closed."""
        if self._off_switch is not None:
            self._off_switch.close()
        if self._watcher is not None:
            self._watcher.close()
        self.active = self.offered = self.offered.closed()
        self._opener.retire()
        if self._watcher is not None:
            self._watcher.write_status()

    def _offer(self) -> None:
        self.offered = self._prepared.in_stock_order() if self.off else self._prepared
