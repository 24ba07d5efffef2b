"""Collects hidden states in a real engine and compares them with transformers'; prints JSON.

A process of its own, since vLLM's CPU backend binds the whole process to cores. One engine does it
all: prompts longer than a step's tokens, prompts that share a prefix, and so few KV blocks that
running requests are preempted and resumed.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"

from lengthwise.compare import state_collection
from lengthwise.reference import model_path
from lengthwise.vllm.compat.workers import stdout_on_stderr
from lengthwise.vllm.hidden_states import STATES_ID, STATES_KEPT, WORKER

FLAGS = [
    *("--model", str(model_path()), "--worker-cls", WORKER, "--dtype", "float32"),
    *("--max-num-seqs", "8", "--max-num-batched-tokens", "64", "--max-model-len", "512"),
    *("--block-size", "32", "--num-gpu-blocks-override", "25", "--enforce-eager"),
    *("--disable-log-stats", "--enable-prefix-caching", "--no-async-scheduling"),
]
PREFIX = 128


def requests() -> dict[str, tuple[list[int], int]]:
    """Prompt tokens and answer length of each request, by name."""
    random = np.random.default_rng(0)

    def draw(count: int) -> list[int]:
        return [int(token) for token in random.integers(5, 1000, count)]

    shared = draw(PREFIX)
    long = {"long": (draw(200), 20)}
    alike = {f"alike{number}": (shared + draw(20), 30) for number in range(2)}
    many = {f"many{number}": (draw(40), 120) for number in range(10)}
    return {**long, **alike, **many}


def main() -> None:
    with stdout_on_stderr():
        result = run()
    print(json.dumps(result))


def run() -> dict[str, Any]:
    from vllm import SamplingParams

    engine, layers = state_collection._start(FLAGS, None, 0)
    scheduler = engine.engine_core.engine_core.scheduler
    preempted: list[str] = []
    inner = scheduler._preempt_request

    def preempt(request: Any, *args: Any, **kwargs: Any) -> None:
        preempted.append(request.request_id)
        inner(request, *args, **kwargs)

    scheduler._preempt_request = preempt
    asked = requests()
    finished: dict[str, Any] = {}

    def drain() -> None:
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    finished[output.request_id] = output

    for name, (prompt, answer) in asked.items():
        hints: dict[str, Any] = {STATES_ID: name}
        if name == "many9":
            hints[STATES_KEPT] = 5
        parameters = SamplingParams(
            temperature=1.0, max_tokens=answer, ignore_eos=True, extra_args=hints
        )
        engine.add_request(name, {"prompt_token_ids": prompt}, parameters)
        if name.startswith("alike"):
            drain()  # so that the second finds the first one's prompt in the cache
    drain()
    names = list(asked)
    (states,) = engine.collective_rpc("lengthwise_take_states", args=(names,))
    return {
        "layers": layers,
        "preempted": len(preempted),
        "resumed_in_decode": sum(name.startswith("many") for name in preempted),
        "cached": {name: finished[name].num_cached_tokens for name in names},
        "requests": {
            name: compare(asked[name], finished[name], each)
            for name, each in zip(names, states, strict=True)
        },
        "fingerprint": engine.collective_rpc("lengthwise_fingerprint")[0],
    }


def compare(asked: tuple[list[int], int], output: Any, states: Any) -> dict[str, Any]:
    """How far the collected states are from those of transformers for the same tokens."""
    prompt, answer = asked
    said = list(output.outputs[0].token_ids)
    reference = reference_states([*prompt, *said])  # [layers, tokens, hidden]
    first = output.num_cached_tokens
    expected = reference[:, [len(prompt) + age - 1 for age in states.ages]].swapaxes(0, 1)
    kept = np.stack(states.states).astype(np.float64)
    return {
        "said": len(said),
        "asked": answer,
        "ages": sorted(states.ages),
        "dropped": states.dropped,
        "decode": error(normed(kept), expected),
        "last": error(normed(states.prompt_last[None])[0], reference[:, len(prompt) - 1]),
        # The norm of a mean is no mean of norms: all layers but the last.
        "mean": error(
            states.prompt_mean.astype(np.float64)[:-1],
            reference[:-1, first : len(prompt)].mean(axis=1),
        ),
    }


def error(found: Any, expected: Any) -> float:
    """The largest difference, as a share of the largest value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


_MODEL: list[Any] = []


def reference_states(tokens: list[int]) -> Any:
    """The output after each number of layers, the last one behind the model's final norm."""
    import torch
    import transformers

    if not _MODEL:
        _MODEL.append(
            transformers.AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
        )
    with torch.inference_mode():
        output = _MODEL[0](torch.tensor([tokens]), output_hidden_states=True)
    return np.stack([layer[0].double().numpy() for layer in output.hidden_states])


def normed(states: Any) -> Any:
    """States [n, layers, hidden] with the final norm on the last layer, as transformers has it."""
    import torch

    reference_states([5])
    result = states.astype(np.float64)
    with torch.inference_mode():
        last = _MODEL[0].model.norm(torch.tensor(result[:, -1]).float())
    result[:, -1] = last.double().numpy()
    return result


if __name__ == "__main__":
    main()
    sys.stdout.flush()
