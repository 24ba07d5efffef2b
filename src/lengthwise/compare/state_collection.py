"""Let a model answer prompts, and keep its hidden states for training a probe.

Real vLLM runs in this process and samples as it does for requests that ask for nothing else: with
the model's own generation settings. Every answer goes on to its own end. Requests are numbered in
the order of the prompts and divided into shards of as many each, so that a run that was stopped
goes on with the first shard that is missing. Of training answers a random sample of decode states
is kept, of validation and test answers all.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from lengthwise.compare.progress import Progress
from lengthwise.compare.state_shards import Answered, ShardFolder
from lengthwise.errors import InputError, LengthwiseError
from lengthwise.probe.states import StatesMeta
from lengthwise.vllm.hidden_states import STATES_ID, STATES_KEPT
from lengthwise.workload.split import TRAIN, split_of

#: decode states kept of a training answer: as many as TRAIL does, and more where there is room
TRAIN_STATES: Final = (16, 64)
MAX_TOKENS: Final = 1024  #: at which an answer is cut unless told otherwise

_SHARD_BYTES: Final = 256 * 2**20
_SHARD_REQUESTS: Final = (8, 512)  # fewest and most
_AHEAD: Final = 2  # requests given to the engine, per slot


@dataclass(frozen=True)
class Collected:
    """What a run has left.

    Attributes:
        requests: in the folder.
        asked: requests that were asked for.
        finished: those whose answers ended by themselves.
        states: decode states in the folder.
        bytes: of the folder.
        too_long: prompts left out because they do not fit the model's context.
        dropped_states: not finite, in this run.
        seconds: that this run took, the engine's start left out.
    """

    requests: int
    asked: int
    finished: int
    states: int
    bytes: int
    too_long: int
    dropped_states: int
    seconds: float


def collect(
    engine: Any,
    meta: StatesMeta,
    prompts: Sequence[str],
    encoded: Sequence[Sequence[int]],
    folder: Path,
    *,
    max_bytes: int,
    progress: Progress,
) -> Collected:
    """Answer all prompts and write their states.

    Args:
        engine: from `open_engine`.
        meta: of the folder to write; its `requests` and `complete` are filled in.
        prompts: their texts, which decide what is training and what is test.
        encoded: the prompts' tokens.
        folder: to write to; what an interrupted run of the same command left is kept.
        max_bytes: no shard is begun with which the folder would get larger.
        progress: told about the answers.

    Raises:
        InputError: the folder holds states of another collection, or the limit is too small.
        LengthwiseError: the folder cannot be written, or the run was stopped; the message says
            what is kept.
    """
    context: int = engine.model_config.max_model_len
    fitting = [place for place, ids in enumerate(encoded) if len(ids) < context]
    if not fitting:
        raise InputError(f"no prompt fits the model's context of {context:,} tokens")
    sizes = np.array([len(encoded[place]) for place in fitting], np.int32)
    splits = np.array([split_of(prompts[place]) for place in fitting], np.int8)
    sampled = _train_states(meta, len(fitting), max_bytes)
    each = _request_bytes(meta, sampled)
    fewest, most = _SHARD_REQUESTS
    per_shard = int(min(max(_SHARD_BYTES / each, fewest), most))
    shards = ShardFolder(folder, meta, sizes, splits, per_shard, per_shard * each)
    try:
        shards.open()
        began = time.monotonic()
        progress.stage("collecting", len(fitting))
        run = _Run(engine, shards, [encoded[place] for place in fitting], sampled, progress)
        run.answer_all(max_bytes)
        shards.close()
    except KeyboardInterrupt:
        raise LengthwiseError(
            f"stopped: {shards.requests:,} of {len(fitting):,} requests are kept in {folder}; the "
            "same command goes on from there"
        ) from None
    except OSError as error:
        raise LengthwiseError(
            f"cannot write to {folder} ({error.strerror or error}): {shards.requests:,} of "
            f"{len(fitting):,} requests are kept; make room, and the same command goes on"
        ) from None
    return Collected(
        requests=shards.requests,
        asked=len(encoded),
        finished=shards.finished,
        states=shards.states,
        bytes=shards.bytes,
        too_long=len(encoded) - len(fitting),
        dropped_states=run.dropped,
        seconds=time.monotonic() - began,
    )


class _Run:
    """The engine's loop: requests in, answers and states out, shards written as they are whole."""

    def __init__(
        self,
        engine: Any,
        shards: ShardFolder,
        encoded: Sequence[Sequence[int]],
        train_states: int,
        progress: Progress,
    ) -> None:
        self._engine = engine
        self._shards = shards
        self._encoded = encoded
        self._train_states = train_states
        self._sampling: dict[str, Any] = engine.model_config.get_diff_sampling_param()
        self._progress = progress
        self.dropped = 0

    def answer_all(self, max_bytes: int) -> None:
        """Answer every request of the shards that are missing, in order."""
        missing = self._shards.missing()
        slots: int = self._engine.vllm_config.scheduler_config.max_num_seqs
        waiting: list[int] = []
        under_way = 0
        self._progress.advance(self._shards.requests)
        while missing or waiting or under_way:
            while under_way < _AHEAD * slots and (waiting or missing):
                if not waiting:
                    shard = missing.pop(0)
                    if not self._shards.start(shard, max_bytes):
                        self._progress.note(
                            f"--max-gib is reached: stopping at {self._shards.first(shard):,} "
                            "requests"
                        )
                        missing.clear()
                        break
                    waiting = list(self._shards.numbers(shard))[::-1]
                self._add(waiting.pop())
                under_way += 1
            if under_way:
                under_way -= self._step()

    def _add(self, number: int) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        meta = self._shards.meta
        hints: dict[str, Any] = {STATES_ID: str(number)}
        if self._shards.splits[number] == TRAIN:
            hints[STATES_KEPT] = self._train_states
        ours = {
            "max_tokens": meta.max_tokens,
            "extra_args": hints,
            "detokenize": False,
            "output_kind": RequestOutputKind.FINAL_ONLY,
        }
        parameters = SamplingParams(**(self._sampling | ours))
        prompt = {"prompt_token_ids": list(self._encoded[number])}
        self._engine.add_request(str(number), prompt, parameters)

    def _step(self) -> int:
        """One step of the engine. Returns how many requests ended."""
        ended = [output for output in self._engine.step() if output.finished]
        if not ended:
            return 0
        names = [output.request_id for output in ended]
        kept = self._engine.collective_rpc("lengthwise_take_states", args=(names,))
        states = next(each for each in kept if each is not None)
        for output, each in zip(ended, states, strict=True):
            answer = output.outputs[0]
            self.dropped += each.dropped
            self._shards.add(
                int(output.request_id),
                Answered(len(answer.token_ids), answer.finish_reason == "stop", each),
            )
        self._progress.advance(self._shards.answered)
        return len(ended)


def _train_states(meta: StatesMeta, requests: int, max_bytes: int) -> int:
    """How many decode states of a training answer to keep, so that half of the room is enough."""
    fewest, most = TRAIN_STATES
    beside = _request_bytes(meta, 0)
    each = _request_bytes(meta, 1) - beside
    room = (max_bytes / 2 / max(requests, 1) - beside) / each
    return int(min(max(room, fewest), most))


def _request_bytes(meta: StatesMeta, train_states: int) -> float:
    """About how much is stored of a request: eight in ten are for training."""
    states = 2 + 0.8 * train_states + 0.2 * meta.max_tokens / 4
    return 2 * len(meta.layers) * meta.hidden_size * states
