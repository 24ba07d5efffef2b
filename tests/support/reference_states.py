"""Hidden states of the reference model by Hugging Face transformers: no part of it is vLLM's.

    python -m tests.support.reference_states OUT --prompts 4000

writes the folder that `lengthwise collect` would, up to the answers' chance: an independent check
of what the engine's hidden states are, and data for tests that start no engine.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lengthwise.probe.states import TEST, TRAIN, VALID, Shard, StatesMeta, write_meta, write_shard
from lengthwise.reference import model_path
from lengthwise.reference.prompts import generate

MAX_TOKENS = 512
TRAIN_STATES = 16  # of each training answer, at random ages
BATCH = 128


def split_of(prompt: str) -> int:
    """80, 10 and 10 % by a hash of the prompt."""
    bucket = hashlib.blake2b(prompt.encode(), digest_size=8).digest()[0] * 10 // 256
    return {0: VALID, 1: TEST}.get(bucket, TRAIN)


def collect(
    folder: Path,
    prompts: Sequence[str],
    *,
    model: Path | None = None,
    seed: int = 0,
    prompt_states: bool = False,
) -> None:
    """Answer the prompts at temperature 1 and write all layers' states, one shard a batch."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    model = model or model_path()
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    layers_total = network.config.num_hidden_layers
    folder.mkdir(parents=True, exist_ok=True)
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        for prompt in prompts
    ]
    # Of like length, so that little is padding.
    order = np.argsort([len(text) for text in texts], kind="stable")
    for index, batch in enumerate(np.array_split(order, max(1, len(order) // BATCH))):
        encoded = tokenizer(
            [texts[row] for row in batch],
            return_tensors="pt",
            padding=True,
            add_special_tokens=False,
        )
        splits = np.array([split_of(prompts[row]) for row in batch], dtype=np.int8)
        shard = answer(network, encoded, splits, random)
        if not prompt_states:
            shard = shard._replace(prompt_states=None, prompt_starts=None)
        write_shard(folder, index, shard)
    write_meta(
        folder,
        StatesMeta(
            model="reference",
            model_fingerprint="transformers",
            hidden_size=network.config.hidden_size,
            layers=list(range(layers_total + 1)),
            layers_total=layers_total,
            max_tokens=MAX_TOKENS,
            seed=seed,
            requests=len(prompts),
            complete=True,
        ),
    )


def answer(network: Any, encoded: Any, splits: np.ndarray, random: np.random.Generator) -> Shard:
    """Sample answers to left-padded prompts, then run each exchange once for its states."""
    import torch

    end = network.generation_config.eos_token_id
    width = encoded.input_ids.shape[1]
    with torch.inference_mode():
        whole = network.generate(
            input_ids=encoded.input_ids,
            attention_mask=encoded.attention_mask,
            do_sample=True,
            temperature=0.8,
            top_k=0,
            top_p=1.0,
            max_new_tokens=MAX_TOKENS,
        )
    answers = whole[:, width:]
    ended = (answers == end).any(dim=1).numpy()
    length = np.where(ended, (answers == end).int().argmax(dim=1).numpy() + 1, answers.shape[1])
    prompt_tokens = encoded.attention_mask.sum(dim=1).numpy()
    prompts, request, age, states = [], [], [], []
    for row in range(len(splits)):
        first = width - prompt_tokens[row]
        own = layer_outputs(network, whole[row : row + 1, first : width + length[row]])
        prompt, answered = own[: prompt_tokens[row]], own[prompt_tokens[row] :]
        prompts.append(prompt)
        ages = np.arange(1, length[row])  # the token that ends the answer never runs
        if splits[row] == TRAIN and ages.size > TRAIN_STATES:
            ages = np.sort(random.choice(ages, TRAIN_STATES, replace=False))
        request.append(np.full(ages.size, row))
        age.append(ages)
        states.append(answered[ages - 1])
    return Shard(
        length=length.astype(np.int32),
        finished=ended,
        split=splits,
        prompt_tokens=prompt_tokens.astype(np.int32),
        prompt_mean=np.stack([each.mean(axis=0) for each in prompts]).astype(np.float16),
        prompt_last=np.stack([each[-1] for each in prompts]).astype(np.float16),
        decode_request=np.concatenate(request).astype(np.int32),
        decode_age=np.concatenate(age).astype(np.int32),
        decode_states=np.concatenate(states).astype(np.float16),
        prompt_states=np.concatenate(prompts).astype(np.float16),
        prompt_starts=np.concatenate([[0], np.cumsum(prompt_tokens)]).astype(np.int64),
    )


def layer_outputs(network: Any, ids: Any) -> np.ndarray:
    """The output after 0, 1, … layers, [tokens, layers + 1, hidden]."""
    import torch

    found: list[Any] = []
    hooks = [
        network.model.layers[0].register_forward_pre_hook(
            lambda _module, inputs: found.append(inputs[0])
        )
    ]
    # Not output_hidden_states: its last entry has been through the final norm.
    hooks += [
        layer.register_forward_hook(
            lambda _module, _inputs, output: found.append(
                output[0] if isinstance(output, tuple) else output
            )
        )
        for layer in network.model.layers
    ]
    with torch.inference_mode():
        network.model(ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return torch.stack([each[0] for each in found], dim=1).numpy()


def main() -> None:
    """Write a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompts", type=int, default=4000)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--prompt-states", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    prompts = [each.text for each in generate(options.prompts, options.seed)]
    collect(
        options.out,
        prompts,
        model=options.model,
        seed=options.seed,
        prompt_states=options.prompt_states,
    )


if __name__ == "__main__":
    main()
