"""From a table of prompts to features, through the token ids that serving will see.

What a served model's token ids stand for, all that turns them into features, is also kept as one
file. A length log has it beside its hashed features, so that a predictor can be trained from them
where neither the prompts nor the tokenizer are at hand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lengthwise.errors import InputError
from lengthwise.files import replaced
from lengthwise.predict.features import (
    SPECIAL,
    FeatureRows,
    Template,
    Vocabulary,
    find_features,
    new_scratch,
)
from lengthwise.predict.prediction import FACTS, LORA, TENANT, Prompt
from lengthwise.predict.tokenizer import PromptTokenizer, load_tokenizer
from lengthwise.workload.conversation import SYSTEM, USER, Chat
from lengthwise.workload.dataset import Dataset
from lengthwise.workload.layouts import CountPrompt

SCHEMA: Final = "lengthwise.tokens/1"

_CHUNK: Final = 1_000  #: prompts tokenised at a time: lists of ids are large
_ANCHOR_BYTES: Final = 8  #: of the template before the user's words: enough for "user:"


def vocabulary_of(tokenizer: PromptTokenizer) -> Vocabulary:
    """The table of each token's bytes."""
    table = tokenizer.token_bytes()
    offsets = np.zeros(len(table) + 1, dtype=np.int64)
    np.cumsum([len(entry) for entry in table], out=offsets[1:])
    return Vocabulary(np.frombuffer(b"".join(table), dtype=np.uint8), offsets)


def template_of(tokenizer: PromptTokenizer) -> Template:
    """What the chat template puts around the user's words, found by encoding two probes.

    Only the last few bytes before them are kept: system prompts and dates that stand further ahead
    may change from day to day.
    """
    table = tokenizer.token_bytes()
    texts = [
        b"".join(table[index] or bytes([SPECIAL]) for index in ids)
        for ids in tokenizer.encode_chat_many(["x", "7"])
    ]
    before = _common_start(*texts)
    after = _common_start(*(text[::-1] for text in texts))[::-1]
    return Template(
        np.frombuffer(before[-_ANCHOR_BYTES:], dtype=np.uint8),
        np.frombuffer(after, dtype=np.uint8),
    )


def _common_start(first: bytes, second: bytes) -> bytes:
    size = 0
    while size < min(len(first), len(second)) and first[size] == second[size]:
        size += 1
    return first[:size]


class ChatTokenizer(Protocol):
    """What turns prompts into ids; a `PromptTokenizer` does."""

    def encode_conversations(
        self,
        conversations: Sequence[Sequence[Mapping[str, Any]]],
        tools: Sequence[Sequence[Mapping[str, Any]]] | None = None,
    ) -> list[list[int]]:
        """The ids of whole conversations, ready for the model to answer.

        Args:
            conversations: messages.
            tools: what each may call; None where none may.
        """


def encode_prompts(
    dataset: Dataset, tokenizer: ChatTokenizer, rows: Iterable[int]
) -> list[list[int]]:
    """The ids that a server would see of some rows of a table, in that order.

    A prompt that is a text is a chat of one user message, with the system's prompt ahead where the
    table has one.
    """
    rows = list(rows)
    conversations = [_messages_of(dataset, row) for row in rows]
    if dataset.chats is None:
        return tokenizer.encode_conversations(conversations)
    chats = [dataset.chats[row] for row in rows]
    return tokenizer.encode_conversations(
        conversations, [() if chat is None else chat.tools for chat in chats]
    )


def _messages_of(dataset: Dataset, row: int) -> list[dict[str, Any]]:
    chat = None if dataset.chats is None else dataset.chats[row]
    system = None if dataset.systems is None else dataset.systems[row]
    if chat is None:
        messages = [{"role": USER, "content": dataset.prompts[row]}]
    else:
        messages = [message.for_template() for message in chat.messages()]
    if system and messages[0]["role"] != SYSTEM:
        return [{"role": SYSTEM, "content": system}, *messages]
    return messages


def prompt_counter(name: str) -> CountPrompt:
    """How many tokens a prompt has for a model, whose tokenizer is loaded when it is asked first.

    Args:
        name: of the tokenizer, see `tokenizer.load_tokenizer`.
    """
    load = cache(load_tokenizer)

    def count(chat: Chat | None, text: str) -> int:
        messages = [{"role": USER, "content": text}]
        if chat is not None:
            messages = [message.for_template() for message in chat.messages()]
        tools = () if chat is None else chat.tools
        (ids,) = load(name).encode_conversations([messages], [tools])
        return len(ids)

    return count


def requests_of(dataset: Dataset, tokenizer: PromptTokenizer, rows: slice) -> list[Prompt]:
    """Some rows of a table as a server would see them."""
    encoded = encode_prompts(dataset, tokenizer, range(len(dataset.prompts))[rows])
    hints: list[dict[str, object]] = [{} for _ in encoded]
    for name, values in ((TENANT, dataset.tenants), (LORA, dataset.loras)):
        for hint, value in zip(hints, (values or [])[rows], strict=False):
            hint[name] = value
    for hint, facts in zip(hints, (dataset.facts or [])[rows], strict=False):
        hint[FACTS] = facts
    return [Prompt(token_ids, hint) for token_ids, hint in zip(encoded, hints, strict=True)]


def chunks_of(dataset: Dataset) -> Iterator[slice]:
    """The rows of a table, as many at a time as are to be tokenised at once."""
    count = len(dataset.prompts)
    for first in range(0, count, _CHUNK):
        yield slice(first, min(first + _CHUNK, count))


def extract_features(
    dataset: Dataset,
    tokenizer: PromptTokenizer,
    vocabulary: Vocabulary,
    template: Template,
    report: Callable[[float], None],
) -> FeatureRows:
    """The features of each prompt, as a server would see it.

    Args:
        dataset: n prompts.
        tokenizer: that of the model to be served.
        vocabulary: its tokens' bytes.
        template: its chat template.
        report: called with the part that is done, 0 to 1.
    """
    scratch = new_scratch()
    count = len(dataset.prompts)
    starts = np.zeros(count + 1, dtype=np.int64)
    parts = []
    for chunk in chunks_of(dataset):
        requests = requests_of(dataset, tokenizer, chunk)
        for row, (token_ids, hints) in enumerate(requests, start=chunk.start):
            found = find_features(token_ids, vocabulary, template, scratch, hints)
            # In the order of a length log, so that sums come out alike to the last bit.
            parts.append(np.sort(scratch.buckets[:found]))
            starts[row + 1] = starts[row] + found
        report(chunk.stop / count)
    return FeatureRows(starts, np.concatenate(parts))


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
