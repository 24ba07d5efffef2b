"""Sampling by which an answer depends on its request alone, not on what else is in the batch.

A sampled answer draws a random number for each token. vLLM draws them from one generator for all
requests, or from one for each, which a preemption leaves at another place. Here they come from the
request's seed and the token's place in the answer (the Gumbel-max trick: the token with the largest
logit plus Gumbel noise is a sample), so that an answer is the same under every policy, up to what
the order of additions in a batch of another size changes.

It is a logits processor, vLLM's own interface for this, for requests of temperature 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

SEED: Final = "lengthwise_seed"  #: hint: the request's seed
TEMPERATURE: Final = "lengthwise_temperature"  #: hint: above 0
ANSWER: Final = "lengthwise_answer"  #: hint: the answer's length, and the token that ends it


class SeededSampling(AdapterLogitsProcessor):  # type: ignore[misc]
    """Adds the noise of a request's seed to its logits, and ends answers of a given length."""

    def is_argmax_invariant(self) -> bool:
        """It changes which token is the likeliest."""
        return False

    def new_req_logits_processor(self, params: Any) -> Any:
        """What is done to a request's logits; None for one without our hints."""
        hints = params.extra_args or {}
        if SEED not in hints:
            return None
        seed, temperature = int(hints[SEED]), float(hints[TEMPERATURE])
        tokens, end = hints.get(ANSWER, (None, None))

        def perturb(output_ids: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
            place = len(output_ids)
            if tokens is not None:
                if place + 1 >= tokens:
                    logits.fill_(-torch.inf)
                    logits[end] = 0.0
                    return logits
                logits[end] = -torch.inf
            return logits.div_(temperature).add_(gumbel_noise(seed, place, len(logits)))

        return perturb


def gumbel_noise(seed: int, place: int, size: int) -> torch.Tensor:
    """Standard Gumbel numbers [size], float32, that depend on the arguments alone."""
    # The last word of a counter of 256 bits: streams of different places never meet.
    random = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, place]))
    exponential = random.standard_exponential(size, dtype=np.float32)
    smallest = np.finfo(np.float32).tiny  # 0 is possible
    return torch.from_numpy(-np.log(np.maximum(exponential, smallest)))
