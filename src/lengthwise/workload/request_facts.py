"""What a request says of its answer beside its prompt: how it is sampled, and where it is cut.

The same few facts are told from a row of a table, from the body of a request, and by the scheduler
from a request of vLLM, so that a predictor is trained on what it will see. What is at the API's own
default is no fact: most requests, and most logs, do not write it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

#: columns, and names in a request's body, that say where the answer is cut
LIMITS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")
SETTINGS: Final = ("temperature", "top_p", *LIMITS)  #: what is looked for in rows and bodies
#: names in a body that ask for an answer of some form
STRUCTURED: Final = (
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
)
_MOST_ATTACHMENTS: Final = 3  # more count as this many


class Facts(NamedTuple):
    """All that is known; each field at its default says nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    most_tokens: int = 0  #: where the answer is cut, 0 for nowhere
    attachments: int = 0  #: images, sounds and files
    structured: bool = False  #: whether it has to be JSON, or to match a pattern

    def names(self) -> tuple[str, ...]:
        """The facts as features: what is nearly the same has the same name."""
        named = []
        if self.temperature != 1.0:
            named.append(f"temperature {self.temperature:.1f}")
        if self.top_p != 1.0:
            named.append(f"top_p {self.top_p:.1f}")
        if self.most_tokens > 0:  # two steps for each doubling
            named.append(f"limit {round(2 * math.log2(self.most_tokens))}")
        if self.attachments > 0:
            named.append(f"attachments {min(self.attachments, _MOST_ATTACHMENTS)}")
        if self.structured:
            named.append("structured")
        return tuple(named)


NOTHING: Final = Facts()


def facts_of(body: Mapping[str, Any]) -> Facts:
    """The facts in the body of a request to OpenAI's API, or in a row with columns of its names.

    With `ignore_eos` a limit is the answer's very length: a replay, and nobody's word.
    """
    limit = next((number for name in LIMITS if (number := _number(body.get(name)))), 0.0)
    return Facts(
        _or_one(body.get("temperature")),
        _or_one(body.get("top_p")),
        0 if body.get("ignore_eos") else int(min(max(limit, 0.0), 1e9)),
        structured=any(_is_structured(body.get(name)) for name in STRUCTURED),
    )


def _is_structured(cell: Any) -> bool:
    if isinstance(cell, dict) and cell.get("type") == "text":
        return False
    return bool(cell)


def _or_one(cell: Any) -> float:
    number = _number(cell)
    return 1.0 if number is None or number < 0 else number


def _number(cell: Any) -> float | None:
    if isinstance(cell, bool) or not isinstance(cell, int | float | str):
        return None
    try:
        number = float(cell)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
