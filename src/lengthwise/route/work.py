"""From a request of OpenAI's API to the work that it is predicted to be."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from lengthwise.errors import LengthwiseError, one_line
from lengthwise.hints.estimate import Estimator, estimator_of
from lengthwise.hints.question import READ, answers_of

# vLLM shows what is logged below its own name, and nothing else.
logger = logging.getLogger("vllm.lengthwise")

_PATIENCE_S: Final = 0.25  #: with a prediction
_LOOK_S: Final = 5.0  #: between two looks at a predictor's folder
_ANSWERS: Final = "n"


def body_of(request: object) -> dict[str, Any]:
    """What a request says, of that which a prediction depends on; {} where it is none."""
    said = request if isinstance(request, Mapping) else getattr(request, "__dict__", {})
    found = {name: said[name] for name in (*READ, _ANSWERS) if said.get(name) is not None}
    messages = found.get("messages")
    if isinstance(messages, list):
        found["messages"] = [_plain(message) for message in messages]
    return found if "messages" in found or "prompt" in found else {}


def text_of(body: Mapping[str, Any]) -> str:
    """The text by which one prompt's beginning is known from another's."""
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return prompt
    return repr(prompt if prompt is not None else body.get("messages", ""))


def _plain(value: object) -> object:
    """A message of whatever class as a plain object."""
    dump = getattr(value, "model_dump", None)
    return dump(exclude_unset=True) if dump is not None else value


class WorkPredictor:
    """One predictor for all routers; each has a copy of its own, exchanged when the folder changes.

    Args:
        predictor: folder of an artifact, `declared` or another name of a predictor, or the URL of
            `lengthwise predict-server`.
        tokenizer: name or folder of the served model's; None: as the artifact says.
    """

    def __init__(self, predictor: str, tokenizer: str | None) -> None:
        self._predictor, self._tokenizer = predictor, tokenizer
        self._estimator: Estimator | None = None
        self._version: object = None
        self._looked_s = float("-inf")
        self._opening: asyncio.Task[None] | None = None
        self._complained = False

    async def work(self, body: Mapping[str, Any]) -> float | None:
        """Predicted output tokens of a request, cut by its `max_tokens`; None: not known."""
        self._look()
        if self._estimator is None or not body:
            return None
        try:
            async with asyncio.timeout(_PATIENCE_S):
                expected = await self._estimator.expected(body)
        except LengthwiseError as error:
            self._complain(error)
            return None
        except TimeoutError:
            self._complain(f"no prediction within {_PATIENCE_S:g} s")
            return None
        return expected * answers_of(body)

    def _look(self) -> None:
        """Load what is there in the background, if it has not been loaded."""
        now = asyncio.get_running_loop().time()
        if now - self._looked_s < _LOOK_S or (self._opening and not self._opening.done()):
            return
        self._looked_s = now
        version = _version(self._predictor)
        if self._estimator is None or version != self._version:
            self._opening = asyncio.get_running_loop().create_task(self._open(version))

    async def _open(self, version: object) -> None:
        estimator = estimator_of(self._predictor, self._tokenizer)
        try:
            await estimator.open()
        except LengthwiseError as error:
            self._complain(error)
            return
        except Exception as error:  # a folder that is half written may hold anything
            self._complain(f"{type(error).__name__}: {one_line(error)}")
            return
        before, self._estimator = self._estimator, estimator
        self._version, self._complained = version, False
        if before is not None:
            await before.close()

    def _complain(self, reason: object) -> None:
        """Say once for each predictor why requests go by the number that each replica has."""
        if not self._complained:
            self._complained = True
            logger.warning("lengthwise: routing without predictions: %s", one_line(reason))


def _version(predictor: str) -> object:
    """What tells an artifact from the one that was there before; None where it is no folder."""
    try:
        return (Path(predictor) / "config.json").stat().st_mtime_ns
    except OSError:
        return None
