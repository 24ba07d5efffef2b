"""What the middleware's tests share."""

from __future__ import annotations

import pytest

from tests.support.asgi import TEXT


@pytest.fixture(scope="module")
def tokens() -> int:
    """What the predictor prompt-length says of the chat."""
    from lengthwise.predict.tokenizer import load_tokenizer

    return len(load_tokenizer("reference").encode_chat(TEXT))
