"""The built-in model's prompts with answers that nobody has to generate."""

from __future__ import annotations

import numpy as np

from lengthwise.predict.tokenizer import PromptTokenizer
from lengthwise.reference.corpus import Exchange, exchanges
from lengthwise.workload.dataset import Dataset
from lengthwise.workload.split import TEST, TRAIN, split_of

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
