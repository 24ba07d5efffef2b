"""`lengthwise gateway`: a queue in front of servers that one may not change."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

import typer

from lengthwise.cli.options import (
    LearnEveryOption,
    LearnOption,
    LogOption,
    LogTextOption,
    PredictorOption,
    SettingsOption,
    refuse_given,
)
from lengthwise.errors import InputError, LengthwiseError
from lengthwise.serve.listen import address_of, bound
from lengthwise.serve.settings_file import (
    AskedFor,
    learner_of,
    own_settings_file,
    say,
    say_if_off,
    write_settings,
)

if TYPE_CHECKING:
    from lengthwise.gateway.upstream import Upstream

_MEGABYTE = 1_000_000
_AUTO = "auto"


def gateway(
    context: typer.Context,
    upstream: Annotated[
        str,
        typer.Option(
            metavar="URL[,URL…]",
            help="The servers behind, which serve the same models: vLLM's, or any API like "
            "OpenAI's.",
        ),
    ],
    max_inflight: Annotated[
        str,
        typer.Option(
            metavar="N",
            help="Answers that each may have under way, best its own number of slots; `auto` finds "
            "out from a vLLM server's /metrics.",
        ),
    ],
    policy: Annotated[
        str | None,
        typer.Option(
            help="Who goes next: `srpt`, `sjf`, `ltr`, … with options as in "
            "`srpt:max_overtakes=50;blend=0.9`.",
            show_default="srpt",
        ),
    ] = None,
    predictor: PredictorOption = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="The served model's: a folder or a name on the hub.",
            show_default="the predictor's, or the built-in one, which only finds words",
        ),
    ] = None,
    settings: SettingsOption = None,
    log: LogOption = None,
    log_text: LogTextOption = False,
    learn: LearnOption = False,
    learn_every: LearnEveryOption = 1000,
    max_queue: Annotated[int, typer.Option(min=1, help="Requests that may wait.")] = 10_000,
    max_queue_megabytes: Annotated[
        int, typer.Option(min=1, help="Of the bodies of requests that wait.")
    ] = 256,
    max_queue_per_key: Annotated[
        int | None,
        typer.Option(min=1, help="Requests of one API key that may wait.", show_default="no bound"),
    ] = None,
    megabytes: Annotated[int, typer.Option(min=1, help="Most of a request's body.")] = 32,
    queue_timeout: Annotated[
        float, typer.Option(min=0.001, help="Seconds that a request may wait for its turn.")
    ] = 120.0,
    upstream_timeout: Annotated[
        float, typer.Option(min=0.001, help="Seconds for which an upstream may say nothing.")
    ] = 600.0,
    client_timeout: Annotated[
        float,
        typer.Option(min=0.001, help="Seconds for which a client may neither send nor take."),
    ] = 60.0,
    shutdown_timeout: Annotated[
        float,
        typer.Option(min=0.0, help="Seconds to finish what is open when told to end."),
    ] = 30.0,
    priority_header: Annotated[
        str | None,
        typer.Option(
            help="Believe the priority class in this header: lower goes sooner.",
            show_default="none is believed",
        ),
    ] = None,
    tenant_header: Annotated[
        str | None,
        typer.Option(
            help="Whose a request is, for the setting max_tenant_lead: what this header says.",
            show_default="the API key",
        ),
    ] = None,
    ssl_certfile: Annotated[Path | None, typer.Option(help="Certificate, to serve https.")] = None,
    ssl_keyfile: Annotated[Path | None, typer.Option(help="Its key.")] = None,
    upstream_ca: Annotated[
        Path | None,
        typer.Option(help="Certificates to trust of https upstreams.", show_default="the system's"),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "0.0.0.0",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for a free one.")] = 8080,
    json: Annotated[bool, typer.Option("--json", help="Say as JSON where it listens.")] = False,
) -> None:
    """Queue requests in front of any OpenAI-compatible server, and let short answers go first.

    What is generated waits until an upstream has room; all other paths are passed on. Keys are the
    clients' own and are passed on as well. SIGTERM or Ctrl-C ends it: what is open is finished
    within --shutdown-timeout, and the exit code is 1 if anything was cut off.

    Example: `lengthwise gateway --upstream http://localhost:8000 --max-inflight 256 --policy srpt
    --predictor build/p --port 8080`

    `lengthwise gateway --upstream https://api.example.com --max-inflight 16 --log build/log
    --learn` needs no predictor, nor access to the model: it learns from the usage of the answers
    that pass.
    """
    from lengthwise.counters import Counters
    from lengthwise.gateway.configuration import Opener, Options
    from lengthwise.gateway.limits import Limits
    from lengthwise.gateway.relay import Patience
    from lengthwise.gateway.server import Life
    from lengthwise.gateway.upstream import parse_upstreams
    from lengthwise.policy import get_policy
    from lengthwise.serve.whereabouts import note_settings

    if not learn:
        refuse_given(context, ["--learn-every"], "is for learning: add --learn")
    logging.basicConfig(format="lengthwise: %(message)s", level=logging.INFO)
    addresses = parse_upstreams(upstream)
    options = Options(
        addresses,
        _slots(max_inflight),
        Limits(
            max_queue,
            max_queue_megabytes * _MEGABYTE,
            max_queue_per_key,
            megabytes * _MEGABYTE,
            queue_timeout,
        ),
        Patience(upstream_s=upstream_timeout, client_s=client_timeout),
        priority_header,
        tenant_header,
        _trusted(upstream_ca, addresses),
    )
    tls = _certificate(ssl_certfile, ssl_keyfile)
    with bound(host, port) as listener:
        asked = AskedFor(policy, predictor, log, log_text, learn)
        path = _settings_file(asked, settings, listener)
        counters = Counters()
        model = ", ".join(dict.fromkeys(addresses))
        opener = Opener(tokenizer, model, options.slots, counters)
        address = address_of(listener, host, "https" if tls else "http")
        life = Life(options, opener, path, counters, address)
        chosen = opener.opened

        def ready(absent: list[Upstream]) -> None:
            for each in absent:
                say(
                    f"{each.url} cannot be reached yet ({each.refusal}): requests get 503 while no "
                    "upstream can, and it is tried until it can"
                )
            if json:
                from lengthwise.cli.output import print_json

                print_json({"url": address, "settings": str(path)}, pretty=False)
            several = f"{len(addresses)} upstreams" if len(addresses) > 1 else "one upstream"
            say(f"ready at {address}/v1 for {several} (Ctrl-C stops)")

        with suppress(OSError):  # `lengthwise off` then wants the file's name
            note_settings(listener.getsockname()[1], path)
        predicts = get_policy(chosen.policy).predicts
        say(
            f"policy {chosen.policy}"
            + (f", predictor {chosen.predictor}" if predicts else "")
            + f", {max_inflight} answers under way at each upstream"
        )
        say(f"settings, watched while serving: {path}")
        say_if_off(path, listener.getsockname()[1])
        try:
            with learner_of(chosen, path, learn_every) if learn else nullcontext():
                ended = asyncio.run(life.serve(listener, tls, shutdown_timeout, ready))
        finally:
            life.close()
    if ended.was_cut:
        raise LengthwiseError(
            f"stopped: {ended.was_cut} answers were cut off after {shutdown_timeout:g} s; "
            "--shutdown-timeout gives more time"
        )
    say("stopped")


def _slots(given: str) -> int | None:
    """Answers under way at each upstream; None to find out."""
    if given == _AUTO:
        return None
    try:
        slots = int(given)
    except ValueError:
        slots = 0
    if not 1 <= slots <= 1_000_000:
        raise InputError(
            f"--max-inflight {given}: give the number of answers that an upstream may have under "
            "way, at least 1, or auto"
        )
    return slots


def _settings_file(asked: AskedFor, given: Path | None, listener: socket.socket) -> Path:
    """The settings file that is watched, written unless it is there: as `lengthwise serve` does."""
    from lengthwise.gateway.configuration import refuse_unsuited

    chosen = asked.settings(given, "")
    if given is not None and given.exists():
        return given.absolute()
    refuse_unsuited(chosen)
    path = (given or own_settings_file(listener.getsockname()[1])).absolute()
    write_settings(chosen, path)
    return path


def _certificate(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """What https is served with; None for http."""
    if certificate is None:
        if key is not None:
            raise InputError("--ssl-keyfile is of no use without --ssl-certfile")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"--ssl-certfile {certificate}: cannot be used ({reason}): give a certificate in PEM "
            "form, and its key with --ssl-keyfile"
        ) from None
    return context


def _trusted(certificates: Path | None, upstreams: list[str]) -> ssl.SSLContext | Literal[True]:
    """What https upstreams are checked against; True for the system's authorities."""
    if certificates is None:
        return True
    if not any(urlsplit(each).scheme == "https" for each in upstreams):
        raise InputError(f"--upstream-ca {certificates} is of no use: no upstream is an https one")
    try:
        return ssl.create_default_context(cafile=certificates)
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--upstream-ca {certificates}: cannot be used ({reason})") from None
