"""Presets: costs that a GPU can have, limits that vLLM sets there, and names that are refused."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from lengthwise.errors import InputError
from lengthwise.simulate.presets import AFFINE, BYTES, DEGREES, GPUS, MODELS, parse_preset, preset

LARGE = {"h100", "h200", "b200"}


def step_s(name: str, prefill: int, decode: int, context: int) -> float:
    """Seconds of a step, the decoding requests with so much context each."""
    work = np.array([[prefill, decode, prefill + decode * context, decode + 1, prefill**2 / 2]])
    return float(parse_preset(name).cost.seconds(work)[0])


def group(gpu: str, count: int) -> str:
    return gpu if count == 1 else f"{count}x{gpu}"


def fits(gpu: str, model: str, count: int) -> bool:
    try:
        return preset(group(gpu, count), model).model is MODELS[model]
    except InputError:
        return False


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("model", MODELS)
def test_every_gpu_serves_every_model_where_it_fits(model: str, gpu: str) -> None:
    degrees = [count for count in DEGREES if fits(gpu, model, count)]
    assert degrees == list(DEGREES)[-len(degrees) :] != []
    for count in degrees:
        chosen = preset(group(gpu, count), model)
        weights, memory = chosen.model.weights * BYTES, GPUS[gpu].memory_gib * 2**30
        held = (chosen.engine.kv_blocks or 0) * 16 * chosen.model.kv_bytes(count)
        assert 0.5 * memory < weights / count + held < memory
        assert chosen.engine.slots == (1024 if gpu in LARGE else 256)
        one, full = step_s(chosen.name, 0, 1, 500), step_s(chosen.name, 0, 64, 500)
        prompt = step_s(chosen.name, 2048, 0, 0)
        read_s = weights / count / GPUS[gpu].bandwidth
        compute_s = 2 * 2048 * chosen.model.layers * chosen.model.layer_weights / GPUS[gpu].peak
        assert 0.8 * read_s < one < full < prompt  # the embedding is in the weights, and not read
        assert compute_s / count < prompt


def test_an_8b_on_an_a100_and_on_an_h100() -> None:
    a100, h100 = preset("a100", "llama-3-8b"), preset("h100", "llama-3-8b")
    assert (a100.derived, h100.derived) == (False, True)
    assert (a100.engine.slots, a100.engine.token_budget) == (256, 2048)
    assert (h100.engine.slots, h100.engine.token_budget) == (1024, 8192)
    assert a100.engine.block_size == 16
    assert a100.model.context == 8192
    assert a100.cost.linear[0] == (1, pytest.approx(32 * 0.303e-3))
    assert a100.cost.kv_s == pytest.approx(131072 / 1.44e12, rel=0.01)
    assert a100.limits(32).kv_blocks == (a100.engine.kv_blocks or 0) // 2
    affine = parse_preset(AFFINE)
    assert len(affine.cost.terms) == 6
    assert affine.engine == a100.engine


def test_layers_of_the_same_shape_are_measured_for_all_their_models() -> None:
    assert not preset("a100", "mistral-7b").derived
    assert not preset("4xh100", "llama-3-70b").derived
    assert "llama-2-70b" in preset("4xh100", "llama-3-70b").sources[0]
    assert preset("4xh200", "llama-3-70b").derived


def test_more_tokens_never_take_less_time() -> None:
    for gpu, count in product(GPUS, DEGREES):
        if fits(gpu, "llama-3-8b", count):
            table = preset(group(gpu, count), "llama-3-8b").cost.terms[6:]
            assert (np.diff(table) >= 0.0).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a101:llama-3-8b", "a100, a10g, a40"),
        ("a100:llama-9", "llama-3-8b"),
        ("a100:llama-3-70b", "such as 2xa100"),
        ("2xl40s:llama-3-70b", "such as 4xl40s"),
        ("3xa100:llama-3-8b", "1, 2, 4 or 8"),
        ("0xa100:llama-3-8b", "1, 2, 4 or 8"),
        ("a100", "a100:llama-3-8b.*h100.*qwen"),
    ],
)
def test_names_that_are_no_preset(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_preset(name)
