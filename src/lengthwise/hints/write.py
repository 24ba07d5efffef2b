"""A length as hints in a request's body. What the client wrote itself is never changed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from lengthwise.errors import InputError, unknown_name
from lengthwise.predict.baselines import EXPECTED_TOKENS
from lengthwise.predict.prediction import MOST_TOKENS, TENANT, TTFT_DEADLINE_MS

XARGS: Final = "vllm_xargs"
NVEXT: Final = "nvext"
PRIORITY: Final = "priority"

#: where hints may be written, and who reads them there
TARGETS: Final = {
    XARGS: f"`vllm_xargs.{EXPECTED_TOKENS}`: Lengthwise's scheduler, predictor `declared`",
    NVEXT: "`nvext.agent_hints.osl`: Dynamo's router",
    PRIORITY: "`priority`, the expected tokens: lower runs sooner in vLLM and LiteLLM",
}
DEFAULT_TARGETS: Final = (XARGS, NVEXT)


def parse_targets(text: str) -> tuple[str, ...]:
    """Names of targets separated by commas.

    Raises:
        InputError: there is no such target, or none at all.
    """
    names = tuple(name for name in map(str.strip, text.split(",")) if name)
    for name in names:
        if name not in TARGETS:
            raise unknown_name("hint", name, TARGETS)
    if not names:
        raise InputError(f"no hint is named: choose from {', '.join(TARGETS)}")
    return names


def declared_tokens(body: Mapping[str, Any]) -> set[float]:
    """The lengths that a request's own hints name; more than one contradict each other.

    Raises:
        InputError: a hint is there and is no number of tokens, or its place holds something else.
    """
    found = set()
    for value in (_within(body, XARGS).get(EXPECTED_TOKENS), _agent_hints(body).get("osl")):
        if value is not None:
            found.add(_tokens(value))
    return found


def missing_targets(body: Mapping[str, Any], targets: Collection[str]) -> set[str]:
    """The targets where a request has no hint yet."""
    there = {
        XARGS: _within(body, XARGS).get(EXPECTED_TOKENS),
        NVEXT: _agent_hints(body).get("osl"),
        PRIORITY: body.get(PRIORITY),
    }
    return {name for name in targets if there[name] is None}


def write_hints(
    body: Mapping[str, Any], tokens: float, targets: Collection[str] = DEFAULT_TARGETS
) -> dict[str, Any]:
    """A request with an expected length written where it has none.

    Args:
        body: of `/v1/chat/completions` or `/v1/completions`; it stays as it is.
        tokens: the expected length of the answer.
        targets: of `TARGETS`.

    Raises:
        InputError: `vllm_xargs`, `nvext` or `nvext.agent_hints` is there and no object.
    """
    length = max(1, round(tokens))
    missing = missing_targets(body, targets)
    written = dict(body)
    if XARGS in missing:
        written[XARGS] = {**_within(body, XARGS), EXPECTED_TOKENS: length}
    if NVEXT in missing:
        hints = {**_agent_hints(body), "osl": length}
        written[NVEXT] = {**_within(body, NVEXT), "agent_hints": hints}
    if PRIORITY in missing:
        written[PRIORITY] = length
    return written


def write_deadline(body: Mapping[str, Any], milliseconds: float) -> dict[str, Any]:
    """A request with the deadline of its first token in `vllm_xargs`, where it has none yet.

    Raises:
        InputError: `vllm_xargs` is there and no object.
    """
    return {**body, XARGS: {TTFT_DEADLINE_MS: milliseconds, **_within(body, XARGS)}}


def write_tenant(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A request with the name of its tenant in `vllm_xargs`, whatever stood there: whose a request
    is, whoever let it in says, and not the client.

    Raises:
        InputError: `vllm_xargs` is there and no object.
    """
    return {**body, XARGS: {**_within(body, XARGS), TENANT: name}}


def _within(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{name} must be an object")
    return value


def _agent_hints(body: Mapping[str, Any]) -> Mapping[str, Any]:
    return _within(_within(body, NVEXT), "agent_hints")


def _tokens(value: object) -> float:
    try:
        # Values in vllm_xargs may be text.
        tokens = float(value) if isinstance(value, int | float | str) else -1.0
    except (ValueError, OverflowError):
        tokens = -1.0
    if not 0 <= tokens <= MOST_TOKENS:
        raise InputError("a hint that is there is no number of tokens")
    return tokens
