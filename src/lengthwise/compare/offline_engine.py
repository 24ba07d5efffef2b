"""vLLM in this process, for work that needs its worker at hand: no server, no other process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

from lengthwise.errors import InputError, LengthwiseError
from lengthwise.serve.command import flag_name
from lengthwise.serve.served_model import (
    REFERENCE,
    REFERENCE_ENVIRONMENT,
    REFERENCE_FLAGS,
    model_path,
    require_vllm,
)
from lengthwise.vllm.compat import workers
from lengthwise.vllm.compat.in_process import engine_in_process, llvmlite_unseen, stdout_on_stderr
from lengthwise.vllm.hidden_states import COLLECT, WORKER

_OWN_FLAGS = ("--model", "--worker-cls", "--additional-config", "--enable-prefix-caching")


@contextlib.contextmanager
def open_engine(
    model: str, layers: Sequence[int] | None, *, seed: int, flags: Sequence[str] = ()
) -> Iterator[tuple[Any, list[int]]]:
    """An engine that collects hidden states; what vLLM prints goes to stderr.

    The prefix cache is off, so that the states of every prompt are computed.

    Args:
        model: a folder or hub name as vLLM takes it, or `reference`.
        layers: whose outputs to collect; None for all.
        seed: of the answers and of the choice of states.
        flags: vLLM's own.

    Returns:
        vLLM's LLMEngine, and the layers.

    Raises:
        InputError: the engine cannot be started as asked, or cannot show these states.
        LengthwiseError: vLLM failed; the message has its own words.
    """
    require_vllm()
    given = {flag_name(flag) for flag in flags if flag.startswith("--")}
    for flag in given.intersection(_OWN_FLAGS):
        raise InputError(f"{flag} cannot be passed on to vLLM here: Lengthwise sets it itself")
    path = model_path(model)
    engine_in_process()
    arguments = ["--model", path, "--worker-cls", WORKER, "--no-enable-prefix-caching"]
    # One seed for the engine: with one for each request vLLM 0.32 fails on a CPU as soon as a
    # prompt is computed in chunks.
    arguments += ["--disable-log-stats", "--seed", str(seed)]
    if model == REFERENCE:
        for name, value in REFERENCE_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        for flag, text in REFERENCE_FLAGS.items():
            if not given & {flag, flag.replace("--", "--no-", 1)}:
                arguments += [flag] if text is None else [flag, text]
    with stdout_on_stderr():
        engine, found = _start([*arguments, *flags], layers, seed)
        try:
            yield engine, found
        finally:
            engine.engine_core.shutdown()


def _start(
    arguments: Sequence[str], layers: Sequence[int] | None, seed: int
) -> tuple[Any, list[int]]:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.engine.llm_engine import LLMEngine

    parser: Any = EngineArgs.add_cli_args(FlexibleArgumentParser())
    parser.error = _refuse
    engine_args = EngineArgs.from_cli_args(parser.parse_args(list(arguments)))
    try:
        total = engine_args.create_model_config().get_total_num_hidden_layers()
        found = list(range(total + 1)) if layers is None else sorted(set(layers))
        engine_args.additional_config = {"lengthwise": {COLLECT: {"layers": found, "seed": seed}}}
        config = engine_args.create_engine_config()
        workers.refuse_without_hidden_states(config, found)
        with llvmlite_unseen():
            return LLMEngine.from_engine_args(engine_args), found
    except (OSError, RuntimeError, ValueError) as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise LengthwiseError(f"vLLM could not start: {words[0]}") from error


def _refuse(message: str) -> None:
    raise InputError(f"vLLM's flags: {message}")
