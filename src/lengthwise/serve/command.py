"""What is served, and the command line with which vLLM's OpenAI server is started.

What is served is a model, or the pace of one; and the probe that listens to it.

Out of all that the command line is put together, and the environment that goes with it.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lengthwise import reference
from lengthwise.emulate.model_folder import cached_model_folder, model_name
from lengthwise.emulate.pace import EMULATE
from lengthwise.errors import InputError, missing_extra
from lengthwise.files import parse_json
from lengthwise.probe.probe_folder import Probe
from lengthwise.serve.flags import flag_name, given_flags, last_value, seconds_of, with_file
from lengthwise.serve.listen import require_free_port
from lengthwise.serve.places import ACTIVE, SEQS, Places, given_places
from lengthwise.settings.file import SERVER
from lengthwise.simulate.presets import Preset
from lengthwise.telemetry.prometheus import ENGINES
from lengthwise.vllm.compat import offloading_connector
from lengthwise.vllm.hidden_states import DEFAULT_INTERVAL, PROBE, WORKER, ProbeWanted

REFERENCE = "reference"  #: the name of the built-in model

#: What suits the built-in model on a small CPU; a flag of the user's replaces each.
REFERENCE_FLAGS: Mapping[str, str | None] = {
    "--served-model-name": REFERENCE,
    "--max-model-len": "2048",
    "--max-num-seqs": "16",
    # The least that the CPU backend takes. Its default, 128, would keep short requests from ever
    # reusing cached KV.
    "--block-size": "32",
    # Processors without bfloat16 instructions take ten times longer for a product in bfloat16.
    "--dtype": "float32",
    "--enforce-eager": None,
}
REFERENCE_ENVIRONMENT: Mapping[str, str] = {"VLLM_CPU_KVCACHE_SPACE": "1"}  # GiB

EXECUTOR = "lengthwise.emulate.Executor"
METRICS = "lengthwise.vllm.Metrics"

#: Names the settings file. In `additional_config`, which is part of the key under which vLLM keeps
#: compiled graphs, its path would compile the same model anew in another folder.
SETTINGS_VARIABLE = "LENGTHWISE_SETTINGS"

#: Flags that Lengthwise sets itself, and what to use instead.
_OWN_FLAGS: Mapping[str, str] = {
    "--model": "name the model as the first argument",
    "--scheduler-cls": "Lengthwise is the scheduler here; use plain vLLM for another one",
    "--uds": "a Unix socket is not supported here; use --host and --port",
}

_TLS_FLAGS = {"--ssl-certfile", "--ssl-keyfile"}

_NOT_WITH_EMULATE: Mapping[str, str] = {
    "--distributed-executor-backend": "emulation is an executor itself",
    "--tensor-parallel-size": "the number of GPUs is part of its name, as in 2xa100:llama-3-8b",
    "--pipeline-parallel-size": "only one stage is emulated",
    "--speculative-config": "no tokens are proposed",
    "--worker-cls": "there is no worker",
}

_NOT_WITH_PROBE: Mapping[str, str] = {
    "--worker-cls": "the probe needs Lengthwise's own worker",
    "--speculative-config": "hidden states of proposed tokens that are rejected cannot be told "
    "apart yet; leave one of the two out",
}


def refuse_model(model: str, preset: Preset) -> None:
    """Raise InputError for another model than the built-in one beside what is emulated."""
    if model != REFERENCE:
        raise InputError(
            f"--emulate {preset.name} names the model already: leave {model} out "
            "(--tokenizer FOLDER takes another tokenizer than the built-in one)"
        )


def emulation_flags(preset: Preset) -> dict[str, str | None]:
    """vLLM's flags for what it would choose itself on that GPU; a flag of the user's replaces each.

    On a CPU it chooses blocks of 128 tokens, and fewer sequences.
    """
    engine = preset.engine
    return {
        "--served-model-name": model_name(preset),
        "--max-model-len": str(preset.model.context),
        "--max-num-seqs": str(engine.slots),
        "--max-num-batched-tokens": str(engine.token_budget),
        "--block-size": str(engine.block_size),
        "--dtype": "bfloat16",
        "--enforce-eager": None,
    }


def probe_of(folder: Path | None, interval: int | None, model: str) -> ProbeWanted | None:
    """What the worker has to be told of a probe; None without one.

    Raises:
        InputError: the probe cannot be read or is plainly for another model.
    """
    if folder is None:
        if interval is not None:
            raise InputError("--interval is the probe's: add --probe DIR")
        return None
    probe = Probe.load(folder)
    config = Path(model_path(model)) / "config.json"
    if config.is_file():
        values = parse_json(config.read_text(encoding="utf-8"))
        # Half a minute before the engine would say so; it checks the weights as well.
        probe.check(
            hidden_size=values.get("hidden_size"), layers_total=values.get("num_hidden_layers")
        )
    layers = tuple(sorted(probe.metadata.layers))
    return ProbeWanted(
        folder=str(folder.absolute()), layers=layers, interval=interval or DEFAULT_INTERVAL
    )


def require_vllm() -> None:
    """Raise InputError where vLLM is absent or of an unsupported version."""
    if importlib.util.find_spec("vllm") is None:
        raise missing_extra("vllm", "cpu")
    from lengthwise.vllm.compat.version import require_supported_version

    require_supported_version()


def model_path(model: str) -> str:
    """What vLLM is given as the model: the built-in model's folder for `reference`."""
    if model == REFERENCE:
        return str(reference.model_path())
    looks_like_a_path = model.startswith((".", "/", "~"))
    path = Path(model).expanduser()
    if looks_like_a_path and not (path / "config.json").is_file():
        raise InputError(
            f"{model} is not a model folder (no config.json there): give a Hugging Face model "
            f"folder, a hub name such as org/name, or {REFERENCE!r} for the built-in model"
        )
    return str(path) if looks_like_a_path else model


def take_additional_config(flags: Sequence[str]) -> tuple[list[str], dict[str, object]]:
    """Split vLLM's `--additional-config JSON` from the other flags."""
    passed_on: list[str] = []
    texts: list[str] = []
    remaining = iter(flags)
    for flag in remaining:
        if not flag.startswith("--") or flag_name(flag) != "--additional-config":
            passed_on.append(flag)
        elif "." in flag.split("=", 1)[0]:  # vLLM would take it instead of what is there beside it
            raise InputError(
                f"{flag.split('=', 1)[0]} is a part of --additional-config: give all of that as "
                "one JSON object"
            )
        elif "=" in flag:
            texts.append(flag.split("=", 1)[1])
        else:
            texts.append(next(remaining, ""))
    if not texts:
        return passed_on, {}
    try:
        additional = parse_json(texts[-1])
    except ValueError as error:
        raise InputError(f"--additional-config is not JSON: {error}") from None
    if not isinstance(additional, dict):
        raise InputError("--additional-config must be a JSON object")
    return passed_on, additional


@dataclass(frozen=True)
class ServerCommand:
    """All that is needed to start one server.

    Attributes:
        arguments: the arguments for vLLM's API server.
        environment: the whole environment of the child process.
        host: the address it listens on.
        port: its TCP port.
        tls: whether it speaks TLS.
        shutdown_timeout_s: for how long it finishes what is open when it is told to end; 0 to cut
            that off at once (vLLM's --shutdown-timeout).
        places: how many requests the worker holds and how many run, where that is known.
        sizes_worker: places for each request that runs, where the child has to ask vLLM how many
            these are, see `sized`; 0 where it has not.
    """

    arguments: list[str]
    environment: dict[str, str]
    host: str
    port: int
    tls: bool = False
    shutdown_timeout_s: float = 0.0
    places: Places | None = None
    sizes_worker: int = 0

    @property
    def url(self) -> str:
        """Where a client on this machine reaches the server."""
        host = "127.0.0.1" if self.host in ("", "0.0.0.0", "::") else self.host
        scheme = "https" if self.tls else "http"
        return (
            f"{scheme}://[{host}]:{self.port}" if ":" in host else f"{scheme}://{host}:{self.port}"
        )


def server_command(
    model: str,
    settings: Path,
    *,
    host: str,
    port: int,
    flags: Sequence[str] = (),
    development_routes: bool = False,
    probe: ProbeWanted | None = None,
    emulate: Preset | None = None,
    engines: Path | None = None,
    more: int = 1,
) -> ServerCommand:
    """Put a server's command line together, and refuse what cannot work before it starts.

    Args:
        model: a folder or hub name as vLLM takes it, or `reference`.
        settings: the settings file that the scheduler watches.
        host: the address to listen on.
        port: the TCP port; it must be free.
        flags: vLLM's own flags, as the user gave them.
        development_routes: serve vLLM's development routes too (a benchmark resets the prefix
            cache between rounds through one). Not for a server that others can reach.
        probe: from `probe_of`, what predicts from hidden states; None for none.
        emulate: the GPU and the model whose pace the server keeps, instead of computing a model;
            `model` is then `reference`, whose tokenizer it takes.
        engines: the folder where engines keep their numbers, which are then on `/metrics` with
            vLLM's own; None for vLLM's alone.
        more: places in the worker for each request that runs; more than one where requests are
            to be paused.

    Raises:
        InputError: vLLM is absent or of an unsupported version, a flag is Lengthwise's own, the
            port is taken, or the model's folder does not exist.
    """
    require_vllm()
    told = with_file(flags)
    given = given_flags(told)
    for flag in given & _OWN_FLAGS.keys():
        raise InputError(f"{flag} cannot be passed on to vLLM: {_OWN_FLAGS[flag]}")
    require_free_port(host, port)
    if emulate is None:
        path = model_path(model)
    else:
        refuse_model(model, emulate)
        path = str(cached_model_folder(emulate))
    arguments = ["--model", path, "--host", host, "--port", str(port)]
    arguments += ["--scheduler-cls", "lengthwise.vllm.Scheduler"]
    passed_on, _ = take_additional_config(flags)
    told, additional = take_additional_config(told)
    if "lengthwise" in additional:
        raise InputError(
            "the key 'lengthwise' of --additional-config is set by Lengthwise itself: "
            "use --settings FILE for a settings file of your own"
        )
    ours: dict[str, object] = {"settings": f"${SETTINGS_VARIABLE}"}
    if probe is not None:
        for flag, instead in _NOT_WITH_PROBE.items():
            if flag in given:
                raise InputError(f"{flag} does not go with --probe: {instead}")
        ours[PROBE] = probe.model_dump(exclude_defaults=True)
        arguments += ["--worker-cls", WORKER]
    defaults: Mapping[str, str | None] = {}
    environment = {**os.environ, SETTINGS_VARIABLE: str(settings)}
    if emulate is not None:
        for flag in given & _NOT_WITH_EMULATE.keys():
            raise InputError(f"{flag} does not go with --emulate: {_NOT_WITH_EMULATE[flag]}")
        if probe is not None:
            raise InputError("there are no hidden states to read with --emulate: leave --probe out")
        ours[EMULATE] = {"preset": emulate.name}
        arguments += ["--distributed-executor-backend", EXECUTOR]
        defaults = emulation_flags(emulate)
    elif model == REFERENCE:
        defaults = REFERENCE_FLAGS
        for name, text in REFERENCE_ENVIRONMENT.items():
            environment.setdefault(name, text)
    seqs, active = (last_value(flag, told) for flag in (SEQS, ACTIVE))
    default = int(defaults[SEQS] or 0) if SEQS in defaults else None
    places = given_places(seqs, active, default, more)
    if more > 1 and places is not None and seqs is None:
        defaults = {**defaults, **places.flags}
    refuse_offloading_without_memory(told)
    additional["lengthwise"] = ours
    arguments += ["--additional-config", json.dumps(additional)]
    for flag, value in defaults.items():
        if not given & {flag, flag.replace("--", "--no-", 1)}:
            arguments += [flag] if value is None else [flag, value]
    if engines is not None:
        arguments += ["--middleware", METRICS]
        environment[ENGINES] = str(engines)
    if development_routes:
        environment["VLLM_SERVER_DEV_MODE"] = "1"
    command = ServerCommand(
        [*arguments, *passed_on],
        environment,
        host,
        port,
        tls=bool(given & _TLS_FLAGS),
        shutdown_timeout_s=seconds_of(last_value("--shutdown-timeout", told)),
        places=places if more > 1 else None,
        sizes_worker=more if more > 1 and seqs is None and places is None else 0,
    )
    environment[SERVER] = command.url  # by which its engines call it
    return command


def refuse_offloading_without_memory(flags: Sequence[str]) -> None:
    """Raise InputError for a connector that offloads KV to host memory, without any."""
    text = last_value("--kv-transfer-config", flags)
    if text is None or last_value("--kv-offloading-size", flags) is not None:
        return
    try:
        wanted = parse_json(text)
    except ValueError:
        return  # vLLM refuses it in its own words
    if isinstance(wanted, dict):
        offloading_connector.refuse_without_memory(
            wanted.get("kv_connector"), wanted.get("kv_connector_extra_config") or {}
        )
