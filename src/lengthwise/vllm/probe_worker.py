"""vLLM's worker with a model runner that shows hidden states.

`--worker-cls lengthwise.vllm.Worker` names it. Where `additional_config` wants nothing of the
states, it is vLLM's own worker in all but name.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from lengthwise.probe.hidden_states import wanted_states
from lengthwise.vllm.compat import version, workers
from lengthwise.vllm.probe_runner import model_fingerprint, runner_class


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
