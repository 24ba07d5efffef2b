"""The served model's tokenizer, as training, evaluation and the bench client use it.

One method, `encode_conversations`, turns prompts into the very ids that vLLM's chat endpoint would
make of them, so that a predictor is trained on what it will see; all others go through it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from lengthwise.errors import InputError, missing_extra
from lengthwise.files import parse_json
from lengthwise.workload.conversation import Chat

REFERENCE: Final = "reference"  #: the name of the built-in model

_FILES: Final = ("*token*", "*vocab*", "*.tiktoken")  #: what a folder with a tokenizer may hold


class PromptTokenizer:
    """A tokenizer with its chat template."""

    def __init__(self, name: str, backend: Any) -> None:
        """Wrap a Hugging Face tokenizer; `load_tokenizer` is the usual way to get one."""
        self.name = name
        self._backend = backend
        self._refused: dict[tuple[str, ...], str | None] = {}

    def encode_chat(self, prompt: str) -> list[int]:
        """The ids of a chat of one user message, ready for the model to answer.

        Without a chat template these are the ids of the plain text.
        """
        return self.encode_chat_many([prompt])[0]

    def encode_plain(self, prompt: str) -> list[int]:
        """The ids of the text as a completion endpoint would encode it."""
        return self.encode_plain_many([prompt])[0]

    def encode_plain_many(self, prompts: Sequence[str]) -> list[list[int]]:
        """`encode_plain` of many texts, in parallel where the tokenizer can."""
        if not prompts:
            return []
        ids: list[list[int]] = self._backend(list(prompts), verbose=False)["input_ids"]
        return ids

    def encode_words(self, text: str) -> list[int]:
        """The ids of the text alone, without special tokens."""
        ids: list[list[int]] = self._backend([text], add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        return ids[0]

    def encode_chat_many(self, prompts: Sequence[str]) -> list[list[int]]:
        """`encode_chat` of many prompts, in parallel where the tokenizer can."""
        return self.encode_conversations(
            [[{"role": "user", "content": prompt}] for prompt in prompts]
        )

    def encode_conversations(
        self,
        conversations: Sequence[Sequence[Mapping[str, Any]]],
        tools: Sequence[Sequence[Mapping[str, Any]]] | None = None,
    ) -> list[list[int]]:
        """The ids of whole conversations, ready for the model to answer, in parallel where it can.

        Args:
            conversations: messages with a `role`, a `content` and perhaps `tool_calls`, none that
                `refuses` refuses. A tokenizer without a chat template joins the contents.
            tools: what each may call, as OpenAI's API has them; None where none may.
        """
        if not conversations:
            return []
        if self._backend.chat_template is None:
            texts = [
                "\n\n".join(message["content"] for message in messages if message["content"])
                for messages in conversations
            ]
            return self._ids(texts)
        offered = tools or [()] * len(conversations)
        texts = [
            self._render(messages, own)
            for messages, own in zip(conversations, offered, strict=True)
        ]
        # The template writes the special tokens itself.
        return self._ids(texts, add_special_tokens=False)

    def _ids(self, texts: Sequence[str], **options: bool) -> list[list[int]]:
        try:
            ids: list[list[int]] = self._backend(list(texts), verbose=False, **options)["input_ids"]
        except TypeError:  # JSON may hold half a surrogate pair, which is no text to a tokenizer
            whole = [text.encode("utf-8", "replace").decode() for text in texts]
            ids = self._backend(whole, verbose=False, **options)["input_ids"]
        return ids

    def refuses(self, chat: Chat) -> str | None:
        """Why the chat template refuses a conversation, as a server would; None where it does not.

        It depends on who speaks, not on what is said, and is asked once for each order of speakers;
        but for calls of tools.
        """
        if self._backend.chat_template is None:
            return None
        calls = any(message.calls for message in chat.messages())
        if calls or chat.tools:  # what templates write in many ways
            return self._why_refused(chat)
        if chat.roles not in self._refused:
            self._refused[chat.roles] = self._why_refused(chat)
        return self._refused[chat.roles]

    def _why_refused(self, chat: Chat) -> str | None:
        try:
            self._render([message.for_template() for message in chat.messages()], chat.tools)
        except Exception as error:  # templates are programs: they raise what they like
            return str(error).strip().partition("\n")[0] or type(error).__name__
        return None

    def _render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
    ) -> str:
        rendered: str = self._backend.apply_chat_template(
            list(messages),
            tools=[dict(tool) for tool in tools] or None,
            add_generation_prompt=True,
            tokenize=False,
        )
        return rendered

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has, without special tokens: the length of an answer."""
        if not texts:
            return []
        return [len(ids) for ids in self._ids(texts, add_special_tokens=False)]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the vocabulary, in hexadecimal: the same for the same tokens and ids."""
        entries = sorted((index, token) for token, index in self._backend.get_vocab().items())
        return hashlib.sha256(json.dumps(entries).encode()).hexdigest()

    def token_bytes(self) -> list[bytes]:
        """The bytes of text that each id stands for; empty for special tokens and unused ids."""
        vocabulary: dict[str, int] = self._backend.get_vocab()
        special = set(self._backend.all_special_ids)
        added = self._backend.added_tokens_decoder
        special.update(index for index, token in added.items() if token.special)
        table = [b""] * (max(vocabulary.values(), default=-1) + 1)
        decode = _decoder(vocabulary)
        for token, index in vocabulary.items():
            if index not in special:
                table[index] = token.encode() if index in added else decode(token)
        return table


def load_tokenizer(name_or_path: str) -> PromptTokenizer:
    """Load a tokenizer by the name of its model.

    Args:
        name_or_path: `reference` for the built-in model, a folder that holds tokenizer files, or
            the name of a model on the Hugging Face hub.

    Raises:
        InputError: there is none, or `transformers` is not installed.
    """
    source = name_or_path
    if name_or_path == REFERENCE:
        from lengthwise.reference import model_path

        source = str(model_path())
    folder = Path(source)
    if (folder.is_dir() or folder.is_absolute()) and not holds_tokenizer(folder):
        raise InputError(
            f"{folder} holds no tokenizer: give the folder of a model, the name of one on the hub, "
            "or 'reference'"
        )
    try:
        import transformers
    except ImportError:
        raise missing_extra("transformers", "reference") from None
    try:
        if _is_plain(folder):
            # What AutoTokenizer would choose, without importing torch first (several seconds).
            backend = transformers.PreTrainedTokenizerFast.from_pretrained(source)
        else:
            backend = transformers.AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise InputError(
            f"cannot load the tokenizer of {name_or_path!r}: {reason}; "
            "give the folder of a model, the name of one on the hub, or 'reference'"
        ) from None
    return PromptTokenizer(name_or_path, backend)


def holds_tokenizer(folder: Path) -> bool:
    """Whether there are files of a tokenizer in a folder; transformers may make one up if not."""
    return any(next(folder.glob(name), None) for name in _FILES)


def _is_plain(folder: Path) -> bool:
    """Whether the folder asks for the tokenizer class that is defined by tokenizer.json alone."""
    try:
        config = parse_json((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (
        isinstance(config, dict)
        and config.get("tokenizer_class") == "PreTrainedTokenizerFast"
        and (folder / "tokenizer.json").is_file()
    )


def _decoder(vocabulary: dict[str, int]) -> Any:
    """The function from a token's name in the vocabulary to its bytes.

    Byte-level BPE (GPT-2, Llama 3, Qwen) names each byte by a printable character, the space by
    "Ġ". SentencePiece (Llama 2, Mistral, Gemma) writes "▁" for a space and "<0x0A>" for a byte.
    """
    byte_level = sum(token.startswith("Ġ") for token in vocabulary)
    sentence_piece = sum(token.startswith("▁") for token in vocabulary)
    return _decode_byte_level if byte_level > sentence_piece else _decode_sentence_piece


def _byte_names() -> dict[str, int]:
    """GPT-2's names of bytes: printable ones stand for themselves, others follow U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    names = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    names.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return names


_BYTE_NAMES: Final = _byte_names()


def _decode_byte_level(token: str) -> bytes:
    try:
        return bytes(_BYTE_NAMES[character] for character in token)
    except KeyError:
        return token.encode()


def _decode_sentence_piece(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            pass
    return token.replace("▁", " ").encode()
