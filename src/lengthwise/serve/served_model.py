"""What is served: a model, or the pace of one; and the probe that listens to it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path

from lengthwise import reference
from lengthwise.emulate.model_folder import model_name
from lengthwise.errors import InputError, missing_extra
from lengthwise.probe.probe_folder import Probe
from lengthwise.simulate.presets import Preset
from lengthwise.vllm.hidden_states import DEFAULT_INTERVAL, ProbeWanted

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
        values = json.loads(config.read_text(encoding="utf-8"))
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
