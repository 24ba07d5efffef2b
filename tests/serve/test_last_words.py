"""When a server ends, one line says why: the first cause, not what it led to."""

from __future__ import annotations

import pytest

from lengthwise.serve.vllm_server import LastWords

PREFIX = "(EngineCore pid=71) ERROR 11-23 02:10:11 [core.py:1061] "


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([], None),
        (["INFO loading", "", "  "], "INFO loading"),
        (
            ["usage: api_server.py [-h]", "api_server.py: error: unrecognized arguments: --nope"],
            "unrecognized arguments: --nope",
        ),
        (
            [
                PREFIX + "Traceback (most recent call last):",
                PREFIX + "ValueError: No common block size for 16",
                "RuntimeError: Engine core initialization failed. See root cause above.",
                "warnings.warn('resource_tracker: leaked objects')",
            ],
            "ValueError: No common block size for 16",
        ),
        (
            ["\x1b[31m(APIServer pid=3)\x1b[0m lengthwise.errors.InputError: build/p: no model"],
            "build/p: no model",
        ),
        (
            [
                "pydantic_core.ValidationError: 1 validation error for ModelConfig",
                "  Value error, unknown model type [type=value_error, input_value=1]",
                "    For further information visit a page",
            ],
            "Value error, unknown model type",
        ),
        (["torch.cuda.OutOfMemoryError: 3 GiB"], "torch.cuda.OutOfMemoryError: 3 GiB"),
    ],
)
def test_the_cause_is_found(lines: list[str], reason: str | None) -> None:
    assert said(lines).reason() == reason


def said(lines: list[str]) -> LastWords:
    words = LastWords()
    for line in lines:
        words.add(line + "\n")
    return words


DEAD = "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace"
CHAINED = [
    PREFIX + "EngineCore encountered a fatal error.",
    PREFIX + "Traceback (most recent call last):",
    PREFIX + '  File "cache.py", line 7, in get',
    PREFIX + "    raise KeyError(name)",
    PREFIX + "KeyError: 'request-7'",
    PREFIX + "The above exception was the direct cause of the following exception:",
    PREFIX + "RuntimeError: the step failed",
]


def test_the_first_cause_is_told_however_much_is_said_after_it() -> None:
    complaints = ["ERROR request failed", DEAD, "RuntimeError: cancelled"] * 500
    words = said(["ValueError: a client's mistake, answered", *CHAINED, *complaints])
    assert words.reason() == "KeyError: 'request-7'"
    assert not words.is_refusal


def test_what_is_refused_is_told_in_our_words() -> None:
    refused = "lengthwise.errors.InputError: settings cannot be used: ZeroDivisionError: zero"
    words = said([CHAINED[0], "ZeroDivisionError: zero", refused, DEAD])
    assert words.reason() == "settings cannot be used: ZeroDivisionError: zero"
    assert words.is_refusal


def test_a_process_that_was_killed_says_nothing_itself() -> None:
    died = "Engine core process EngineCore_DP1 died unexpectedly."
    assert said([f"RuntimeError: {died}", DEAD, DEAD]).reason() == died
    gone = "Process EngineCore (PID: 71) died with exit code -9"
    assert said(["loading", f"(APIServer pid=3) RuntimeError: {gone}"]).reason() == gone


def test_an_engine_that_is_killed_is_the_cause_whatever_its_end_leaks() -> None:
    words = said(
        [
            "(APIServer pid=7) ERROR 11-29 14:42:47 [serving.py:500] "
            "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. "
            "See stack trace (above) for the root cause.",
            "INFO:     Finished server process [7]",
            "nanobind: leaked 514 functions!",
            ' - leaked function "create_log"',
            " - ... skipped remainder",
            "See https://nanobind.readthedocs.io/en/latest/refleaks.html",
        ]
    )
    assert "died without a word" in str(words.reason())
    assert not words.is_refusal
