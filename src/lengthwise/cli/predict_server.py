"""`lengthwise predict-server`: predictions over HTTP, for other stacks."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from lengthwise.serve.listen import address_of, bound

_MEGABYTE = 1_000_000


def predict_server(
    predictor: Annotated[
        str, typer.Argument(help="Folder of a predictor, as `lengthwise train` writes it.")
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for a free one.")] = 8124,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="The served model's: a folder or a name on the hub.",
            show_default="the one that the predictor was trained with",
        ),
    ] = None,
    megabytes: Annotated[int, typer.Option(min=1, help="Most of a request's body.")] = 4,
    json: Annotated[bool, typer.Option("--json", help="Say as JSON where it listens.")] = False,
) -> None:
    """Predict lengths over HTTP: POST /v1/predict, GET /health, GET /metrics.

    A request is a body of `/v1/chat/completions` or `/v1/completions`, or many of them under
    `requests`; prompts are rendered with the chat template of the predictor's tokenizer. Prompts
    are never logged. Ctrl-C or SIGTERM ends it, with exit code 0.

    Example: `lengthwise predict-server build/p --port 8124`
    """
    from aiohttp import web

    from lengthwise.cli.output import print_json
    from lengthwise.hints.estimate import PromptPredictor
    from lengthwise.hints.service import make_app

    with bound(host, port) as listener:
        answering = PromptPredictor(predictor, tokenizer)
        answering.warm_up()
        app = make_app(answering, megabytes * _MEGABYTE)
        # From here on the system takes connections, so that "ready" is no promise.
        listener.listen(1024)
        address = address_of(listener, host)
        if json:
            print_json({"url": address, "predictor": answering.name}, pretty=False)
        print(
            f"predictor {answering.name} for the tokens of {answering.tokenizer}, ready at "
            f"{address}/v1/predict",
            file=sys.stderr,
            flush=True,
        )
        web.run_app(
            app,
            sock=listener,
            print=None,
            access_log=None,
            handler_cancellation=True,  # nothing is predicted for a client that has gone
        )
