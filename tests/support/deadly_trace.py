"""A trace that kills processes. Whoever gets it imports this file, and no more than has to be."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from lengthwise.workload.trace import Trace


class DeadlyTrace(Trace):
    """A trace that kills whoever plays it slower, as often as the file says that is its name."""

    def scaled(self, factor: float) -> Trace:
        counter = Path(self.name)
        deaths = int(counter.read_text())
        if factor < 1.0 and deaths > 0:
            counter.write_text(str(deaths - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().scaled(factor)


def deadly(trace: Trace, counter: Path, deaths: int) -> Trace:
    """The same requests, of which so many attempts die."""
    counter.write_text(str(deaths))
    times, prompts, outputs = trace.arrival_s, trace.prompt_tokens, trace.output_tokens
    return DeadlyTrace(str(counter), times, prompts, outputs, [], "synthetic")
