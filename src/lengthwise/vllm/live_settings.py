"""How settings change while requests are served.

What the watcher's thread has prepared is offered; the engine takes it up between two steps, and
what is then no longer used is closed by the watcher's thread again. See `active`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lengthwise.counters import Counters
from lengthwise.settings import Settings, off_path
from lengthwise.settings.watch import OffSwitch, SettingsWatcher
from lengthwise.vllm.active import Active, Engine, Opener, stock_order


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
