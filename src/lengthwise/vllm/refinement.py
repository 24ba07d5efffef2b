"""The probe's predictions become columns of the live table.

A posterior over what is left is kept for each request, beside its row of the table. The prompt
network starts it, together with what a predictor said of the same prompt; each prediction from a
decode state refines it (`lengthwise.probe.refine`), and its mean and quantiles are what policies
see. Between predictions they age by the one rule of `policy.length_law`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.counters import Counters
from lengthwise.errors import InputError
from lengthwise.probe.probe_folder import Probe
from lengthwise.probe.refine import pool, refine, start, summarise
from lengthwise.request import BY_PROBE, PREDICTED, LiveTable
from lengthwise.vllm.hidden_states import WORKER, ProbeWanted, require_layers, wanted_states
from lengthwise.vllm.probe_output import ProbeOutput

logger = logging.getLogger("vllm.lengthwise")

_NEVER = -1
_NORMAL_SPAN: Final = 2.5631031310892007  # between the 10 % and 90 % quantiles of the normal law
_NO_DOUBT: Final = 0.01  # of a sigma: whoever is that sure has not been trained

Integers = NDArray[np.int64]


class Refinement:
    """Follows the live requests through the probe's predictions.

    Args:
        live: the scheduler's table.
        counters: what is counted there.
        probe: the trained probe.
        interval: steps from one prediction to the next, for the constants of the filter.
    """

    def __init__(self, live: LiveTable, counters: Counters, probe: Probe, interval: int) -> None:
        self._live = live
        self._counters = counters
        self._filter = probe.filter(interval)
        self._longest = int(probe.metadata.max_tokens)
        self._bins = len(probe.edges) - 1
        self._posteriors = np.zeros((0, self._bins))
        self._ages: Integers = np.zeros(0, np.int64)  # of the last prediction
        self._complained = False

    def forget(self, row: int) -> None:
        """A row is a new request's, or its request starts anew."""
        if row >= len(self._ages):
            more = len(self._live.table) - len(self._ages)
            self._posteriors = np.concatenate([self._posteriors, np.zeros((more, self._bins))])
            self._ages = np.concatenate([self._ages, np.full(more, _NEVER)])
        self._ages[row] = _NEVER

    def take(self, outputs: list[ProbeOutput]) -> None:
        """Take the predictions that came with a step's output. Never raises."""
        for output in outputs:
            try:
                self._take(output)
            except Exception as error:  # whatever comes, requests are served
                self._complain(f"{type(error).__name__}: {error}")

    def warm_up(self) -> None:
        """Compile what the first prediction would otherwise wait for."""
        row, one = np.zeros(1, np.int64), np.ones(1, np.int64)
        even = np.full((1, self._bins), 1.0 / self._bins, np.float32)
        posteriors = np.zeros((1, self._bins))
        start(posteriors, row, even)
        pool(posteriors, row, np.ones(1), np.ones(1), self._filter)
        refine(posteriors, row, even, one, self._filter)
        summarise(posteriors, row, np.ones(1), self._filter, np.empty((1, 4)))

    def _take(self, output: ProbeOutput) -> None:
        self._counters.probe_partial_prompts += output.partial
        if output.failed is not None:
            self._complain(output.failed)
        if output.prompt_ids:
            rows, chosen = self._rows(output.prompt_ids, output.prompt)
            # One that has been preempted in its prefill may have a decode prediction already.
            first = self._ages[rows] == _NEVER
            rows, chosen = rows[first], chosen[first]
            start(self._posteriors, rows, output.prompt[chosen])
            self._pool(rows)
            self._write(rows, np.zeros(len(rows), np.int64))
            self._live.table["initial"][rows] = self._live.table["expected"][rows]
        if output.decode_ids:
            rows, chosen = self._rows(output.decode_ids, output.decode)
            ages = output.ages[chosen]
            later = ages > self._ages[rows]
            rows, chosen, ages = rows[later], chosen[later], ages[later]
            self._refine(rows, output.decode[chosen], ages)
            self._write(rows, ages)

    def _pool(self, rows: Integers) -> None:
        """A trained predictor has read the same prompts, and knows something, too."""
        said = self._live.table[rows]
        with np.errstate(divide="ignore", invalid="ignore"):
            sigmas = np.log(said["high"] / said["low"]) / _NORMAL_SPAN
        doubts = (said["predicted"] == PREDICTED) & (sigmas > _NO_DOUBT) & np.isfinite(sigmas)
        medians = said["median"][doubts]
        pool(self._posteriors, rows[doubts], medians, sigmas[doubts], self._filter)

    def _refine(self, rows: Integers, likely: NDArray[np.float32], ages: Integers) -> None:
        known = self._ages[rows] != _NEVER
        start(self._posteriors, rows[~known], likely[~known])
        refine(
            self._posteriors,
            rows[known],
            likely[known],
            (ages - self._ages[rows])[known],
            self._filter,
        )

    def _rows(
        self, request_ids: list[str], likely: NDArray[np.float32]
    ) -> tuple[Integers, Integers]:
        """Rows of those still alive whose prediction is usable, and their places in it."""
        usable = np.isfinite(likely).all(axis=1) & (likely.sum(axis=1) > 0.0)
        self._counters.probe_dropped += int(len(usable) - usable.sum())
        places = [
            place
            for place, request_id in enumerate(request_ids)
            if usable[place] and request_id in self._live
        ]
        rows = [self._live.row(request_ids[place]) for place in places]
        return np.array(rows, np.int64), np.array(places, np.int64)

    def _write(self, rows: Integers, ages: Integers) -> None:
        """The posteriors' mean and quantiles as predictions made at these ages."""
        if len(rows) == 0:
            return
        self._ages[rows] = ages
        self._counters.probe_predictions += len(rows)
        left = np.empty((len(rows), 4))
        table = self._live.table
        cut = table["most_tokens"][rows]
        longest = np.where(cut > 0, np.minimum(cut, self._longest), self._longest)
        most = np.maximum(longest - ages, 1).astype(np.float64)
        summarise(self._posteriors, rows, most, self._filter, left)
        for column, name in enumerate(("expected", "low", "median", "high")):
            table[name][rows] = ages + left[:, column]
        table["remaining"][rows] = left[:, 0]
        table["predicted_age"][rows] = ages
        table["predicted"][rows] = BY_PROBE

    def _complain(self, reason: str) -> None:
        self._counters.probe_failures += 1
        if not self._complained:
            self._complained = True
            logger.error("Lengthwise: a prediction of the probe is lost: %s", reason)


def open_refinement(live: LiveTable, counters: Counters, vllm_config: Any) -> Refinement | None:
    """What follows the probe that this engine was started with; None where it has none.

    Raises:
        InputError: the probe cannot be read, or the worker does not run it.
    """
    wanted = wanted_states(vllm_config.additional_config)
    if not isinstance(wanted, ProbeWanted):
        return None
    worker = vllm_config.parallel_config.worker_cls
    if worker != WORKER:
        raise InputError(
            f"additional_config names a probe, which the worker {worker} does not run: "
            f"add --worker-cls {WORKER}"
        )
    probe = Probe.load(Path(wanted.folder))
    require_layers(probe, wanted)
    refinement = Refinement(live, counters, probe, wanted.interval)
    refinement.warm_up()
    return refinement
