"""A model that computes in virtual time: the same answers whatever the schedule, and a probe."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

import torch

from lengthwise.cli.main import app
from lengthwise.emulate.driver import Asked, Served, open_virtual_engine
from lengthwise.emulate.forward_engine import (
    BLOCK_SIZE,
    ComputedModel,
    gumbel_noise,
    open_forward_engine,
)
from lengthwise.errors import InputError, LengthwiseError
from lengthwise.measure.results import read_results
from lengthwise.predict.load import PREDICTION
from lengthwise.predict.tokenizer import load_tokenizer
from lengthwise.reference import model_path
from lengthwise.reference.prompts import generate
from lengthwise.simulate.engine import EngineSettings
from lengthwise.simulate.presets import preset
from lengthwise.vllm.hidden_states import ProbeWanted
from lengthwise.vllm.probe_worker import model_fingerprint
from tests.support.made_up_probe import made_up_probe

COST = preset("a100", "llama-3-8b").cost
ENGINE = EngineSettings(slots=4, token_budget=64, block_size=BLOCK_SIZE, kv_blocks=100, lag=1)
TRAIL = {"policy": "trail", "parameters": {"c": 1.0}, "predictor": "foretold",
         "preemption": "greedy", "max_overtakes": None, "tau_floor": None}  # fmt: skip
REQUESTS = 16
LONGEST_ANSWER = 60


@pytest.fixture(scope="module")
def fingerprint() -> str:
    """Of the built-in model, whose norms have the same names in transformers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    config = SimpleNamespace(hf_text_config=AutoConfig.from_pretrained(model_path()))
    return model_fingerprint(SimpleNamespace(model_config=config, get_model=lambda: model))


def probe(fingerprint: str, folder: Path, seed: int = 0) -> Path:
    """A probe for the built-in model that knows nothing."""
    made_up_probe(hidden=128, layers=(3,), layers_total=5, fingerprint=fingerprint, seed=seed).save(
        folder
    )
    return folder


def asked(given: Sequence[int] | None = None) -> list[Asked]:
    """Requests that queue; of given lengths, or as the model ends them."""
    texts = [prompt.text for prompt in generate(REQUESTS, 0)]
    return [
        Asked(
            ids,
            None if given is None else given[place],
            arrival_s=0.001 * place,
            hints={PREDICTION: [float(place), 20.0, 10.0, 20.0, 30.0]},
            seed=place,
            most_tokens=LONGEST_ANSWER,
        )
        for place, ids in enumerate(load_tokenizer("reference").encode_chat_many(texts))
    ]


def serve(
    requests: Sequence[Asked],
    settings: dict[str, Any] | None = None,
    wanted: ProbeWanted | None = None,
) -> tuple[list[Served], Any]:
    """Serve requests on an engine of their own; also its counters."""
    model = ComputedModel(model_path(), "float32", wanted)
    with open_forward_engine(model, COST, ENGINE, longest=512, settings=settings) as engine:
        return engine.run(requests), engine.scheduler.counters


@pytest.mark.engine
def test_a_probes_refined_predictions_decide(fingerprint: str, tmp_path: Path) -> None:
    """The same requests under the same policy: another probe, another schedule."""

    def under(seed: int) -> tuple[list[Served], Any]:
        folder = probe(fingerprint, tmp_path / str(seed), seed)
        return serve(asked(), TRAIL, ProbeWanted(folder=str(folder), layers=(3,), interval=2))

    one, counters = under(1)
    other, _ = under(2)
    without, unprobed = serve(asked(), TRAIL)
    assert counters.probe_predictions > 2 * REQUESTS
    assert counters.probe_failures == counters.probe_dropped == unprobed.probe_predictions == 0
    times = [[each.finish_s for each in served] for served in (one, other, without)]
    assert times[0] != times[1] != times[2] != times[0]
    # Preempted, computed in chunks and batched otherwise, they say the same.
    lengths = [[len(each.token_s) for each in served] for served in (one, other, without)]
    assert lengths[0] == lengths[1] == lengths[2]
    assert sum(each.preemptions for each in one) > 0
    assert {each.finished for each in one} == {"stop", "length"}


@pytest.mark.engine
@pytest.mark.slow
def test_recorded_steps_give_the_same_schedule() -> None:
    """A real engine on the wall's clock, and virtual time that is told what each step took."""
    timed = TRAIL | {"service_time": True, "max_wait_s": 0.05}
    policies = {
        "trail": timed | {"parameters": {"c": "auto"}},
        "hrrn": timed | {"policy": "hrrn", "parameters": {}},
    }
    requests = asked([1 + 3 * (place * 7 % REQUESTS) for place in range(REQUESTS)])
    limits = replace(ENGINE, lag=0)
    model = ComputedModel(model_path(), "float32")
    measured: dict[str, tuple[list[Served], list[float]]] = {}
    with open_forward_engine(model, time.monotonic, limits, longest=512) as engine:
        for name, settings in policies.items():
            engine.use(settings)
            measured[name] = engine.run(requests), engine.durations
    with open_virtual_engine(COST, limits, longest=512) as virtual:
        for name, settings in policies.items():
            real, durations = measured[name]
            assert {each.finished for each in real} == {"stop"}
            assert min(durations) > 0.0
            virtual.use(settings)
            again = virtual.run(requests, durations=durations)
            for one, other in zip(real, again, strict=True):
                assert other.token_s == pytest.approx(one.token_s, abs=1e-9)
                assert (other.sent_s, other.preemptions, other.cached_tokens) == (
                    one.sent_s, one.preemptions, one.cached_tokens
                )  # fmt: skip
            virtual.use({"policy": "oracle"})
            otherwise = virtual.run(requests, durations=[*durations, *durations])
            assert [each.token_s for each in otherwise] != [each.token_s for each in real]
        with pytest.raises(LengthwiseError, match="more steps than were recorded"):
            virtual.run(requests, durations=durations[:9])


@pytest.mark.engine
def test_answers_of_given_lengths_end_there() -> None:
    given = [1 + 3 * place for place in range(REQUESTS)]
    served, _ = serve(asked(given), {"policy": "oracle"})
    assert [len(each.token_s) for each in served] == given
    assert {each.finished for each in served} == {"stop"}  # which no scheduler can foresee


@pytest.mark.engine
@pytest.mark.slow
def test_bench_gives_the_same_rows_again(fingerprint: str, tmp_path: Path) -> None:
    """A policy's row, too, is the same alone and in company."""
    folder = probe(fingerprint, tmp_path / "probe")

    def bench(policies: str, out: Path) -> dict[str, dict[str, Any]]:
        app(
            [
                "bench", "reference", "--engine", "virtual", "--forward", "--policy", policies,
                "--predictor", "noisy-oracle:0.5", "--probe", str(folder), "--load", "1.2",
                "--requests", "24", "--max-num-seqs", "4", "--out", str(out),
            ],
            standalone_mode=False,
        )  # fmt: skip
        rows = json.loads((out / "results.json").read_text())
        return {row["policy"]: row for row in rows}

    one = bench("fcfs,trail", tmp_path / "one")
    other = bench("trail", tmp_path / "other")
    compared = {name for name in one["trail"] if name.startswith(("factor_", "gap_"))}
    assert other["trail"] == {**one["trail"], **dict.fromkeys(compared)}
    assert [one["trail"][name] for name in ("completed", "failed", "engine")] == [24, 0, "virtual"]
    assert one["trail"]["mean_e2el_ms"] != one["fcfs"]["mean_e2el_ms"]
    run = read_results(tmp_path / "one").run
    assert "Virtual, forward pass computed; same machine only." in run.engine_note
    page = (tmp_path / "one" / "report.html").read_text()
    assert "There is no forward pass" not in page
    assert "Exact on one machine" in page


def test_noise_makes_a_sample_of_the_likeliest_token() -> None:
    """The Gumbel-max trick: frequencies are those of the softmax, and nothing repeats."""
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    draws = 4000
    tokens = [
        int((logits + gumbel_noise(seed, place, 4)).argmax())
        for seed in range(draws // 40)
        for place in range(40)
    ]
    expected = torch.softmax(logits, 0).numpy() * draws
    counts = np.bincount(tokens, minlength=4)
    assert ((counts - expected) ** 2 / expected).sum() < 16.3  # chi², 3 degrees, 0.1 %
    assert torch.equal(gumbel_noise(5, 7, 9), gumbel_noise(5, 7, 9))
    different = {tuple(gumbel_noise(seed, place, 8).tolist()) for seed, place in
                 ((0, 0), (0, 1), (1, 0), (0, 2))}  # fmt: skip
    assert len({value for noise in different for value in noise}) == 32
    assert all(math.isfinite(value) for noise in different for value in noise)


def large_model(folder: Path) -> Path:
    """A model's folder with weights of 100 TB, none of which are written."""
    folder.mkdir()
    (folder / "config.json").write_text((model_path() / "config.json").read_text())
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(100 * 2**40 // 10)
    return folder


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--engine", "live"], "--forward is for virtual time: add --engine virtual"),
        (["--model", "./nowhere"], "nowhere is not a model folder"),
        (["--model", "org/model"], "computes a model, and there is none in 'org/model'"),
        (["--model", "llama-3-8b"], "for its step times alone add --gpu a100:llama-3-8b"),
        (["--model", "LARGE"], "weights of .* GiB of this machine's memory are free"),
        (["--gpu", "a1000"], "unknown GPU 'a1000'"),
        (["--gpu", "a100:llama"], "unknown model 'llama'"),
        (["--interval", "2"], "--interval is the probe's"),
        (["--probe", "nowhere"], "nowhere"),
        (["--kv-blocks", "1000000000"], "KV of .* tokens takes .* give fewer --kv-blocks"),
        (["--kv-blocks", "2"], "needs .* KV blocks"),
    ],
)
def test_what_cannot_compute_is_one_line(options: list[str], words: str, tmp_path: Path) -> None:
    options = [str(large_model(tmp_path / "large")) if word == "LARGE" else word
               for word in options]  # fmt: skip
    with pytest.raises(InputError, match=words) as refused:
        app(
            [
                "bench", "reference", "--engine", "virtual", "--forward", "--policy", "fcfs",
                "--requests", "4", "--out", str(tmp_path / "out"), *options,
            ],
            standalone_mode=False,
        )  # fmt: skip
    assert "\n" not in str(refused.value)


def test_a_probe_needs_a_forward_pass(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--probe reads hidden states.*add --forward"):
        app(
            ["bench", "reference", "--engine", "virtual", "--gpu", "a100", "--probe", "p"],
            standalone_mode=False,
        )
