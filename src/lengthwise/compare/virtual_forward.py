"""Rounds in virtual time whose model computes: real tokens and hidden states, one GPU's schedule.

Every round has an engine of its own here, too. An answer depends on its request's seed and on its
own tokens alone (`emulate.forward_engine`), so all policies serve the same answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from lengthwise.compare.client import Answer, ReplayRequest
from lengthwise.compare.own_answers import LONGEST_ANSWER
from lengthwise.compare.session import Observed
from lengthwise.compare.specs import Offer
from lengthwise.compare.virtual import VirtualSession, told
from lengthwise.emulate.driver import Asked, VirtualEngine
from lengthwise.emulate.forward_engine import ComputedModel, open_forward_engine
from lengthwise.errors import InputError, LengthwiseError
from lengthwise.predict.kendall import kendall_tau
from lengthwise.predict.load import NO_PREDICTOR, TRUE_TOKENS
from lengthwise.predict.prediction import Prediction
from lengthwise.settings import Settings
from lengthwise.simulate.engine import EngineSettings, StepCost

_LISTENING = Settings(policy="sjf", predictor=NO_PREDICTOR)


class ForwardSession(VirtualSession):
    """Runs rounds, each on a new engine in virtual time that computes a model.

    Attributes:
        model: what computes.
        context: the longest request that it takes, in tokens: whole KV blocks.
        probe_tau: Kendall's tau between what the probe said of the prompts that were answered last,
            once they had been computed, and the answers' lengths; None without a probe.
    """

    def __init__(
        self, cost: StepCost, engine: EngineSettings, out: Path, model: ComputedModel
    ) -> None:
        """See `VirtualSession`; blocks must be those of the engine that computes."""
        super().__init__(cost, engine, out)
        self.model = model
        self.context = context_tokens(model.folder) // engine.block_size * engine.block_size
        self.probe_tau: float | None = None

    def answer(self, name: str, requests: Sequence[ReplayRequest]) -> list[Answer]:
        """Let the model answer requests, all at once; see `own_answers.Ask`.

        Raises:
            LengthwiseError: one was not answered.
        """
        # Under fcfs nobody would listen to the probe.
        settings = Settings() if self.model.probe is None else _LISTENING
        observed = self.run_round(name, settings, requests, Offer.at_once(len(requests)))
        answers = observed.replay.answers
        errors = [answer.error for answer in answers if answer.error]
        if errors:
            raise LengthwiseError(f"{len(errors)} prompts were not answered: {errors[0]}")
        self.probe_tau = _tau_of_probe(observed)
        return answers

    def _open(
        self, requests: Sequence[ReplayRequest], settings: Mapping[str, object]
    ) -> AbstractContextManager[VirtualEngine]:
        longest = max(
            len(each.prompt_ids) + (each.output_tokens or LONGEST_ANSWER) for each in requests
        )
        return open_forward_engine(
            self.model,
            self.cost,
            self.engine,
            longest=min(longest, self.context - 1),  # the engine adds one
            settings=settings,
        )

    def _asked(self, request: ReplayRequest, time_s: float, prediction: Prediction | None) -> Asked:
        hints = told(request, prediction)
        if request.answer_tokens:
            hints[TRUE_TOKENS] = request.answer_tokens
        return Asked(
            request.prompt_ids,
            request.output_tokens,
            arrival_s=time_s,
            hints=hints,
            seed=request.number if request.seed is None else request.seed,
            most_tokens=LONGEST_ANSWER if request.output_tokens is None else None,
        )


def _tau_of_probe(observed: Observed) -> float | None:
    said, lengths = [], []
    for each in observed.engine.requests.values():
        tokens, length = each.get("probe_tokens"), each.get("output_tokens")
        if isinstance(tokens, float) and isinstance(length, int):
            said.append(tokens)
            lengths.append(length)
    return kendall_tau(lengths, said)


def context_tokens(folder: Path) -> int:
    """The context of a model, as its folder says.

    Raises:
        InputError: it does not say.
    """
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    context = values.get("max_position_embeddings")
    if not isinstance(context, int):
        raise InputError(f"{folder / 'config.json'} has no max_position_embeddings")
    return context
