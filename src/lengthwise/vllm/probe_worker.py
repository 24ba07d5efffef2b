"""vLLM's worker whose model runner shows the hidden states of chosen layers.

`--worker-cls lengthwise.vllm.Worker` names it. Where `additional_config` wants nothing of the
states, it is vLLM's own worker in all but name.

Models that support EAGLE-3 can return them through the compiled graph, without hooks: that is what
is switched on here, with our layers. A mixin over whichever runner vLLM has built (CPU or GPU,
first or second generation); where nothing is wanted of the states, it is not used at all.
"""

from __future__ import annotations

import hashlib
import json
import logging
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch

from lengthwise.errors import InputError
from lengthwise.vllm.compat import version, workers
from lengthwise.vllm.hidden_states import (
    CollectionWanted,
    Pending,
    ProbeOutput,
    ProbeWanted,
    require_layers,
    wanted_states,
)

logger = logging.getLogger("vllm.lengthwise")

_ARCHITECTURE: Final = (
    "architectures",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "vocab_size",
)


class Reader(Protocol):
    """Reads the states of every step; see `StepStates` for the arguments."""

    def begin(self, scheduled: Any) -> bool:
        """Take note of a step's plan, and say whether its states are to be read."""

    def read(self, request_ids: Any, starts: Any, states: Any) -> None:
        """Read a step's states."""

    def ready(self) -> list[Pending]:
        """Predictions to send along with this step's output."""


class HiddenStatesMixin:
    """The part of the model runner that is ours; `runner_class` puts it before vLLM's."""

    # Set by `want`, since vLLM's own constructor has run when an object becomes one of this class.
    _wanted: ProbeWanted | CollectionWanted
    _reader: Reader | None
    _failed: str | None

    def want(self, wanted: ProbeWanted | CollectionWanted) -> None:
        """Say what is wanted of the states; before the model is loaded."""
        self._wanted = wanted
        self._reader = None
        self._failed = None

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load the model, ask it for its states and make ready who reads them.

        Raises:
            InputError: the model cannot return them, or the probe is for another model.
        """
        super().load_model(*args, **kwargs)  # type: ignore[misc]
        workers.return_hidden_states(self, self._wanted.layers)
        if workers.speaks_for_engine():
            self._reader = self._make_reader()

    def execute_model(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the model, and look at the states of the step."""
        output = super().execute_model(scheduler_output, *args, **kwargs)  # type: ignore[misc]
        if self._reader is not None and not kwargs.get("dummy_run"):
            try:
                self._look(scheduler_output)
            except Exception as error:
                if isinstance(self._wanted, CollectionWanted):
                    raise
                # Serving goes on with the prompt predictor.
                self._give_up(f"{type(error).__name__}: {error}")
        return output

    def sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        """Sample, and send the predictions that are ready along."""
        output = super().sample_tokens(*args, **kwargs)  # type: ignore[misc]
        if self._failed is not None:
            failed, self._failed = self._failed, None
            return workers.send_along(output, lambda: [ProbeOutput(failed=failed)])
        pending = self._reader.ready() if self._reader is not None else []
        if not pending:
            return output
        return workers.send_along(output, lambda: [each.result() for each in pending])

    def take_states(self, names: list[str]) -> Any:
        """What was collected of finished requests; None where another rank collects."""
        from lengthwise.vllm.state_collector import StateCollector

        return self._reader.take(names) if isinstance(self._reader, StateCollector) else None

    def _make_reader(self) -> Reader:
        runner: Any = self
        if isinstance(self._wanted, CollectionWanted):
            from lengthwise.vllm.state_collector import StateCollector

            return StateCollector(self._wanted.seed)
        from lengthwise.probe.probe_folder import Probe
        from lengthwise.vllm.step_states import ProbeReader

        probe = Probe.load(Path(self._wanted.folder))
        require_layers(probe, self._wanted)
        probe.check(
            model_fingerprint=model_fingerprint(runner),
            hidden_size=runner.model_config.get_hidden_size(),
            layers_total=runner.model_config.get_total_num_hidden_layers(),
        )
        wanted = self._wanted
        return ProbeReader(probe, runner.device, wanted.interval, wanted.asynchronous)

    def _look(self, scheduled: Any) -> None:
        assert self._reader is not None
        if not self._reader.begin(scheduled):
            return
        states = workers.hidden_states(self)
        if states is None:
            return
        if len(states) != len(self._wanted.layers):
            raise InputError(
                f"the model returned {len(states)} of {len(self._wanted.layers)} layers: "
                "choose layers further from its end"
            )
        with torch.inference_mode():
            self._reader.read(*workers.batch_rows(self), states)

    def _give_up(self, reason: str) -> None:
        logger.error("Lengthwise: the probe is off, predictions stay what they are: %s", reason)
        self._reader = None
        self._failed = reason


def model_fingerprint(runner: Any) -> str:
    """Tells models apart, whatever the type of their numbers and however they are sharded.

    SHA-256 over the architecture and over the weights of all norms, which every rank holds whole,
    rounded to bfloat16. Fine-tuned models whose norms were frozen look alike.
    """
    config = runner.model_config.hf_text_config
    digest = hashlib.sha256()
    architecture = {name: getattr(config, name, None) for name in _ARCHITECTURE}
    digest.update(json.dumps(architecture, sort_keys=True, default=str).encode())
    for name, weight in sorted(runner.get_model().named_parameters()):
        if weight.ndim == 1 and "norm" in name and name.endswith("weight"):
            digest.update(name.encode())
            rounded = weight.detach().to(torch.bfloat16).float().cpu().numpy()
            digest.update(rounded.tobytes())
    return digest.hexdigest()


@cache
def runner_class(base: type) -> type:
    """The runner over one of vLLM's."""
    return type(f"Lengthwise{base.__name__}", (HiddenStatesMixin, base), {})


class ProbeWorkerMixin:
    """The part of the worker that is ours; `worker_class` puts it before vLLM's."""

    if TYPE_CHECKING:
        vllm_config: Any
        model_runner: Any

    def init_device(self) -> None:
        """Have vLLM build its model runner, and make it show hidden states where they are wanted.

        Raises:
            InputError: this engine cannot show them.
        """
        version.require_supported_version()
        wanted = wanted_states(self.vllm_config.additional_config)
        if wanted is not None:
            workers.refuse_without_hidden_states(self.vllm_config, wanted.layers)
        super().init_device()  # type: ignore[misc]
        if wanted is not None:
            workers.check_runner(self.model_runner)
            # The runner exists now, of the kind that vLLM chose for this platform; giving it our
            # class leaves that choice, and how it is built, to vLLM.
            chosen: type = type(self.model_runner)
            self.model_runner.__class__ = runner_class(chosen)
            self.model_runner.want(wanted)

    def lengthwise_take_states(self, names: list[str]) -> Any:
        """What was collected of finished requests, for `collective_rpc`."""
        return self.model_runner.take_states(names)

    def lengthwise_fingerprint(self) -> str:
        """The model's fingerprint, for `collective_rpc`."""
        return model_fingerprint(self.model_runner)


@cache
def worker_class() -> type:
    """The worker over the one that vLLM has for this platform."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from vllm.v1.worker.cpu_worker import CPUWorker

        base: type = CPUWorker
    else:
        from vllm.v1.worker.gpu_worker import Worker

        base = Worker
    return type(f"Lengthwise{base.__name__}", (ProbeWorkerMixin, base), {})
