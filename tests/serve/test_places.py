"""The worker's places for paused requests: sized where nobody did, and what they cost."""

from __future__ import annotations

import importlib.util
import json
from itertools import pairwise
from pathlib import Path

import pytest

from lengthwise.errors import InputError
from lengthwise.serve.command import REFERENCE, ServerCommand, server_command
from lengthwise.serve.listen import free_port
from lengthwise.serve.places import Places, given_places, sized
from lengthwise.settings import Settings, parse_spec

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"
)

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "vocab_size": 2**18,
    "dtype": "float32",
}
MAMBA = {
    "architectures": ["MambaForCausalLM"],
    "model_type": "mamba",
    "hidden_size": 64,
    "state_size": 8,
    "num_hidden_layers": 1,
    "vocab_size": 1024,
    "dtype": "float32",
}


def command(*flags: str, more: int = 2, model: str = REFERENCE) -> ServerCommand:
    return server_command(
        model,
        Path("/state/settings.json"),
        host="127.0.0.1",
        port=free_port(),
        flags=flags,
        more=more,
    )


def values(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Those of --max-num-seqs and of --max-num-active-seqs."""
    flags = "--max-num-seqs", "--max-num-active-seqs"
    seqs, active = ([after for name, after in pairwise(arguments) if name == f] for f in flags)
    return seqs, active


def test_as_many_run_as_would_have_and_the_worker_holds_twice_as_many() -> None:
    built = command()
    assert values(built.arguments) == (["32"], ["16"])
    assert "16 requests run at once and 16 more can be paused" in str(built.places)
    assert values(command(more=1).arguments) == (["16"], [])
    assert values(command("--max-num-active-seqs", "24").arguments) == (["48"], ["24"])
    assert values(command(more=4).arguments) == (["64"], ["16"]), "looks take places too"


def test_what_the_user_gave_is_never_changed() -> None:
    given = command("--max-num-seqs", "64", "--max-num-active-seqs", "16")
    assert values(given.arguments) == (["64"], ["16"])
    assert given.places == Places(16, 64)
    alone = command("--max-num-seqs=64")
    assert values(alone.arguments) == ([], [])
    assert alone.places is None
    assert not alone.sizes_worker
    even = command("--max-num-seqs", "16", "--max-num-active-seqs", "16")
    assert even.places is None


def test_more_that_run_than_the_worker_holds_are_refused_in_one_line() -> None:
    with pytest.raises(InputError, match="--max-num-active-seqs 32 is more than --max-num-seqs 16"):
        command("--max-num-seqs", "16", "--max-num-active-seqs=32")
    assert given_places("many", "32", 16) is None, "vLLM refuses it itself"


def test_of_another_model_vllm_itself_is_asked(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    model = str(tmp_path)
    built = command(model=model)
    assert built.sizes_worker == 2
    assert values(built.arguments) == ([], [])
    assert not command("--max_num_seqs", "64", model=model).sizes_worker
    assert not command(model=model, more=1).sizes_worker


def model_of(folder: Path, config: dict[str, object]) -> list[str]:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return ["--model", str(folder), "--skip-tokenizer-init", "--port", "1"]


def test_the_child_sizes_the_worker_and_says_what_it_costs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = model_of(tmp_path / "llama", LLAMA)
    # As many as vLLM's CPU build runs, and a table of 2 ** 18 words of 4 bytes for each place more.
    assert values(sized(plain)) == (["256"], ["128"])
    assert "takes 128 MiB more of the GPU" in capsys.readouterr().err
    given = [*plain, "--max-num-active-seqs", "100"]
    assert values(sized(given)) == (["200"], ["100", "100"])
    link = ["--kv-transfer-config", '{"kv_connector": "NixlConnector", "kv_role": "kv_both"}']
    assert sized([*plain, *link]) == [*plain, *link]
    assert "nobody is paused: not with a KV connector" in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_with_a_state_for_each_request_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = model_of(tmp_path / "mamba", MAMBA)
    assert sized(arguments) == arguments
    assert "keeps a state for each request" in capsys.readouterr().err


def test_offloading_without_host_memory_is_refused_before_the_start() -> None:
    link = '{"kv_connector": "OffloadingConnector", "kv_role": "kv_both"}'
    with pytest.raises(InputError, match="no host memory to offload to"):
        command("--kv-transfer-config", link)
    assert command("--kv-transfer-config", link, "--kv-offloading-size", "4").arguments


def test_the_default_guard_is_a_lead_where_requests_are_paused() -> None:
    def bounds(spec: str) -> tuple[float | None, float | None]:
        found = parse_spec(spec, Settings(predictor="oracle")).bounds_for(16)
        return found["max_overtakes"], found["max_lead"]

    assert bounds("srpt") == (16, None)
    assert bounds("srpt:pausing=auto") == (None, 75.0)
    assert bounds("srpt:pausing=auto;max_overtakes=slots") == (16, None), "the old one by its name"
    assert bounds("srpt:pausing=auto;max_overtakes=off") == (None, None)
    assert bounds("srpt:pausing=auto;max_lead=30") == (None, 30.0)
    assert bounds("sjf:pausing=auto") == (16, None), "it pauses nobody"
    assert bounds("srpt:max_lead=auto") == (16, 110.0)
