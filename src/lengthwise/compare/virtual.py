"""The same comparison in virtual time: vLLM's engine core, in this process, without a forward pass.

Every round has an engine of its own, whose clock starts at 0, so a policy's figures do not depend
on what else is compared. What a step takes is what a preset says of a GPU, so nothing depends on
this machine, and no round needs to be repeated.
"""

from __future__ import annotations

import gc
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from lengthwise.advise.sweep import capacity
from lengthwise.compare.client import Answer, Replay, ReplayRequest
from lengthwise.compare.engine_log import (
    REQUESTS_FILE,
    ROUNDS_FOLDER,
    SERVER_FOLDER,
    STEPS_FILE,
    read_engine_log,
)
from lengthwise.compare.progress import Progress
from lengthwise.compare.rounds import Plan, describe_round, keeping, records_of, summary_line
from lengthwise.compare.session import Observed
from lengthwise.compare.specs import Offer, Turns, offer_of
from lengthwise.emulate.driver import Asked, Served, VirtualEngine, open_virtual_engine
from lengthwise.measure.results import ResultsWriter
from lengthwise.predict.load import PREDICTION, Foretold, load_predictor
from lengthwise.predict.prediction import (
    REQUEST_ID,
    Prediction,
    PredictionError,
    Prompt,
    SlowPredictor,
)
from lengthwise.settings import Settings
from lengthwise.simulate.engine import EngineSettings, StepCost
from lengthwise.workload.trace import Trace

#: Significant digits of predictions: the last ones depend on how a processor adds products up.
_DIGITS = 6


@dataclass(frozen=True)
class Draw:
    """The requests of one seed.

    Attributes:
        requests: in the order in which they are sent.
        notes: what was left out, for the reader of the results.
    """

    requests: Sequence[ReplayRequest]
    notes: Sequence[str] = ()


class VirtualSession:
    """Runs rounds, each on a new engine in virtual time.

    Attributes:
        cost: of the engine's steps.
        engine: its limits.
    """

    def __init__(
        self,
        cost: StepCost,
        engine: EngineSettings,
        out: Path,
        connector: Mapping[str, object] | None = None,
    ) -> None:
        """Use the run's folder `out` for what the scheduler records of each round.

        Args:
            cost: of a step.
            engine: its limits.
            out: see above.
            connector: vLLM's `--kv-transfer-config`, such as `emulate.driver.host_memory`.
        """
        self.cost = cost
        self.engine = engine
        self._connector = connector
        self._folder = out / SERVER_FOLDER / ROUNDS_FOLDER
        #: by predictor, of the requests that it was asked about last
        self._predictions: dict[str, tuple[Sequence[ReplayRequest], list[Prediction | None]]] = {}

    def capacity(self, requests: Sequence[ReplayRequest]) -> float:
        """Requests of this kind that the engine finishes a second, with a full batch."""
        trace = Trace(
            name="",
            arrival_s=np.zeros(len(requests)),
            prompt_tokens=np.array([each.prompt_tokens for each in requests], np.int64),
            output_tokens=np.array([each.answer_tokens for each in requests], np.int64),
            rejected=[],
            layout="prompts",
        )
        return capacity(trace, self.cost, self.engine)

    def run_round(
        self,
        name: str,
        settings: Settings,
        requests: Sequence[ReplayRequest],
        offer: Offer,
    ) -> Observed:
        """Serve the requests to the last, from an empty engine.

        Args:
            name: the name of the round's folder of records.
            settings: the policy and all that belongs to it.
            requests: what is sent.
            offer: when each is sent.

        Raises:
            InputError: a request does not fit into the KV memory, or the settings are wrong.
            LengthwiseError: the engine came to a standstill.
        """
        scheduled_s, turns, clients = offer
        records = self._folder / name
        records.mkdir(parents=True, exist_ok=True)
        for stale in (STEPS_FILE, REQUESTS_FILE):
            (records / stale).unlink(missing_ok=True)
        foretold = self._foretell(settings.predictor, requests)
        active = settings.model_copy(update={"record": str(records)})
        if foretold is not None:
            active = active.model_copy(update={"predictor": Foretold.name})
        times = scheduled_s if scheduled_s is not None else [0.0] * len(requests)
        order = sorted(range(len(requests)), key=lambda place: times[place])
        asked = [
            self._asked(
                requests[place], times[place], None if foretold is None else foretold[place]
            )
            for place in order
        ]
        if turns is not None:
            asked = self._in_sessions(asked, turns, order)
        # Starting an engine, vLLM collects garbage; what is there by now need not be looked at.
        gc.freeze()
        with self._open(requests, active.model_dump()) as engine:
            served = engine.run(asked, clients)
            counters = engine.scheduler.counters.snapshot()
        own_times = clients is None and turns is None
        answers = [
            _answer(requests[place], times[place] if own_times else one.sent_s, one)
            for place, one in zip(order, served, strict=True)
        ]
        answers.sort(key=lambda answer: answer.request)
        known = None
        if all(each.answer_tokens for each in requests):
            work = float(np.mean([each.prompt_tokens + each.answer_tokens for each in requests]))
            known = self.capacity(requests) * work
        finished = sum(answer.error is None for answer in answers)
        return Observed(
            Replay(0.0, answers),
            read_engine_log(records, finished),
            counters,
            known_capacity=known,
        )

    def _in_sessions(
        self, asked: Sequence[Asked], turns: Turns, order: Sequence[int]
    ) -> list[Asked]:
        """Requests in this order, the later turns after the ones before them."""
        places = {place: at for at, place in enumerate(order)}
        return [
            each
            if turns.after[place] < 0
            else replace(
                each,
                after=places[turns.after[place]],
                arrival_s=turns.delay_s[place] + self.cost.delay_s,
            )
            for each, place in zip(asked, order, strict=True)
        ]

    def _open(
        self, requests: Sequence[ReplayRequest], settings: Mapping[str, object]
    ) -> AbstractContextManager[VirtualEngine]:
        """A new engine for a round of these requests."""
        longest = max(each.prompt_tokens + each.answer_tokens for each in requests)
        return open_virtual_engine(
            self.cost,
            self.engine,
            longest=longest,
            settings=settings,
            connector=self._connector,
        )

    def _asked(self, request: ReplayRequest, time_s: float, prediction: Prediction | None) -> Asked:
        """A request as the engine gets it."""
        return Asked(
            engine_prompt(request),
            request.answer_tokens,
            arrival_s=time_s,
            hints=told(request, prediction),
        )

    def _foretell(
        self, spec: str | None, requests: Sequence[ReplayRequest]
    ) -> list[Prediction | None] | None:
        """What a trained predictor says of the real prompts; None for one that is not trained.

        Asked beforehand, since the engine's prompts have the lengths that the data gives, and so
        that one which takes long is no later in one run than in another.
        """
        if spec is None or not Path(spec).is_dir():
            return None
        asked, foretold = self._predictions.get(spec, (None, []))
        if asked is not requests:
            foretold = _predict(spec, requests)
            self._predictions[spec] = requests, foretold
        return foretold


def run_virtual_plan(
    plan: Plan,
    session: VirtualSession,
    draw: Callable[[int], Draw],
    writer: ResultsWriter,
    progress: Progress,
) -> None:
    """Run and save every round; each repeat has another draw of requests and arrivals.

    Args:
        plan: what is compared.
        session: where.
        draw: the requests of a seed.
        writer: keeps the rounds.
        progress: told what happens.

    Raises:
        LengthwiseError: the run was stopped or failed; the message says what is left of it.
    """
    number = 0
    with keeping(writer, plan.rounds):
        for repeat in range(plan.repeats):
            seed = plan.seed + repeat
            requests = draw(seed).requests
            for load in plan.loads:
                offer = offer_of(
                    load,
                    len(requests),
                    cv=plan.cv,
                    seed=seed,
                    capacity_requests_per_s=session.capacity(requests),
                )
                if offer.scheduled_s is not None:
                    # A logarithm's last digit is not the same everywhere.
                    offer = offer._replace(scheduled_s=[round(s, 9) for s in offer.scheduled_s])
                for label, settings in plan.policies.items():
                    progress.stage(f"round {number + 1} of {plan.rounds}: {label} at {load.label}")
                    observed = session.run_round(f"{number:03d}", settings, requests, offer)
                    info = describe_round(
                        number, label, settings, load, repeat, None, observed, requests
                    )
                    writer.append(info, records_of(info, observed))
                    progress.note(summary_line(info, observed, plan.rounds))
                    number += 1


def engine_prompt(request: ReplayRequest) -> list[int]:
    """The prompt's tokens as the engine is given them: as many as the data counts.

    The text's own tokens, cut off, or begun anew until there are enough: prompts that start alike
    go on to do so, and share blocks of the prefix cache as before.
    """
    return list(islice(cycle(request.prompt_ids), request.prompt_tokens))


def told(request: ReplayRequest, prediction: Prediction | None) -> dict[str, object]:
    """What the scheduler is told of a request: its number, and what was predicted."""
    hints: dict[str, object] = {REQUEST_ID: str(request.number)}
    if prediction is not None:
        hints[PREDICTION] = list(prediction)
    return hints


def _answer(request: ReplayRequest, scheduled_s: float, served: Served) -> Answer:
    error = None
    if request.output_tokens is None:
        complete = served.finished in ("stop", "length")
    else:
        complete = len(served.token_s) == request.output_tokens
    if not complete:
        error = f"answered with {len(served.token_s)} tokens: {served.finished or 'not finished'}"
    return Answer(
        request=request.number,
        scheduled_s=scheduled_s,
        sent_s=served.sent_s,
        first_token_s=served.first_token_s,
        finish_s=served.finish_s,
        token_times=array("f", [time_s - served.sent_s for time_s in served.token_s]),
        prompt_tokens=request.prompt_tokens,
        output_tokens=len(served.token_s),
        finish_reason=served.finished,
        error=error,
    )


def _predict(spec: str, requests: Sequence[ReplayRequest]) -> list[Prediction | None]:
    predictor = load_predictor(spec)
    prompts = [Prompt(request.prompt_ids, {}) for request in requests]
    if isinstance(predictor, SlowPredictor):
        return [_rounded(each) for each in predictor.predict_many(prompts)]
    found: list[Prediction | None] = []
    for prompt in prompts:
        try:
            found.append(_rounded(predictor.predict(prompt)))
        except PredictionError:
            found.append(None)
    return found


def _rounded(prediction: Prediction) -> Prediction:
    return Prediction(*(float(f"{value:.{_DIGITS}g}") for value in prediction))
