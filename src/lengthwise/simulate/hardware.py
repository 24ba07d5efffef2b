"""GPUs by their data sheets, and models by their published config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

BYTES: Final = 2  #: of a number in bfloat16: weights, activations and KV


@dataclass(frozen=True)
class Gpu:
    """What a GPU can do.

    Attributes:
        memory_gib: GiB, as the driver reports them.
        bandwidth: of that memory, bytes/s.
        peak: of dense bfloat16 matrix products, operations/s.
        link: to its neighbours, bytes/s in one direction: NVLink where it has one, else PCIe.
        slots: vLLM's default for --max-num-seqs there.
        token_budget: vLLM's default for --max-num-batched-tokens in its server.
    """

    memory_gib: float
    bandwidth: float
    peak: float
    link: float
    slots: int = 256
    token_budget: int = 2048

    @property
    def ridge(self) -> float:
        """Operations for each byte read, above which computing takes longer than reading."""
        return self.peak / self.bandwidth


@dataclass(frozen=True)
class Model:
    """The shape of a dense decoder with gated MLP and grouped-query attention."""

    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    context: int
    tied: bool = False  #: whether the output head is the embedding

    @property
    def layer_shape(self) -> tuple[int, ...]:
        """What the cost of a layer depends on."""
        return (
            self.hidden_size,
            self.intermediate_size,
            self.heads,
            self.kv_heads,
            self.head_size,
        )

    @property
    def layer_weights(self) -> int:
        """Weights of a layer's matrices."""
        attention = 2 * (self.heads + self.kv_heads) * self.head_size * self.hidden_size
        return attention + 3 * self.hidden_size * self.intermediate_size

    @property
    def head_weights(self) -> int:
        """Weights of the output head; the embedding has as many."""
        return self.vocabulary * self.hidden_size

    @property
    def weights(self) -> int:
        """All weights but norms and biases, which are less than a thousandth."""
        return self.layers * self.layer_weights + (1 if self.tied else 2) * self.head_weights

    def kv_bytes(self, tensor_parallel: int = 1) -> int:
        """Bytes of KV of one token on each GPU; a GPU holds at least one KV head."""
        heads = -(-self.kv_heads // tensor_parallel)
        return 2 * self.layers * heads * self.head_size * BYTES


#: Slots and token budget as vLLM 0.32 chooses them by memory and name (vllm/engine/arg_utils.py).
GPUS: Final = {
    "a10g": Gpu(22.1, 0.600e12, 70e12, 32e9),
    "a40": Gpu(44.4, 0.696e12, 150e12, 56e9),
    "a100": Gpu(79.2, 2.04e12, 312e12, 300e9),
    "b200": Gpu(178.4, 8.00e12, 2250e12, 900e9, 1024, 16_384),
    "h100": Gpu(79.2, 3.35e12, 989e12, 450e9, 1024, 8192),
    "h200": Gpu(139.8, 4.80e12, 989e12, 450e9, 1024, 8192),
    "l40s": Gpu(44.4, 0.864e12, 362e12, 32e9),
}

MODELS: Final = {
    "llama-2-7b": Model(32, 4096, 11008, 32, 32, 128, 32_000, 4096),
    "llama-2-70b": Model(80, 8192, 28672, 64, 8, 128, 32_000, 4096),
    "llama-3-8b": Model(32, 4096, 14336, 32, 8, 128, 128_256, 8192),
    "llama-3-70b": Model(80, 8192, 28672, 64, 8, 128, 128_256, 8192),
    "mistral-7b": Model(32, 4096, 14336, 32, 8, 128, 32_768, 32_768),
    "qwen2.5-7b": Model(28, 3584, 18944, 28, 4, 128, 152_064, 32_768),
    "qwen2.5-32b": Model(64, 5120, 27648, 40, 8, 128, 152_064, 32_768),
}
