"""Train the reference model from scratch: python -m scripts.reference_model.train --out DIR.

Writes the corpus, learns the tokenizer, trains a small Llama by next-token prediction on the
answers alone, and saves weights, tokenizer and configuration in the form that Hugging Face loaders
and vLLM read. No part of the loss knows about lengths: what the hidden states tell about the
remaining length is what next-token prediction puts there.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console
from rich.progress import Progress, TextColumn

from lengthwise.errors import InputError, LengthwiseError, missing_extra
from lengthwise.reference import ASSISTANT, END, SPECIAL_TOKENS, USER, corpus
from lengthwise.reference.prompts import ReferencePrompt
from lengthwise.workload.prompt_layouts.named_columns import ANSWER_COLUMNS, PROMPT_COLUMNS
from lengthwise.workload.records import read_table
from scripts.reference_model.muon import Muon
from scripts.reference_model.tokenizer import VOCABULARY, save_tokenizer, train_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WIDTH, LAYERS = 128, 5  # of the model in the package
CONFIGURATION: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "head_dim": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "initializer_range": 0.02,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
    "dtype": "bfloat16",
}
GENERATION = {"eos_token_id": 1, "pad_token_id": 0, "do_sample": True, "temperature": 0.8}

BATCH_TOKENS = 2048  # of one batch, padding included
WARM_UP_STEPS = 20
MUON_LEARNING_RATE = 0.02  # for the matrices of the layers
ADAM_LEARNING_RATE = 5e-3  # for the embedding and the norms
IGNORED = -100  # the label that cross-entropy leaves out


def configuration(width: int = WIDTH, layers: int = LAYERS) -> dict[str, Any]:
    """config.json of a model of some size.

    Raises:
        InputError: the width is no multiple of 64, which two heads for one of keys and values need.
    """
    if width < 64 or width % 64 or layers < 1:
        raise InputError(
            f"{layers} layers of width {width}: give a layer or more, of a multiple of 64"
        )
    return CONFIGURATION | {
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 32,
        "num_key_value_heads": width // 64,
    }


class Example(NamedTuple):
    """One exchange in token ids; the loss counts ids[answer_start:] alone."""

    ids: list[int]
    answer_start: int


def examples(exchanges: Sequence[corpus.Exchange], tokenizer: Tokenizer) -> list[Example]:
    """The exchanges as the chat template renders them, each closed by the end token."""
    encoded = tokenizer.encode_batch(
        [f"{USER}{e.prompt.text}{ASSISTANT}{e.answer}{END}" for e in exchanges]
    )
    assistant = SPECIAL_TOKENS.index(ASSISTANT)
    return [Example(e.ids, e.ids.index(assistant) + 1) for e in encoded]


def batches(data: Sequence[Example], rng: random.Random) -> Iterator[list[Example]]:
    """Endless batches of at most BATCH_TOKENS padded tokens, of examples of like length."""
    window = 2048
    while True:
        order = rng.sample(range(len(data)), len(data))
        for start in range(0, len(order), window):
            by_length = sorted(
                (data[i] for i in order[start : start + window]), key=lambda e: len(e.ids)
            )
            cut: list[list[Example]] = [[]]
            for example in by_length:
                if (len(cut[-1]) + 1) * len(example.ids) > BATCH_TOKENS:
                    cut.append([])
                cut[-1].append(example)
            rng.shuffle(cut)
            yield from cut


def padded(batch: Sequence[Example]) -> tuple[Any, Any]:
    """Inputs and labels, each an int64 tensor [examples, longest − 1], padded on the right."""
    import torch

    longest = max(len(example.ids) for example in batch)
    inputs = torch.zeros((len(batch), longest - 1), dtype=torch.long)
    labels = torch.full_like(inputs, IGNORED)
    for row, (ids, answer_start) in enumerate(batch):
        inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        labels[row, answer_start - 1 : len(ids) - 1] = torch.tensor(ids[answer_start:])
    return inputs, labels


def train_model(data: Sequence[Example], size: Mapping[str, Any], steps: int, seed: int) -> Any:
    """A LlamaForCausalLM trained on the answers in float32, with progress on stderr.

    Right padding needs no attention mask: attention is causal, and padding is not in the loss.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**size, "dtype": "float32"}))
    hidden_matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [model.model.embed_tokens.weight, *(p for p in model.parameters() if p.ndim == 1)]
    muon = Muon(hidden_matrices, MUON_LEARNING_RATE)
    adam = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0)
    stream = batches(data, random.Random(seed))
    smoothed = 0.0
    with Progress(
        *Progress.get_default_columns(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        console=Console(stderr=True),
    ) as progress:
        task = progress.add_task("training", total=steps, loss=0.0)
        for step in range(steps):
            inputs, labels = padded(next(stream))
            counted = labels != IGNORED
            hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state
            logits = model.lm_head(hidden[counted])
            loss = torch.nn.functional.cross_entropy(logits, labels[counted])
            model.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            height = min((step + 1) / WARM_UP_STEPS, (steps - step) / (steps - WARM_UP_STEPS))
            adam.param_groups[0]["lr"] = height * ADAM_LEARNING_RATE
            adam.step()
            muon.step(height)
            smoothed = loss.item() if step == 0 else 0.98 * smoothed + 0.02 * loss.item()
            progress.update(task, advance=1, loss=smoothed)
            if (step + 1) % 100 == 0:  # for where the bar cannot be drawn
                progress.console.log(f"step {step + 1} of {steps}, loss {smoothed:.3f}")
    return model


def save_model(model: Any, size: Mapping[str, Any], tokenizer: Tokenizer, folder: Path) -> None:
    """Write bfloat16 weights, configuration, generation settings and tokenizer to `folder`."""
    import torch
    from safetensors.torch import save_file

    weights = {
        name: value.detach().to(torch.bfloat16).contiguous()
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the embedding
    }
    folder.mkdir(parents=True, exist_ok=True)
    weights_file = folder / "model.safetensors"
    save_file(weights, str(weights_file), metadata={"format": "pt"})
    weights_file.chmod(0o644)  # it is written for its owner alone
    for name, content in (
        ("config.json", size),
        ("generation_config.json", GENERATION),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    save_tokenizer(tokenizer, folder)


def recorded_exchanges(path: Path) -> list[corpus.Exchange]:
    """Prompts and answers of another model, from a table; rows without either are left out.

    Raises:
        InputError: no such table, or no columns of prompts and answers.
    """
    table = read_table(path)
    columns = []
    for known in (PROMPT_COLUMNS, ANSWER_COLUMNS):
        name = next((each for each in known if each in table.names), None)
        if name is None:
            raise InputError(f"{path} has none of the columns {', '.join(known)}: rename one")
        columns.append(table.column(name))
    found = [
        corpus.Exchange(ReferencePrompt(text=prompt, family="recorded"), answer)
        for prompt, answer in zip(*columns, strict=True)
        if isinstance(prompt, str) and isinstance(answer, str) and prompt and answer
    ]
    if not found:
        raise InputError(f"{path} holds no row with a prompt and an answer")
    return found


def train(
    folder: Path,
    size: Mapping[str, Any],
    documents: int,
    steps: int,
    seed: int,
    answers: Path | None = None,
) -> None:
    """The whole way from the seed to a folder that vLLM serves.

    Args:
        folder: is written.
        size: a `configuration`.
        documents: how many exchanges are learnt from, at most.
        steps: of training.
        seed: of the corpus, the weights and the order.
        answers: a table of recorded prompts and answers; None: the corpus.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise missing_extra("torch", "reference") from error
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise missing_extra("transformers", "reference") from error
    if answers is None:
        exchanges = list(corpus.exchanges(documents, seed))
    else:
        exchanges = recorded_exchanges(answers)[:documents]
    tokenizer = train_tokenizer(f"{e.prompt.text}\n{e.answer}" for e in exchanges)
    # Recorded answers may be longer than a batch.
    data = [e for e in examples(exchanges, tokenizer) if len(e.ids) <= BATCH_TOKENS]
    model = train_model(data, size, steps, seed)
    save_model(model, size, tokenizer, folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.reference_model.train", description=__doc__
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--width", type=int, default=WIDTH, help="of the hidden states")
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--documents", type=int, default=60_000)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--answers",
        type=Path,
        help="learn from this table of prompts and answers instead of the made-up corpus",
    )
    options = parser.parse_args(arguments)
    try:
        size = configuration(options.width, options.layers)
        train(options.out, size, options.documents, options.steps, options.seed, options.answers)
    except LengthwiseError as error:
        Console(stderr=True).print(f"error: {error}", style="red")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
