"""The one line that is taken from a server's log when it ends."""

from __future__ import annotations

import pytest

from lengthwise.compare.server import failure_reason

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
    assert failure_reason(lines) == reason
