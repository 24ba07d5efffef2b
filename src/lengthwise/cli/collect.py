"""`lengthwise collect`: let a model answer prompts and keep its hidden states."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lengthwise.cli.options import JsonOption, PromptColumnOption, refuse_given

if TYPE_CHECKING:
    from lengthwise.compare.progress import Progress
    from lengthwise.predict.tokenizer import PromptTokenizer
    from lengthwise.workload.exchanges import Prompts


def collect(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="Model folder or hub name; `reference` is the built-in model.")
    ],
    rest: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PROMPTS] [-- VLLM_FLAGS]",
            help="Prompts, in any layout that `inspect` knows; `reference` does not need them; "
            "then flags for vLLM, after two dashes.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the states.")] = Path("states"),
    prompts: Annotated[
        int | None,
        typer.Option(min=1, help="How many prompts to answer.", show_default="all; reference 4000"),
    ] = None,
    layers: Annotated[
        str, typer.Option(help="`all`, or layers such as `3,5,8`; 0 is the embedding.")
    ] = "all",
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer.", show_default="1024")
    ] = None,
    max_gib: Annotated[
        float, typer.Option(min=0.0, help="Stop before the folder gets larger, in GiB.")
    ] = 8.0,
    prompt_column: PromptColumnOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the answers and the states kept.")] = 0,
    json: JsonOption = False,
) -> None:
    """Let a model answer prompts, each to its own end, and keep hidden states for a probe.

    Prompts go to training, validation and test (80, 10 and 10 of 100) by a hash of their text,
    which is not kept. Stopped half-way, the same command goes on where it was.

    Example: `lengthwise collect reference --prompts 4000 --layers all --out build/states`
    """
    from dataclasses import asdict

    from lengthwise.cli.output import ConsoleProgress, print_json
    from lengthwise.compare.state_collection import MAX_TOKENS, open_engine
    from lengthwise.compare.state_collection import collect as collect_states
    from lengthwise.predict.tokenizer import load_tokenizer
    from lengthwise.probe.states import StatesMeta
    from lengthwise.serve.command import model_path

    words = list(rest or ())
    table = Path(words.pop(0)) if words and not words[0].startswith("-") else None
    if table is None:
        refuse_given(context, ["--prompt-column"], "is for a table of prompts: name one")
    wanted = parse_layers(layers)
    with ConsoleProgress() as progress:
        asked = _prompts(model, table, prompts, prompt_column, seed, progress)
        progress.stage(f"starting vLLM with {model}")
        tokenizer = load_tokenizer(model_path(model))
        asked = _servable(asked, tokenizer, progress)
        with open_engine(model, wanted, seed=seed, flags=words) as (engine, found):
            config = engine.model_config
            meta = StatesMeta(
                model=model,
                model_fingerprint=engine.collective_rpc("lengthwise_fingerprint")[0],
                hidden_size=config.get_hidden_size(),
                layers=found,
                layers_total=config.get_total_num_hidden_layers(),
                max_tokens=min(max_tokens or MAX_TOKENS, config.max_model_len - 1),
                seed=seed,
                requests=0,
                complete=False,
            )
            collected = collect_states(
                engine,
                meta,
                asked.texts,
                tokenizer.encode_conversations(asked.conversations()),
                out,
                max_bytes=max_gib * 2**30,
                progress=progress,
            )
    if json:
        print_json({"folder": str(out), "layers": found, **asdict(collected)}, pretty=False)
        return
    print(
        f"{out}: {collected.requests:,} answers, {collected.states:,} states of "
        f"{len(found)} layers, {collected.bytes / 2**20:,.0f} MiB, in {collected.seconds:.0f} s; "
        f"{collected.requests - collected.finished:,} answers were cut at {meta.max_tokens} tokens"
    )
    if collected.too_long:
        print(f"{collected.too_long} prompts were left out: longer than the model's context")
    if collected.dropped_states:
        print(f"{collected.dropped_states} states were left out: not finite")


def parse_layers(text: str) -> list[int] | None:
    """Layer numbers from `3,5,8`; None for `all`.

    Raises:
        InputError: something else.
    """
    from lengthwise.errors import InputError

    if text.strip() == "all":
        return None
    try:
        layers = [int(part) for part in text.split(",")]
    except ValueError:
        layers = [-1]
    if min(layers) < 0:
        raise InputError(f"--layers {text}: give `all`, or numbers from 0 such as 3,5,8")
    return layers


def _servable(prompts: Prompts, tokenizer: PromptTokenizer, progress: Progress) -> Prompts:
    """Without the conversations that the model's chat template refuses."""
    from collections import Counter

    from lengthwise.workload.exchanges import Prompts

    kept = Prompts([], [], prompts.rejected)
    refused: Counter[str] = Counter()
    for chat, text in zip(prompts.chats, prompts.texts, strict=True):
        why = None if chat is None else tokenizer.refuses(chat)
        if why is None:
            kept.add(chat, text)
        else:
            refused[why] += 1
    for why, count in refused.items():
        progress.note(f"left out {count:,} conversations that the chat template refuses: {why}")
    return kept


def _prompts(
    model: str,
    table: Path | None,
    count: int | None,
    column: str | None,
    seed: int,
    progress: Progress,
) -> Prompts:
    """The prompts to answer: those of the table, or the built-in model's own."""
    from lengthwise.errors import InputError
    from lengthwise.reference.prompts import generate
    from lengthwise.serve.command import REFERENCE
    from lengthwise.workload.exchanges import Prompts, load_prompts

    if table is not None:
        prompts = load_prompts(table, prompt_column=column, limit=count)
        if prompts.rejected:
            progress.note(f"left out {len(prompts.rejected)} malformed rows")
        return prompts
    if model != REFERENCE:
        raise InputError(
            f"which prompts shall {model} answer? Name a table: lengthwise collect {model} "
            "PROMPTS.parquet"
        )
    texts = [prompt.text for prompt in generate(count or 4000, seed)]
    return Prompts(texts, [None] * len(texts), [])
