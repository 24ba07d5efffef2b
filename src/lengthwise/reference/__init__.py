"""The built-in reference model: small enough to ship, real enough to be served by vLLM.

A Llama-architecture model of 1.1 million parameters, trained from scratch on text that this package
writes itself. Its answers end by themselves, at lengths from 2 to about 450 tokens that depend on
the prompt and differ from sample to sample, so the whole of Lengthwise can be tried without a model
hub and without a GPU.

    prompts.py  the word lists, and the prompts, in families
    corpus.py   the answers: prompt -> text of chance-determined length
    model/      the weights, the tokenizer and the model card

How it was trained is in `scripts/reference_model/` of the source.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["model_path"]

PAD, END, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = (PAD, END, USER, ASSISTANT)  # in the order of their token ids, from 0


def model_path() -> Path:
    """The folder of the built-in model, as any Hugging Face loader or vLLM takes it."""
    return Path(__file__).resolve().parent / "model"
