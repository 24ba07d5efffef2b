"""The built-in reference model: small enough to ship, real enough to be served by vLLM.

A Llama-architecture model of 1.1 million parameters, trained from scratch on text that this package
writes itself. Its answers end by themselves, at lengths from 2 to about 450 tokens that depend on
the prompt and differ from sample to sample, so the whole of Lengthwise can be tried without a model
hub and without a GPU.

    word_lists.py  the word lists
    prompts.py    the prompts, in families
    corpus.py     the answers: prompt -> text of chance-determined length
    tokenizer.py  the byte-level BPE tokenizer and the chat template
    train.py      python -m lengthwise.reference.train --out DIR
    evaluate.py   python -m lengthwise.reference.evaluate
    model/        the weights, the tokenizer and the model card
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["model_path"]


def model_path() -> Path:
    """The folder of the built-in model, as any Hugging Face loader or vLLM takes it."""
    return Path(__file__).resolve().parent / "model"
