"""The executor in engine cores of this process: planning ahead, and KV from one to another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from lengthwise.emulate.link import BANDWIDTH, Transfers, link_of
from lengthwise.emulate.model_folder import model_folder
from lengthwise.errors import InputError
from lengthwise.serve.command import EXECUTOR
from lengthwise.simulate.presets import parse_preset

PRESET = parse_preset("a100:llama-3-8b")
BLOCK_BYTES = 16 * 2 * 32 * 8 * 128 * 2  # tokens, K and V, layers, heads, head size, bfloat16
MakeCore = Callable[..., Any]


@pytest.fixture
def make_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeCore]:
    """Makes engine cores of the emulated model, as `vllm serve` would by the executor's name."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.executor import Executor

    with ExitStack() as cores:

        def make(settings: dict[str, Any] | None = None, **more: Any) -> Any:
            ours: dict[str, Any] = {"emulate": {"preset": PRESET.name}}
            if settings is not None:
                ours["settings"] = settings
            config = EngineArgs(
                model=str(model_folder(PRESET.model, tmp_path / "model")),
                distributed_executor_backend=EXECUTOR,
                block_size=16,
                enforce_eager=True,
                additional_config={"lengthwise": ours},
                **more,
            ).create_engine_config()
            core = EngineCore(config, Executor.get_class(config), log_stats=False)
            cores.callback(core.shutdown)
            return core

        yield make


def test_steps_are_planned_ahead_as_on_a_gpu(make_core: MakeCore) -> None:
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    core = make_core()
    assert core.batch_queue_size == 2
    assert core.batch_queue is not None
    assert isinstance(core.scheduler, AsyncScheduler)
    assert core.scheduler.block_size == 16
    assert core.vllm_config.cache_config.num_gpu_blocks - 1 == PRESET.engine.kv_blocks


def serve(core: Any, name: str, prompt: list[int], tokens: int, transfer: dict[str, Any]) -> Any:
    """Serve one request; its tokens and what the engine tells of its KV."""
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine import EngineCoreRequest

    request, wave = core.preprocess_add_request(
        EngineCoreRequest(
            request_id=name,
            prompt_token_ids=prompt,
            mm_features=None,
            sampling_params=SamplingParams(
                max_tokens=tokens, ignore_eos=True, extra_args={"kv_transfer_params": transfer}
            ),
            pooling_params=None,
            arrival_time=time.time(),
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
        )
    )
    core.add_request(request, wave)
    got: list[int] = []
    told = None
    while core.scheduler.has_requests() or core.batch_queue:
        for output in (core.step_fn()[0] or {}).values():
            for each in output.outputs:
                got += each.new_token_ids
                told = each.kv_transfer_params or told
    return got, told


def test_kv_goes_from_one_engine_to_another_over_the_link(make_core: MakeCore) -> None:
    gbit_per_s = 2.0
    link = {
        "kv_connector": "NixlConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {BANDWIDTH: gbit_per_s},
    }
    prefill, decode = (make_core(kv_transfer_config=dict(link)) for _ in range(2))
    prompt = list(range(4, 4 + 512))
    got, told = serve(prefill, "p", prompt, 1, {"do_remote_decode": True})
    assert len(got) == 1
    assert told["do_remote_prefill"]
    pool = prefill.scheduler.kv_cache_manager.block_pool
    assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1  # sent, and freed

    started = time.monotonic()
    got, _ = serve(decode, "d", prompt, 5, told)
    assert len(got) == 5
    assert time.monotonic() - started >= 32 * BLOCK_BYTES * 8 / (gbit_per_s * 1e9)


def test_transfers_share_a_link_each_way() -> None:
    from vllm.distributed.kv_transfer.kv_connector.v1.nixl.metadata import NixlConnectorMetadata

    def plan(*receive: tuple[str, int], send: tuple[str, ...] = ()) -> Any:
        metadata = NixlConnectorMetadata()
        for name, blocks in receive:
            told = {
                "remote_block_ids": [],
                "remote_engine_id": "e",
                "remote_request_id": "r",
                "remote_host": "h",
                "remote_port": 1,
            }
            metadata.add_new_req_to_recv(name, [list(range(blocks))], told, awaiting_kvs=blocks > 0)
        metadata.reqs_to_send = dict.fromkeys(send, 0.0)
        return metadata

    transfers = Transfers(bytes_per_s=100.0, block_bytes=10)  # 0.1 s a block
    transfers.take(plan(("a", 10), ("b", 5), ("held already", 0)), 1.0, {})
    transfers.take(plan(send=("c",)), 1.0, {"c": 20})
    assert transfers.done(1.9) is None
    first = transfers.done(2.01)
    assert (first.finished_recving, first.finished_sending) == ({"a"}, set())
    transfers.take(plan(("d", 10)), 10.0, {})  # the link was idle meanwhile
    both = transfers.done(10.9)
    assert (both.finished_recving, both.finished_sending) == ({"b"}, {"c"})
    assert transfers.done(11.01).finished_recving == {"d"}
    assert transfers.done(99.0) is None


@pytest.mark.parametrize(
    ("connector", "bandwidth", "message"),
    [
        ("MooncakeConnector", 1.0, "NixlConnector or OffloadingConnector does, not as Mooncake"),
        ("NixlConnector", 0, "must be a number above 0"),
        ("NixlConnector", "fast", "must be a number above 0"),
    ],
)
def test_another_link_is_refused(connector: str, bandwidth: object, message: str) -> None:
    from types import SimpleNamespace

    from vllm.config import KVTransferConfig

    link = KVTransferConfig(
        kv_connector=connector,
        kv_role="kv_both",
        kv_connector_extra_config={BANDWIDTH: bandwidth},
    )
    with pytest.raises(InputError, match=message):
        link_of(SimpleNamespace(kv_transfer_config=link), 1, virtual=False)


def test_who_waits_for_its_kv_counts_once_it_has_left_the_queue(make_core: MakeCore) -> None:
    """Which is when its KV is asked for, long before it runs."""
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine import EngineCoreRequest

    link = {
        "kv_connector": "NixlConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {BANDWIDTH: 2.0},
    }
    settings = {"policy": "sjf", "predictor": "declared", "max_overtakes": 3, "tau_floor": None}
    decode = make_core(
        kv_transfer_config=link,
        max_num_seqs=1,
        scheduler_cls="lengthwise.vllm.Scheduler",
        settings=settings,
    )
    scheduler = decode.scheduler

    def send(name: str, tokens: int) -> None:
        blocks = 4
        transfer = {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": [list(range(1, 1 + blocks))],
            "remote_engine_id": "prefill",
            "remote_request_id": name,
            "remote_host": "nowhere",
            "remote_port": 1,
            "tp_size": 1,
            "remote_num_tokens": 16 * blocks,
        }
        hints = {"lengthwise_expected_tokens": tokens, "kv_transfer_params": transfer}
        request, wave = decode.preprocess_add_request(
            EngineCoreRequest(
                request_id=name,
                prompt_token_ids=list(range(4, 4 + 16 * blocks)),
                mm_features=None,
                sampling_params=SamplingParams(max_tokens=3, ignore_eos=True, extra_args=hints),
                pooling_params=None,
                arrival_time=time.time(),
                lora_request=None,
                cache_salt=None,
                data_parallel_rank=None,
            )
        )
        decode.add_request(request, wave)

    for name, tokens in (("runs", 1), ("long", 900), *((f"short{n}", 5) for n in range(6))):
        send(name, tokens)
    first = scheduler.schedule  # one plan asks for the KV of all, and runs none of them
    left: list[int] = []

    def noted(*arguments: Any, **more: Any) -> Any:
        output = first(*arguments, **more)
        left.append(scheduler._planner.facts.admissions)
        return output

    scheduler.schedule = noted
    while scheduler.has_requests() or decode.batch_queue:
        decode.step_fn()
    assert left[0] > 0  # guards and blend count whoever leaves the queue
    assert left[-1] == 8
    assert scheduler.counters.admissions == 8  # and these ran
