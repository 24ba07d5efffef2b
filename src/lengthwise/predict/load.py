"""From the name a user gives to a predictor that answers."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

from lengthwise.errors import InputError, unknown_name
from lengthwise.predict.baselines import Declared, Foretold, NoisyOracle, Oracle, PromptLength
from lengthwise.predict.prediction import Predictor

NO_PREDICTOR: Final = "none"  #: nothing is predicted, which is the order of fcfs; not loaded
BUILT_IN: Final = (
    "oracle",
    "noisy-oracle:TAU",
    "prompt-length",
    "declared",
    "perception-only:URL",
)


def load_predictor(spec: str, tokenizer: str | None = None) -> Predictor:
    """The predictor that a specification names.

    Args:
        spec: `oracle`, `noisy-oracle:TAU`, `prompt-length`, `declared`, `perception-only:URL`, or
            the folder of an artifact written by `lengthwise train`.
        tokenizer: name or path of the tokenizer whose tokens the predictor will see. An artifact
            trained for another one is refused. None skips the check.

    Raises:
        InputError: no such predictor, or an artifact that is damaged, too new or for another
            tokenizer.
    """
    kind, _, argument = spec.partition(":")
    if kind == "noisy-oracle":
        return NoisyOracle(_tau(argument))
    if kind == "perception-only":
        from lengthwise.predict.perception import PerceptionOnly
        from lengthwise.predict.tokenizer import REFERENCE, load_tokenizer

        return PerceptionOnly(argument, load_tokenizer(tokenizer or REFERENCE))
    if spec == Oracle.name:
        return Oracle()
    if spec == PromptLength.name:
        return PromptLength()
    if spec == Declared.name:
        return Declared()
    if spec == Foretold.name:
        return Foretold()
    folder = Path(spec)
    if not folder.exists() and folder.name == spec:
        raise InputError(
            f"{unknown_name('predictor', spec, BUILT_IN)}; and there is no folder {spec!r}"
        )
    return _load_artifact(folder, tokenizer)


def _tau(argument: str) -> float:
    try:
        return float(argument)
    except ValueError:
        raise InputError(
            "noisy-oracle needs the Kendall tau to reach, for example noisy-oracle:0.5"
        ) from None


def _load_artifact(folder: Path, tokenizer: str | None) -> Predictor:
    # Imported here: the baselines need no compiler.
    from lengthwise.predict.artifact import read_artifact
    from lengthwise.predict.kinds import KINDS

    metadata, tensors = read_artifact(folder)
    kind = KINDS.get(metadata.kind)
    if kind is None:
        raise InputError(
            f"{folder} holds a predictor of kind {metadata.kind!r}, this version reads "
            f"{', '.join(KINDS)}: upgrade Lengthwise, or train again"
        )
    predictor = kind.load(folder, metadata, tensors)
    if tokenizer is not None and _fingerprint(tokenizer) != metadata.tokenizer_fingerprint:
        raise InputError(
            f"{folder}: trained for the tokenizer of {metadata.tokenizer}, "
            f"but {tokenizer} has another vocabulary: "
            f"train again with --tokenizer {tokenizer}"
        )
    return predictor


@cache
def _fingerprint(tokenizer: str) -> str:
    """A served tokenizer's fingerprint: read once, for predictors may change many times."""
    from lengthwise.predict.tokenizer import load_tokenizer

    return load_tokenizer(tokenizer).fingerprint
