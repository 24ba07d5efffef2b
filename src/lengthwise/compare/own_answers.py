"""The served model's own answers: as long as the model itself makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from lengthwise.compare.client import Answer, ReplayRequest
from lengthwise.compare.progress import Progress
from lengthwise.compare.rounds import Plan, describe_requests, keeping, run_plan
from lengthwise.compare.session import Session
from lengthwise.compare.specs import Offer
from lengthwise.errors import LengthwiseError
from lengthwise.measure.results import Results, ResultsWriter, describe_run, read_results
from lengthwise.predict import Predictor, Prompt
from lengthwise.predict.kendall import kendall_tau
from lengthwise.predict.kinds import Recipe
from lengthwise.predict.tokenizer import PromptTokenizer
from lengthwise.predict.train import train
from lengthwise.reference.corpus import Exchange, exchanges
from lengthwise.reference.prompts import generate
from lengthwise.serve.command import REFERENCE
from lengthwise.settings import Settings
from lengthwise.vllm.hidden_states import ProbeWanted
from lengthwise.workload.dataset import TEST, TRAIN, Dataset, split_of

LEARNT_FROM = 1500  #: answers that the predictor of `bench reference` learns from

#: Lets the model answer requests; the name is that of the round's folder of records.
Ask = Callable[[str, Sequence[ReplayRequest]], list[Answer]]

_CLIENTS = 48  # three batches: the engine never runs dry while lengths are collected
LONGEST_ANSWER = 1024  #: tokens; there the model is cut off


def unforced(encoded: Sequence[Sequence[int]]) -> list[ReplayRequest]:
    """Requests that the model answers at its own length, a different one every time."""
    return [ReplayRequest(number, ids, None) for number, ids in enumerate(encoded)]


def answer_all(
    session: Session, name: str, requests: Sequence[ReplayRequest], progress: Progress
) -> list[Answer]:
    """Let the model answer each request, under fcfs.

    Raises:
        LengthwiseError: one was not answered.
    """
    progress.stage("letting the model answer", len(requests))
    observed = session.run_round(
        name,
        Settings(),
        requests,
        Offer(clients=_CLIENTS),
        max_tokens=LONGEST_ANSWER,
        progress=lambda answered, failed: progress.advance(answered),
    )
    answers = observed.replay.answers
    errors = [answer.error for answer in answers if answer.error]
    if errors:
        raise LengthwiseError(f"{len(errors)} prompts were not answered: {errors[0]}")
    return answers


def reference_prompts(count: int, part: int, seed: int) -> list[str]:
    """The built-in model's prompts of one part of the data: TRAIN, VALID or TEST."""
    generated = 2 * count
    while True:
        texts = [prompt.text for prompt in generate(generated, seed)]
        chosen = [text for text in texts if split_of(text) == part]
        if len(chosen) >= count:
            return chosen[:count]
        generated *= 2


def reference_requests(
    ask: Ask, tokenizer: PromptTokenizer, count: int, seed: int
) -> list[ReplayRequest]:
    """Test prompts whose answers the model ends by itself, the same in every round.

    Each request has a seed of its own. One round in advance finds out how long the answers get, for
    the oracles and to know the load.
    """
    encoded = tokenizer.encode_chat_many(reference_prompts(count, TEST, seed))
    asked = [
        ReplayRequest(number, ids, None, seed=seed * 100_003 + number)
        for number, ids in enumerate(encoded)
    ]
    answers = ask("lengths", asked)
    return [
        replace(request, known_tokens=answer.output_tokens)
        for request, answer in zip(asked, answers, strict=True)
    ]


def learn_from_answers(
    ask: Ask, tokenizer: PromptTokenizer, folder: Path, seed: int, progress: Progress
) -> Predictor:
    """Train a prompt predictor on the model's answers to training prompts, and save it."""
    prompts = reference_prompts(LEARNT_FROM, TRAIN, seed)
    answers = ask("learn", unforced(tokenizer.encode_chat_many(prompts)))
    learnt = Dataset(
        name=f"{len(prompts)} answers of {tokenizer.name}",
        prompts=prompts,
        lengths=np.array([answer.output_tokens for answer in answers], dtype=np.int64),
        samples=None,
        rows=np.arange(1, len(prompts) + 1),
        rejected=[],
        model=tokenizer.name,
    )
    return learn(learnt, tokenizer, folder, seed, progress)


def learn(
    table: Dataset, tokenizer: PromptTokenizer, folder: Path, seed: int, progress: Progress
) -> Predictor:
    """Train a prompt predictor with the usual recipe, and save it."""
    progress.stage("training the predictor", 100)
    predictor = train(
        table,
        tokenizer,
        Recipe(seed=seed),
        progress=lambda what, part: progress.advance(int(100 * part), what),
    )
    predictor.save(folder)
    return predictor


def held_out_tau(predictor: Predictor, requests: Sequence[ReplayRequest]) -> float:
    """Kendall's tau-b between predicted scores and the lengths of the requests."""
    scores = [predictor.predict(Prompt(each.prompt_ids, {})).score for each in requests]
    tau = kendall_tau([each.answer_tokens for each in requests], scores)
    return float("nan") if tau is None else tau


def same_length(requests: Sequence[ReplayRequest], results: Results) -> float:
    """The share of answers, over all rounds, that were as long as the round in advance found."""
    known = {request.number: request.known_tokens for request in requests}
    same = [
        known[number] == tokens
        for each in results.rounds
        for number, tokens in zip(
            each.records.request.tolist(), each.records.output_tokens.tolist(), strict=True
        )
    ]
    return float(np.mean(same))


_NAMES = {TRAIN: "training", TEST: "test"}


def corpus_table(tokenizer: PromptTokenizer, count: int, part: int, seed: int) -> Dataset:
    """Prompts of one part of the data, each with an answer of the text that the model learnt from.

    The length depends on the prompt and on chance, as that of the model's own answers does.

    Args:
        tokenizer: counts the answers' tokens.
        count: prompts.
        part: TRAIN, VALID or TEST.
        seed: same seed, same prompts and answers.
    """
    drawn = 2 * count
    while len(chosen := _of_part(drawn, part, seed)) < count:
        drawn *= 2
    chosen = chosen[:count]
    answers = tokenizer.count_tokens([each.answer for each in chosen])
    return Dataset(
        name="the built-in model's prompts",
        prompts=[each.prompt.text for each in chosen],
        lengths=np.array(answers, np.int64) + 1,  # and the token that ends an answer
        samples=None,
        rows=np.arange(1, count + 1),
        rejected=[],
        model=tokenizer.name,
        selection=f"{_NAMES.get(part, 'validation')} prompts, answers of its corpus",
    )


def _of_part(drawn: int, part: int, seed: int) -> list[Exchange]:
    return [each for each in exchanges(drawn, seed) if split_of(each.prompt.text) == part]


#: Requests with seeds of their own must not be computed in chunks: vLLM 0.32 fails there on a CPU.
OWN_ANSWER_FLAGS = ("--max-num-batched-tokens", "32768")


def run_own_answers(
    plan: Plan,
    session: Session,
    tokenizer: PromptTokenizer,
    out: Path,
    *,
    learn_into: Path | None,
    count: int,
    probe: ProbeWanted | None,
    progress: Progress,
) -> None:
    """Find the answers' lengths out, train the predictor if asked to, and run the plan.

    Args:
        plan: what is compared.
        session: the server.
        tokenizer: of the built-in model.
        out: folder for the results.
        learn_into: folder for a prompt predictor to train; None where the user named one.
        count: requests in a round.
        probe: that the worker runs.
        progress: told what happens.
    """
    ask = partial(answer_all, session, progress=progress)
    requests = reference_requests(ask, tokenizer, count, plan.seed)
    progress.note(describe_requests(requests))
    notes = [
        "The built-in model's text is synthetic. Each answer was ended by the model itself, at "
        "temperature 1 with a seed of its own; oracles know its length from a round in advance.",
        "The prompts are test prompts: neither predictor nor probe has seen them.",
    ]
    if learn_into is not None:
        predictor = learn_from_answers(ask, tokenizer, learn_into, plan.seed, progress)
        tau = held_out_tau(predictor, requests)
        notes.append(
            f"The prompt predictor learnt from {LEARNT_FROM} other answers; its Kendall tau on the "
            f"requests compared is {tau:.2f}."
        )
    if probe is not None:
        notes.append(
            f"The probe ran every {probe.interval} steps in every round, whatever the policy, so "
            "that all pay for it."
        )
    for line in notes:
        progress.note(line)
    run = describe_run(
        model=REFERENCE,
        dataset="the built-in model's own prompts and answers",
        requests=len(requests),
        server_arguments=session.server_arguments,
        notes=notes,
    )
    writer = ResultsWriter(out, run)
    with keeping(writer, plan.rounds):
        run_plan(plan, session, requests, writer, progress)
    share = same_length(requests, read_results(out))
    progress.note(f"{share:.1%} of all answers had the length found in advance")
