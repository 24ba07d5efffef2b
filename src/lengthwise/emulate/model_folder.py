"""A folder that vLLM takes for a model: the real model's shape, our own tokenizer, no weights.

    python -m lengthwise.emulate.model_folder a100:llama-3-8b DIR

The executor loads nothing, so nothing more is needed. The tokenizer is the built-in model's, since
those of real models are not ours to ship; it makes about three times as many tokens of a text.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Final

from lengthwise.errors import InputError
from lengthwise.files import replaced
from lengthwise.reference import END, PAD, SPECIAL_TOKENS, model_path
from lengthwise.simulate.presets import Model, Preset, parse_preset

_COPIED: Final = ("tokenizer.json", "chat_template.jinja")
_END_TOKEN: Final = SPECIAL_TOKENS.index(END)
_PAD_TOKEN: Final = SPECIAL_TOKENS.index(PAD)


def model_folder(shape: Model, folder: Path) -> Path:
    """Write the folder, or bring one up to date; several processes may do so at once.

    Raises:
        InputError: it cannot be written.
    """
    source = model_path()
    tokenizer = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    texts = {name: (source / name).read_text(encoding="utf-8") for name in _COPIED}
    texts["config.json"] = _as_json(model_config(shape))
    texts["generation_config.json"] = _as_json(
        {"eos_token_id": _END_TOKEN, "pad_token_id": _PAD_TOKEN}
    )
    # vLLM takes the least of this and the model's own for its context.
    texts["tokenizer_config.json"] = _as_json(tokenizer | {"model_max_length": shape.context})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            with replaced(folder / name) as part:
                part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}") from error
    return folder


def model_config(shape: Model) -> dict[str, object]:
    """The config.json of a Llama of this shape, under Hugging Face's names."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": shape.context,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": None,
        "eos_token_id": _END_TOKEN,
        "pad_token_id": _PAD_TOKEN,
    }


def model_name(preset: Preset) -> str:
    """What a server of the preset calls its model: `llama-3-8b` for `a100:llama-3-8b`."""
    return preset.name.rpartition(":")[2]


def cached_model_folder(preset: Preset) -> Path:
    """The folder of a preset's model in the user's cache (XDG Base Directory Specification).

    Raises:
        InputError: it cannot be written.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    cache = Path(base) if base else Path.home() / ".cache"
    return model_folder(preset.model, cache / "lengthwise" / "emulated" / model_name(preset))


def _as_json(values: dict[str, object]) -> str:
    return json.dumps(values, indent=2) + "\n"


def main() -> None:
    """Write the folder of a preset's model."""
    if len(sys.argv) != 3:
        sys.exit("usage: python -m lengthwise.emulate.model_folder GPU:MODEL DIR")
    try:
        print(model_folder(parse_preset(sys.argv[1]).model, Path(sys.argv[2])))
    except InputError as error:
        print(f"lengthwise: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
