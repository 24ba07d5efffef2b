"""How many requests the worker holds beside those that run, so that paused ones keep their places.

`--max-num-seqs` sizes vLLM's worker and `--max-num-active-seqs` says how many run. Where the user
names neither, as many run as would have anyway, and the worker holds twice as many, four times
where waiting requests are looked at. A value that the user gave is never changed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from lengthwise.errors import InputError

SEQS: Final = "--max-num-seqs"
ACTIVE: Final = "--max-num-active-seqs"
MORE: Final = 2  #: places for each request that runs
MORE_TO_LOOK: Final = 4  #: the same where waiting requests are looked at, who keep places too
SIZE: Final = "--size-worker="  #: tells the child to do it, which can ask vLLM; then the places


@dataclass(frozen=True)
class Places:
    """A worker's size.

    Attributes:
        slots: requests that run at once.
        places: requests that it holds.
    """

    slots: int
    places: int

    @property
    def flags(self) -> dict[str, str]:
        """vLLM's."""
        return {SEQS: str(self.places), ACTIVE: str(self.slots)}

    def __str__(self) -> str:
        return (
            f"{self.slots} requests run at once and {self.places - self.slots} more can be paused "
            f"({SEQS} {self.places} {ACTIVE} {self.slots})"
        )

    def cost(self, vocabulary: int) -> str:
        """What the places beyond the slots cost, in words."""
        mebibytes = (self.places - self.slots) * vocabulary * 4 / 2**20
        return (
            f"vLLM's second model runner takes {mebibytes:,.0f} MiB more of the GPU for that, a "
            f"table of its penalties; {SEQS} {self.slots} does without both"
        )


def given_places(
    seqs: str | None, active: str | None, default: int | None, more: int = MORE
) -> Places | None:
    """The size of a worker whose user or whose preset says something of it.

    Args:
        seqs: what the user gave as --max-num-seqs, None for nothing.
        active: what the user gave as --max-num-active-seqs.
        default: how many run at once where the user says nothing; None where vLLM decides.
        more: places for each that runs.

    Returns:
        The size; None where nothing can be said of it, or nobody can be paused.

    Raises:
        InputError: more are to run than the worker holds.
    """
    try:
        held = None if seqs is None else int(seqs)
        slots = None if active is None else int(active)
    except ValueError:
        return None  # vLLM refuses it in its own words
    if held is not None and slots is not None:
        if slots > held:
            raise InputError(
                f"{ACTIVE} {slots} is more than {SEQS} {held}: the worker holds all that run and "
                f"those that are paused; take, for example, {SEQS} {MORE * slots}"
            )
        return Places(slots, held) if slots < held else None
    if held is not None or default is None:
        return None
    slots = default if slots is None else slots
    return Places(slots, max(more * slots, default))


class ServedModel(NamedTuple):
    """What the arguments of `vllm serve` make of a server, as far as a worker's size goes."""

    slots: int  #: requests that run at once where the user names no number
    active: int | None  #: the number that the user named of those that run
    vocabulary: int


def served_model(arguments: list[str]) -> ServedModel | str:
    """Read the arguments of `vllm serve`; a reason why its worker should be left as it is.

    The model's configuration is read, and fetched where it is not on this machine yet.
    """
    from lengthwise.vllm.compat import offloading_connector
    from lengthwise.vllm.compat.serving import default_slots, engine_arguments

    engine = engine_arguments(arguments)
    if engine.max_num_seqs is not None:  # in a file that --config names
        return f"{SEQS} {engine.max_num_seqs} may all run at once"
    if engine.speculative_config is not None:
        return "not with speculative decoding"
    if engine.pipeline_parallel_size > 1:
        return "not with pipeline parallelism"
    if engine.enable_chunked_prefill is False:
        return "not without chunked prefill"
    transfer = engine.kv_transfer_config
    if transfer is not None and transfer.kv_connector not in (None, offloading_connector.CONNECTOR):
        return "not with a KV connector that sends KV elsewhere"
    model = engine.create_model_config()
    if model.runner_type != "generate" or model.is_encoder_decoder:
        return "only models that generate from a prompt alone pause"
    if model.has_inner_state or model.is_hybrid or model.is_attention_free:
        return (
            "this model keeps a state for each request, and with a larger --max-num-seqs it might "
            "not start"
        )
    slots, vocabulary = default_slots(engine), int(model.get_vocab_size())
    return ServedModel(slots, engine.max_num_active_seqs, vocabulary)


def sized(arguments: Sequence[str], more: int = MORE) -> list[str]:
    """The server's arguments with the size of its worker; the same where vLLM or the model forbids.

    Called in the server's process: it takes vLLM itself to say how many would run, and what the
    model is.
    """
    found = served_model(list(arguments))
    if not isinstance(found, ServedModel):
        _say(f"nobody is paused: {found}")
        return list(arguments)
    active = None if found.active is None else str(found.active)
    places = given_places(None, active, found.slots, more)
    assert places is not None
    _say(f"{places}; {places.cost(found.vocabulary)}")
    return [*arguments, *with_values(places.flags)]


def with_values(flags: Mapping[str, str]) -> list[str]:
    """Flags and their values as arguments."""
    return [text for flag in flags.items() for text in flag]


def _say(line: str) -> None:
    print(f"lengthwise: {line}", file=sys.stderr, flush=True)
