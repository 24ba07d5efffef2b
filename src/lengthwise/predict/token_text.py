"""What a served model's token ids stand for: all that turns them into features, as one file.

A length log keeps this beside its hashed features, so that a predictor can be trained from them
where neither the prompts nor the tokenizer are at hand.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lengthwise.errors import InputError
from lengthwise.files import replaced
from lengthwise.predict.extract import template_of, vocabulary_of
from lengthwise.predict.tokenizer import PromptTokenizer
from lengthwise.predict.words import Template, Vocabulary

SCHEMA: Final = "lengthwise.tokens/1"


@dataclass(frozen=True)
class TokenText:
    """A tokenizer's vocabulary and chat template, as `find_features` takes them.

    Attributes:
        tokenizer: its name.
        fingerprint: SHA-256 of its vocabulary, see `PromptTokenizer.fingerprint`.
        vocabulary: each token's bytes.
        template: what stands around the user's words.
    """

    tokenizer: str
    fingerprint: str
    vocabulary: Vocabulary
    template: Template

    @cached_property
    def digest(self) -> str:
        """SHA-256 over what features depend on, in hexadecimal."""
        digest = hashlib.sha256()
        for tensor in self._tensors().values():
            digest.update(tensor.size.to_bytes(8, "little") + tensor.tobytes())
        return digest.hexdigest()

    def text(self, token_ids: list[int]) -> str:
        """The text of a prompt; special tokens are left out."""
        flat, offsets = self.vocabulary
        known = [index for index in token_ids if 0 <= index < offsets.size - 1]
        parts = (flat[offsets[index] : offsets[index + 1]].tobytes() for index in known)
        return b"".join(parts).decode(errors="replace")

    def save(self, path: Path) -> None:
        """Write the file, at once or not at all.

        Raises:
            OSError: it cannot be written.
        """
        names = {"schema": SCHEMA, "tokenizer": self.tokenizer, "fingerprint": self.fingerprint}
        with replaced(path) as part:
            part.write_bytes(save(self._tensors(), metadata=names))

    def _tensors(self) -> dict[str, NDArray[np.generic]]:
        return {
            "vocabulary.flat": self.vocabulary.flat,
            "vocabulary.offsets": self.vocabulary.offsets,
            "template.before": self.template.before,
            "template.after": self.template.after,
        }


def token_text_of(tokenizer: PromptTokenizer) -> TokenText:
    """What a tokenizer's ids stand for."""
    return TokenText(
        tokenizer.name, tokenizer.fingerprint, vocabulary_of(tokenizer), template_of(tokenizer)
    )


def load_token_text(path: Path, digest: str) -> TokenText:
    """Read a file that `TokenText.save` wrote.

    Args:
        path: the file.
        digest: what its `digest` must be.

    Raises:
        InputError: it is missing, damaged or another one.
    """
    try:
        with safe_open(path, "numpy") as file:
            names = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found = TokenText(
            names["tokenizer"],
            names["fingerprint"],
            Vocabulary(tensors["vocabulary.flat"], tensors["vocabulary.offsets"]),
            Template(tensors["template.before"], tensors["template.after"]),
        )
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}), and without it the log's features have no meaning: "
            "restart the server, which writes it anew"
        ) from None
    if names.get("schema") != SCHEMA or found.digest != digest:
        raise InputError(f"{path}: damaged: restart the server, which writes it anew")
    return found
