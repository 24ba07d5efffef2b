"""`lengthwise serve`: vLLM's OpenAI server with the Lengthwise scheduler."""

from __future__ import annotations

import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lengthwise.cli.options import (
    IntervalOption,
    LearnEveryOption,
    LearnOption,
    LogOption,
    LogTextOption,
    PredictorOption,
    SettingsOption,
    refuse_given,
)
from lengthwise.errors import InputError
from lengthwise.serve.settings_file import (
    AskedFor,
    learner_of,
    own_settings_file,
    say,
    say_if_off,
    write_settings,
)

if TYPE_CHECKING:
    from lengthwise.serve.command import ServerCommand
    from lengthwise.serve.whereabouts import EnginesFolder
    from lengthwise.settings import Settings


def serve(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            help="A model folder or hub name, as vLLM takes it; `reference` is the built-in model. "
            "May be left out with --emulate.",
            show_default=False,
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="Who runs first: `fcfs`, `ltr`, `srpt`, … with options as in "
            "`srpt:max_overtakes=50;blend=0.9`.",
            show_default="srpt",
        ),
    ] = None,
    predictor: PredictorOption = None,
    probe: Annotated[
        Path | None,
        typer.Option(
            help="Folder made by `lengthwise train-probe`: the model's own hidden states then "
            "correct predictions while an answer is made."
        ),
    ] = None,
    interval: IntervalOption = None,
    emulate: Annotated[
        str | None,
        typer.Option(
            metavar="GPU:MODEL",
            help="Compute no model, but keep the pace that one would have on a GPU: "
            "`a100:llama-3-8b`, `2xh100:llama-3-70b`.",
        ),
    ] = None,
    settings: SettingsOption = None,
    shadow: Annotated[
        bool,
        typer.Option(
            "--shadow",
            help="Decide nothing: the order is that of stock vLLM, and what the policy would have "
            "changed is in the status file and on /metrics.",
        ),
    ] = False,
    log: LogOption = None,
    log_text: LogTextOption = False,
    learn: LearnOption = False,
    learn_every: LearnEveryOption = 1000,
    host: Annotated[str, typer.Option(help="Address to listen on, for metrics too.")] = "0.0.0.0",
    port: Annotated[int, typer.Option(min=1, help="TCP port to listen on.")] = 8000,
    replicas: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="So many engines on Ray Serve, behind a router that goes by predicted work: on "
            "the cluster of this machine, or on one that is begun. Needs `lengthwise[ray]`.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Serve a model through vLLM's OpenAI server, short answers first.

    Every other option is passed on to vLLM as it is.

    Example: `lengthwise serve reference --policy srpt --predictor build/p --port 8123`

    `lengthwise serve MODEL --policy ltr --log build/log --learn` needs no predictor: it serves in
    the order of arrival until it has learnt one from its own traffic.

    `lengthwise serve --emulate a100:llama-3-8b` needs neither a GPU nor a model: answers are made
    up, and come as fast as an A100 would make them.

    Policy, bounds and predictor can be changed while serving: edit the settings file that is
    printed at the start.
    """
    from lengthwise.policy import get_policy
    from lengthwise.serve.command import REFERENCE, probe_of, refuse_model, server_command
    from lengthwise.serve.flags import require_same_address
    from lengthwise.serve.vllm_server import Server
    from lengthwise.serve.whereabouts import note_settings
    from lengthwise.simulate.presets import parse_preset

    if not learn:
        refuse_given(context, ["--learn-every"], "is for learning: add --learn")
    flags = list(context.args)
    if model is not None and model.startswith("-"):
        # A flag of vLLM's, and no model before it.
        flags.insert(0, model)
        model = None
    preset = None if emulate is None else parse_preset(emulate)
    if preset is not None:
        model = model or REFERENCE
        refuse_model(model, preset)
    if model is None:
        raise typer.BadParameter(
            f"name the model first: lengthwise serve {' '.join(['MODEL', *flags[:1]])} …",
            ctx=context,
        )
    require_same_address(flags, host, port)
    theirs = settings is not None and settings.exists()
    asked = AskedFor(policy, predictor, log, log_text, learn, shadow)
    chosen = asked.settings(settings, host, pausing=True)
    path = (settings or own_settings_file(port)).absolute()
    if settings is None:  # beside a file of ours, there is a place for it
        chosen = chosen.model_copy(update={"journal": str(path.parent / "journal")})
    require_matching_predictor(chosen, model)
    wanted = probe_of(probe, interval, model)
    if replicas is not None:
        from lengthwise.ray import require_ray

        require_ray()
        if wanted is not None:
            raise InputError("--probe does not go with --replicas: Ray has its own workers")
    engines = None if replicas is not None else _engines_folder()
    command = server_command(
        model,
        path,
        host=host,
        port=port,
        flags=flags,
        probe=wanted,
        emulate=preset,
        engines=None if engines is None else Path(engines.name),
        more=_places(chosen),
    )
    if not theirs:  # and not before: a server that has this port reads its settings there
        write_settings(chosen, path)
    with suppress(OSError):  # `lengthwise off` then wants the file's name
        note_settings(port, path)
    if sys.stderr.isatty():
        command.environment.setdefault("VLLM_LOGGING_COLOR", "1")
    predicts = get_policy(chosen.policy).predicts
    say(
        f"policy {chosen.policy}"
        + (f", predictor {chosen.predictor}" if predicts else "")
        + (", in shadow: the order is that of stock vLLM" if chosen.shadow else "")
    )
    if preset is not None:
        say(f"emulates {preset.name}, answers are made up ({preset.cost.source})")
    if command.places is not None:
        say(str(command.places))
    if wanted is not None:
        layers = ", ".join(map(str, wanted.layers))
        say(f"probe {probe}, layer {layers}, every {wanted.interval} steps")
    if predicts and chosen.predictor == "declared":
        say(
            "lengths are what callers declare (vllm_xargs: lengthwise_expected_tokens); "
            "requests without are served as they come: --predictor DIR learns them instead"
        )
    say(
        f"settings, watched while serving: {path}"
        + ("" if settings else " (made anew at each start; --settings FILE keeps changes)")
    )
    say_if_off(path, port)
    if replicas is not None:
        with learner_of(chosen, path, learn_every) if learn else nullcontext():
            _serve_replicas(command, chosen, replicas, model)
        return
    with engines or nullcontext(), Server(command, log=None) as server:
        try:
            server.wait_ready()
            say(f"ready at {server.url}/v1 (Ctrl-C stops)")
            with learner_of(chosen, path, learn_every) if learn else nullcontext():
                server.wait()
        except KeyboardInterrupt:
            server.end()
            say("stopped")
        else:
            server.check()


def _places(settings: Settings) -> int:
    """Places in the worker for each request that runs."""
    from lengthwise.serve.places import MORE, MORE_TO_LOOK

    if not settings.pauses or settings.shadow:
        return 1
    return MORE_TO_LOOK if settings.peek else MORE


def _serve_replicas(command: ServerCommand, settings: Settings, count: int, model: str) -> None:
    from lengthwise.ray.application import Replicas, replica_arguments

    arguments = replica_arguments(command, settings, count, model)
    with Replicas(arguments, command.host, command.port) as replicas:
        say(f"{count} replicas ready at {command.url}/v1 (Ctrl-C stops)")
        try:
            replicas.wait()
        except KeyboardInterrupt:
            say("stopped")


def _engines_folder() -> EnginesFolder | None:
    """Where engines keep their numbers while the server runs; None where nothing can be written."""
    from lengthwise.serve.whereabouts import EnginesFolder

    try:
        return EnginesFolder()
    except OSError as error:
        say(
            f"no place for temporary files ({error.strerror or error}), so /metrics has vLLM's own "
            "alone: set TMPDIR to a folder that can be written to"
        )
        return None


def require_matching_predictor(settings: Settings, model: str) -> None:
    """Refuse a predictor that the engine would refuse, half a minute before the engine would.

    Raises:
        InputError: the predictor is damaged, missing or for another model's tokenizer.
    """
    from lengthwise.predict.load import NO_PREDICTOR

    if settings.predictor in (None, NO_PREDICTOR):
        return
    from lengthwise.predict import load_predictor
    from lengthwise.serve.command import model_path

    # A hub's model is not here yet: the engine checks its tokenizer itself.
    here = Path(model_path(model))
    load_predictor(settings.predictor, tokenizer=str(here) if here.is_dir() else None)
