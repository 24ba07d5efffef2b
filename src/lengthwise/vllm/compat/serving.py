"""vLLM's own command, `vllm serve`, and what it makes of its arguments."""

from __future__ import annotations

from typing import Any


def serve(arguments: list[str]) -> None:
    """Be `vllm serve`, by vLLM's own command without its entry point: that of the CPU build looks
    for the metadata of a package by another name."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.launchers.cli_args import validate_parsed_serve_args
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args

    cli_env_setup()
    parsed = _parser().parse_args(arguments)
    configure_logging_from_args(parsed)
    validate_parsed_serve_args(parsed)
    ServeSubcommand.cmd(parsed)


def engine_arguments(arguments: list[str]) -> Any:
    """What `vllm serve` makes of its arguments: its AsyncEngineArgs, whose fields are its flags."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    return AsyncEngineArgs.from_cli_args(_parser().parse_args(arguments))


def default_slots(engine: Any) -> int:
    """Requests that run at once where the user names no number.

    Args:
        engine: what `engine_arguments` gave.
    """
    from vllm.usage.usage_lib import UsageContext

    world = engine.pipeline_parallel_size * engine.tensor_parallel_size
    slots = int(engine.get_batch_defaults(world)[1][UsageContext.OPENAI_API_SERVER])
    if engine.performance_mode == "throughput":
        slots *= 2
    if engine.max_num_batched_tokens is not None:
        slots = min(slots, engine.max_num_batched_tokens)
    return slots


def given_arguments(arguments: list[str]) -> dict[str, Any]:
    """The arguments of `vllm serve` by name, as its parser reads them; only those given."""
    from argparse import SUPPRESS

    parser = _parser()
    for action in parser._actions:
        action.default = SUPPRESS
    given: dict[str, Any] = vars(parser.parse_args(arguments))
    return given


def _parser() -> Any:
    """What reads the arguments of `vllm serve`."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    return make_arg_parser(FlexibleArgumentParser())


def runs_on_cpu() -> bool:
    """Whether vLLM's platform is the CPU."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())
