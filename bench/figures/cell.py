"""One cell of a table, simulated and served by vLLM in virtual time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.advise.sweep import summary
from lengthwise.policy.discipline import Discipline, make_discipline
from lengthwise.predict.load import PREDICTION, Foretold
from lengthwise.settings import Settings, parse_spec
from lengthwise.simulate.engine import EngineSettings, StepCost
from lengthwise.simulate.simulation import Simulation, simulate
from lengthwise.workload.trace import Trace

#: As in `lengthwise bench`: guards are off where a spec does not set them.
BARE: Final = Settings(predictor=Foretold.name, max_overtakes=None, max_lead=None, tau_floor=None)

#: Significant digits of a figure: the last ones depend on how a processor adds a column up.
DIGITS: Final = 9

_FIRST_TOKEN, _TOKENS = 2, 1000  # made-up prompts: neither the end token nor beyond the vocabulary

Figures = dict[str, Any]


@dataclass(frozen=True)
class Traffic:
    """Requests, when they arrive, and what is predicted of them.

    Attributes:
        trace: arrivals and lengths; `block_hashes` where prompts begin alike.
        predictions: shape [n, 5], see `simulate`; None where nobody predicts.
        prompts: the tokens of each, as the engine is given them; None makes some up.
    """

    trace: Trace
    predictions: NDArray[np.float64] | None = None
    prompts: Sequence[Sequence[int]] | None = None


@dataclass(frozen=True)
class Cell:
    """Requests served on an engine by a policy.

    Attributes:
        tags: what tells the cell from others of its table.
        spec: the policy with its options, as in `lengthwise bench --policy`.
        traffic: the requests.
        cost: of the engine's steps.
        engine: its limits.
    """

    tags: Mapping[str, Any]
    spec: str
    traffic: Traffic
    cost: StepCost
    engine: EngineSettings

    def __str__(self) -> str:
        tags = ", ".join(f"{name} {value}" for name, value in self.tags.items())
        return f"{self.spec} ({tags})"

    @property
    def settings(self) -> Settings:
        """Those of the scheduler."""
        return parse_spec(self.spec, BARE)

    @property
    def discipline(self) -> Discipline:
        """The same for the simulator."""
        return make_discipline(**self.settings.discipline_arguments(self.engine.slots))


def simulated(cell: Cell, *, log_steps: bool = False) -> Simulation:
    """Serve a cell in the simulator."""
    return simulate(
        cell.traffic.trace,
        cell.discipline,
        cell.cost,
        cell.engine,
        predictions=_predictions(cell),
        log_steps=log_steps,
    )


def figures(cell: Cell) -> Figures:
    """A cell in figures: see `advise.sweep.summary`."""
    return rounded(summary(simulated(cell)))


def rounded(found: Mapping[str, Any]) -> Figures:
    """Figures without the digits that depend on the processor."""
    return {
        name: float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
        for name, value in found.items()
    }


def difference_s(cell: Cell) -> float:
    """The largest difference between the simulator and vLLM, of any first token or end, in s.

    Infinite where vLLM did not finish a request as long as it was asked to.
    """
    from lengthwise.emulate.driver import Asked, open_virtual_engine

    trace, predictions = cell.traffic.trace, _predictions(cell)
    prompts = cell.traffic.prompts or made_up_prompts(trace)
    asked = [
        Asked(
            prompts[place],
            int(trace.output_tokens[place]),
            arrival_s=float(trace.arrival_s[place]),
            hints={} if predictions is None else {PREDICTION: predictions[place].tolist()},
        )
        for place in range(len(trace))
    ]
    longest = int((trace.prompt_tokens + trace.output_tokens).max())
    with open_virtual_engine(
        cell.cost, cell.engine, longest=longest, settings=cell.settings.model_dump()
    ) as engine:
        served = engine.run(asked)
    if any(len(one.token_s) != each.output_tokens for one, each in zip(served, asked, strict=True)):
        return float("inf")
    requests = simulated(cell).requests
    first = np.array([one.first_token_s for one in served]) - requests["first_token_s"]
    last = np.array([one.finish_s for one in served]) - requests["finish_s"]
    return float(max(np.abs(first).max(), np.abs(last).max()))


def made_up_prompts(trace: Trace) -> list[list[int]]:
    """Prompts of these lengths that share nothing."""
    generator = np.random.default_rng(0)
    return [
        generator.integers(_FIRST_TOKEN, _TOKENS, count).tolist() for count in trace.prompt_tokens
    ]


def _predictions(cell: Cell) -> NDArray[np.float64] | None:
    """What the scheduler is told; an oracle reads the lengths."""
    if not cell.discipline.needs_predictions:
        return None
    if cell.settings.predictor == "oracle":
        tokens = np.maximum(cell.traffic.trace.output_tokens, 1).astype(np.float64)
        return np.repeat(tokens[:, None], 5, axis=1)
    return cell.traffic.predictions
