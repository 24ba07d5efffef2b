"""`lengthwise bench reference`: policies compared on answers that the model ends by itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lengthwise.compare.progress import Progress
    from lengthwise.compare.rounds import Plan
    from lengthwise.compare.session import Session
    from lengthwise.predict.tokenizer import PromptTokenizer
    from lengthwise.vllm.hidden_states import ProbeWanted


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
    from functools import partial

    from lengthwise.compare.own_answers import (
        LEARNT_FROM,
        answer_all,
        held_out_tau,
        learn_from_answers,
        reference_requests,
        same_length,
    )
    from lengthwise.compare.requests import describe_requests
    from lengthwise.compare.rounds import run_and_keep
    from lengthwise.compare.run_info import describe_run
    from lengthwise.measure.results import ResultsWriter, read_results
    from lengthwise.serve.command import REFERENCE

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
    run_and_keep(plan, session, requests, ResultsWriter(out, run), progress)
    share = same_length(requests, read_results(out))
    progress.note(f"{share:.1%} of all answers had the length found in advance")
