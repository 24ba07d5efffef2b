"""Perception only: ask the served model how long its answer will be, before it answers.

The baseline "PO" of "Efficient LLM Scheduling by Learning to Rank" (arXiv 2408.15792), after Zheng
et al. (arXiv 2305.13144): the model states the length of its answer, in at most 100 tokens; the
first whole number in them is taken, 0 if there is none. It costs a request of its own for each
prompt, so it is for `lengthwise evaluate` and not for a scheduler.
"""

from __future__ import annotations

import json
import re
import urllib.request
from typing import Any, Final

from lengthwise.errors import InputError
from lengthwise.predict.extract import template_of
from lengthwise.predict.features import SPECIAL
from lengthwise.predict.prediction import Prediction, PredictionError, Prompt
from lengthwise.predict.tokenizer import PromptTokenizer

_QUESTION: Final = (
    "How many tokens will your answer to the following have? Say the number before you answer.\n\n"
)
_MOST_TOKENS: Final = 100  #: as published
_LONGEST: Final = 1e6  #: tokens; larger numbers are none that a model means
_PATIENCE_S: Final = 120.0
# The served model is one's own: whatever proxy the environment names does not lead to it.
_DIRECT: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class PerceptionOnly:
    """Asks an OpenAI-compatible server about each prompt."""

    name = "perception-only"

    def __init__(self, url: str, tokenizer: PromptTokenizer) -> None:
        """Find out which model is served.

        Args:
            url: of the API, for example http://127.0.0.1:8000/v1.
            tokenizer: that of the served model.

        Raises:
            InputError: nothing answers there.
        """
        if not url.startswith(("http://", "https://")):
            raise InputError(
                "perception-only needs the address of a server's API, for example "
                "perception-only:http://127.0.0.1:8000/v1"
            )
        self._url = url.rstrip("/")
        self._tokenizer = tokenizer
        self._bytes = tokenizer.token_bytes()
        self._template = template_of(tokenizer)
        try:
            self._model = str(self._call("/models")["data"][0]["id"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise InputError(
                f"no OpenAI-compatible server answers at {url} ({error}): start one, for example "
                "with lengthwise serve, and give the address of its API with /v1"
            ) from None

    def predict(self, prompt: Prompt) -> Prediction:
        """What the model says, as score and as every length.

        Raises:
            PredictionError: the server did not answer.
        """
        question = _QUESTION + self._user_text(prompt)
        body = {
            "model": self._model,
            "prompt": self._tokenizer.encode_chat(question),
            "max_tokens": _MOST_TOKENS,
            "temperature": 0,
        }
        try:
            said = str(self._call("/completions", body)["choices"][0]["text"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise PredictionError(f"{self._url} did not answer: {error}") from None
        number = re.search(r"\d+", said)
        tokens = min(float(number[0]), _LONGEST) if number else 0.0
        length = max(1.0, tokens)
        return Prediction(tokens, length, length, length, length)

    def _user_text(self, prompt: Prompt) -> str:
        """The user's words, without the chat template around them."""
        parts = (self._bytes[index] or bytes([SPECIAL]) for index in prompt.token_ids)
        text = b"".join(parts).removesuffix(self._template.after.tobytes())
        before = self._template.before.tobytes()
        if before:
            text = text.rpartition(before)[2]
        return text.replace(bytes([SPECIAL]), b"").decode(errors="replace")

    def _call(self, path: str, body: object = None) -> Any:
        request = urllib.request.Request(
            self._url + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with _DIRECT.open(request, timeout=_PATIENCE_S) as response:
            return json.load(response)
