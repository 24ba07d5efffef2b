"""Let a model answer prompts, and keep its hidden states for training a probe.

Real vLLM runs in this process and samples as it does for requests that ask for nothing else: with
the model's own generation settings. Every answer goes on to its own end. Requests are numbered in
the order of the prompts and divided into shards of as many each, so that a run that was stopped
goes on with the first shard that is missing: `ShardFolder` is the folder of hidden states while it
is being filled. Of training answers a random sample of decode states is kept, of validation and
test answers all.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from lengthwise.compare.progress import Progress
from lengthwise.errors import InputError, LengthwiseError
from lengthwise.probe.states import (
    META,
    TENSORS,
    Shard,
    StatesMeta,
    read_meta,
    shard_path,
    write_meta,
    write_shard,
)
from lengthwise.serve.command import (
    REFERENCE,
    REFERENCE_ENVIRONMENT,
    REFERENCE_FLAGS,
    model_path,
    require_vllm,
)
from lengthwise.serve.flags import given_flags, with_file
from lengthwise.vllm.compat.workers import (
    engine_in_process,
    llvmlite_unseen,
    refuse_without_hidden_states,
    stdout_on_stderr,
)
from lengthwise.vllm.hidden_states import COLLECT, STATES_ID, STATES_KEPT, WORKER
from lengthwise.vllm.state_collector import CollectedStates
from lengthwise.workload.dataset import TRAIN, split_of

#: decode states kept of a training answer: as many as TRAIL does, and more where there is room
TRAIN_STATES: Final = (16, 64)
MAX_TOKENS: Final = 1024  #: at which an answer is cut unless told otherwise

_SHARD_BYTES: Final = 256 * 2**20
_SHARD_REQUESTS: Final = (8, 512)  # fewest and most
_AHEAD: Final = 2  # requests given to the engine, per slot
_OWN_FLAGS = ("--model", "--worker-cls", "--additional-config", "--enable-prefix-caching")


@dataclass(frozen=True)
class Answered:
    """One finished request."""

    length: int  #: tokens, the one that ended it counted
    finished: bool  #: by itself
    states: CollectedStates


class ShardFolder:
    """Writes shards as soon as all of their requests are there.

    Args:
        folder: where.
        meta: what is collected.
        sizes: tokens of each prompt, shape [n].
        splits: of each request, shape [n].
        per_shard: requests in each shard but the last.
        expected_bytes: of one shard, until one has been written.

    Attributes:
        requests: in shards that are written.
        finished: of them, those whose answers ended by themselves.
        states: decode states in shards that are written.
        bytes: of the shards that are written.
    """

    def __init__(
        self,
        folder: Path,
        meta: StatesMeta,
        sizes: NDArray[np.int32],
        splits: NDArray[np.int8],
        per_shard: int,
        expected_bytes: float,
    ) -> None:
        self.folder = folder
        self.meta = meta
        self.splits = splits
        self.requests = 0
        self.finished = 0
        self.states = 0
        self.bytes = 0
        self._sizes = sizes
        self._per_shard = per_shard
        self._expected_bytes = expected_bytes
        self._written: set[int] = set()
        self._begun: dict[int, dict[int, Answered]] = {}

    def open(self) -> None:
        """Make the folder, or take over what an interrupted run left there.

        Raises:
            InputError: it holds states of another collection.
            OSError: it cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / META).exists():
            there = read_meta(self.folder).model_copy(update=_progress_of(self.meta))
            if there != self.meta:
                raise self._another()
        elif shard_path(self.folder, 0).exists():
            raise self._another()
        for shard in range(self._count):
            if self._is_written(shard):
                self._written.add(shard)
        self._recount()
        self._write_meta(complete=False)

    def missing(self) -> list[int]:
        """The shards that are still to be written."""
        return [shard for shard in range(self._count) if shard not in self._written]

    def first(self, shard: int) -> int:
        """The number of a shard's first request."""
        return shard * self._per_shard

    def numbers(self, shard: int) -> range:
        """The requests of a shard."""
        first = self.first(shard)
        return range(first, min(first + self._per_shard, len(self._sizes)))

    def start(self, shard: int, max_bytes: float) -> bool:
        """Begin a shard, if the folder will then still be within `max_bytes`.

        Raises:
            InputError: not even one shard fits.
        """
        each = self.bytes / len(self._written) if self._written else self._expected_bytes
        if self.bytes + (len(self._begun) + 1) * each > max_bytes:
            if not self._written and not self._begun:
                raise InputError(
                    f"--max-gib is too small: the first shard alone needs about "
                    f"{each / 2**30:.2f} GiB; give more, or collect fewer layers"
                )
            return False
        self._begun[shard] = {}
        return True

    def add(self, number: int, answered: Answered) -> None:
        """Take one request; its shard is written with the last of them.

        Raises:
            OSError: the shard cannot be written.
        """
        shard = number // self._per_shard
        begun = self._begun[shard]
        begun[number] = answered
        if len(begun) == len(self.numbers(shard)):
            write_shard(self.folder, shard, self._assembled(shard, begun))
            del self._begun[shard]
            self._written.add(shard)
            self._recount()
            self._write_meta(complete=False)

    @property
    def answered(self) -> int:
        """Requests so far, those of unwritten shards included."""
        return self.requests + sum(map(len, self._begun.values()))

    def close(self) -> None:
        """Say that the folder is complete. What comes behind a gap is removed.

        Raises:
            OSError: it cannot be written.
        """
        for shard in range(len(self._written), self._count):
            if shard in self._written:
                shard_path(self.folder, shard).unlink()
        self._written = {shard for shard in self._written if shard < len(self._written)}
        self._recount()
        self._write_meta(complete=True)

    @property
    def _count(self) -> int:
        return -(-len(self._sizes) // self._per_shard)

    def _another(self) -> InputError:
        return InputError(
            f"{self.folder} holds states of another collection (model, layers, prompts, seed or "
            "limits differ): give another folder with --out"
        )

    def _is_written(self, shard: int) -> bool:
        """Whether a shard is there, with the requests that it should have."""
        path = shard_path(self.folder, shard)
        if not path.exists():
            return False
        numbers = self.numbers(shard)
        try:
            with safe_open(path, framework="np") as tensors:
                sizes = tensors.get_tensor(TENSORS["prompt_tokens"])
                splits = tensors.get_tensor(TENSORS["split"])
        except (OSError, SafetensorError):
            return False  # damaged: collected again
        part = slice(numbers.start, numbers.start + len(sizes))
        same = np.array_equal(sizes, self._sizes[part]) and np.array_equal(
            splits, self.splits[part]
        )
        if len(sizes) > len(numbers) or not same:
            raise self._another()
        return len(sizes) == len(numbers)  # a last one of fewer requests is collected again

    def _recount(self) -> None:
        """Bring the totals in line with the shards that are there."""
        self.requests = sum(len(self.numbers(shard)) for shard in self._written)
        self.bytes = self.finished = self.states = 0
        for shard in self._written:
            path = shard_path(self.folder, shard)
            self.bytes += path.stat().st_size
            with safe_open(path, framework="np") as tensors:
                self.finished += int(tensors.get_tensor(TENSORS["finished"]).sum())
                self.states += int(tensors.get_slice(TENSORS["decode_age"]).get_shape()[0])

    def _assembled(self, shard: int, begun: dict[int, Answered]) -> Shard:
        numbers = self.numbers(shard)
        answers = [begun[number] for number in numbers]
        layers, hidden = len(self.meta.layers), self.meta.hidden_size
        nothing = np.full((layers, hidden), np.nan, np.float16)
        rows: list[int] = []
        ages: list[int] = []
        states = [np.empty((0, layers, hidden), np.float16)]
        for row, answer in enumerate(answers):
            for age, state in zip(answer.states.ages, answer.states.states, strict=True):
                if age < answer.length:  # an asynchronous engine computes one more
                    rows.append(row)
                    ages.append(age)
                    states.append(state[None])
        means = [answer.states.prompt_mean for answer in answers]
        lasts = [answer.states.prompt_last for answer in answers]
        return Shard(
            length=np.array([answer.length for answer in answers], np.int32),
            finished=np.array([answer.finished for answer in answers], np.bool_),
            split=self.splits[numbers.start : numbers.stop],
            prompt_tokens=self._sizes[numbers.start : numbers.stop],
            prompt_mean=np.stack([nothing if mean is None else mean for mean in means]),
            prompt_last=np.stack([nothing if last is None else last for last in lasts]),
            decode_request=np.array(rows, np.int32),
            decode_age=np.array(ages, np.int32),
            decode_states=np.concatenate(states),
        )

    def _write_meta(self, complete: bool) -> None:
        update = {"requests": self.requests, "complete": complete}
        self.meta = self.meta.model_copy(update=update)
        write_meta(self.folder, self.meta)


def _progress_of(meta: StatesMeta) -> dict[str, object]:
    """The fields that change while collecting, as they stand in `meta`."""
    return {"requests": meta.requests, "complete": meta.complete}


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
    given = given_flags(with_file(flags))
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
        refuse_without_hidden_states(config, found)
        with llvmlite_unseen():
            return LLMEngine.from_engine_args(engine_args), found
    except (OSError, RuntimeError, ValueError) as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise LengthwiseError(f"vLLM could not start: {words[0]}") from error


def _refuse(message: str) -> None:
    raise InputError(f"vLLM's flags: {message}")


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
    max_bytes: float,
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

    def answer_all(self, max_bytes: float) -> None:
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
        from vllm.sampling_params import RequestOutputKind, SamplingParams

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


def _train_states(meta: StatesMeta, requests: int, max_bytes: float) -> int:
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
