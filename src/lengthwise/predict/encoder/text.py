"""From the served model's token ids to text that another tokenizer can read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from lengthwise.predict.words import Vocabulary

READ_TOKENS: Final = 8_192  #: of a prompt, its end: four times what a backbone usually reads


class PromptText:
    """Rebuilds prompts as text, chat template included, as the paper does."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """The vocabulary is that of the served model's tokenizer."""
        self._flat = vocabulary.flat.tobytes()
        self._offsets: list[int] = vocabulary.offsets.tolist()

    def read(self, token_ids: Sequence[int]) -> str:
        """The text of a prompt's last 8,192 tokens.

        Special tokens leave no trace, nor do ids outside of the vocabulary. Bytes that are not
        UTF-8 read as U+FFFD.
        """
        flat, offsets = self._flat, self._offsets
        tokens = len(offsets) - 1
        parts = (
            flat[offsets[index] : offsets[index + 1]]
            for index in token_ids[-READ_TOKENS:]
            if 0 <= index < tokens
        )
        return b"".join(parts).decode(errors="replace")
