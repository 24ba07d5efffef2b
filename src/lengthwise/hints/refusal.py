"""What a service of ours cannot do, said in OpenAI's form."""

from __future__ import annotations

from typing import Any

from aiohttp import web


def error_body(status: int, reason: str) -> dict[str, Any]:
    """The JSON of an error, as OpenAI's API and vLLM's server have it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": reason, "type": kind, "param": None, "code": status}}


def error_response(status: int, reason: str, retry_after_s: int | None = None) -> web.Response:
    """An error as an answer, with `Retry-After` where it is worth while to come again."""
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return web.json_response(error_body(status, reason), status=status, headers=headers)


def place_of(error: Exception) -> str:
    """Where an exception came from, without its message, which may quote a prompt."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    return f"at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
