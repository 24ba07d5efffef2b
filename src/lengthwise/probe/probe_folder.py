"""A probe: its networks, bins and constants, and the folder that holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from lengthwise.errors import InputError
from lengthwise.predict.artifact import WeightsFolder
from lengthwise.probe.refine import Filter, new_filter

PROBE: Final = WeightsFolder(
    "lengthwise.probe", 2, "probe", verb="train-probe", again="train the probe again"
)


class Refinement(BaseModel):
    """The filter's constants for one prediction every `interval` tokens."""

    model_config = ConfigDict(frozen=True)

    interval: int = Field(ge=1)
    temper: float = Field(ge=0)
    epsilon: float = Field(ge=0, le=1)
    correction: float = Field(default=0.0, ge=0)  #: the power of the base rates that divides
    stretch: float = Field(default=1.0, ge=0)  #: of the quantiles

    def filter(self, edges: NDArray[np.float64], base_rates: NDArray[np.float64]) -> Filter:
        """The filter with these constants, for bins with these edges and base rates."""
        base = base_rates**self.correction
        return new_filter(edges, self.temper, self.epsilon, base, self.stretch)


class Training(BaseModel):
    """What a probe was trained on."""

    model_config = ConfigDict(frozen=True)

    requests: int
    states: int  #: decode states; the validation and test rows are not in it
    dropped_states: int  #: not finite
    dropped_requests: int  #: whose prompt's states are not finite
    seed: int
    seconds: float
    trained_at: str  #: ISO 8601, UTC


class Metadata(BaseModel):
    """config.json."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    schema_name: str = Field(default=PROBE.schema_name, alias="schema")
    model: str  #: whose states it reads
    model_fingerprint: str
    hidden_size: int = Field(ge=1)
    layers: list[int] = Field(min_length=1)  #: outputs after so many layers, side by side
    layers_total: int = Field(ge=1)
    max_tokens: int = Field(ge=1)  #: at which the answers that it learnt from were cut
    bins: Literal["equal", "geometric"]
    pooling: Literal["mean", "last"]  #: of the prompt's states
    refinement: list[Refinement] = Field(min_length=1)
    training: Training
    metrics: dict[str, Any]  #: what `lengthwise train-probe --json` printed


class Network(NamedTuple):
    """A perceptron with one hidden layer: softmax(relu(x·first + first_bias)·second + …)."""

    first: NDArray[np.float32]  #: [inputs, hidden units]
    first_bias: NDArray[np.float32]  #: [hidden units]
    second: NDArray[np.float32]  #: [hidden units, bins]
    second_bias: NDArray[np.float32]  #: [bins]


class Probe:
    """Reads from a model's hidden states how much of an answer is still to come."""

    def __init__(
        self,
        metadata: Metadata,
        edges: NDArray[np.float64],
        decode: Network,
        prompt: Network,
        base_rates: NDArray[np.float64] | None = None,
    ) -> None:
        """A probe of these parts.

        Args:
            metadata: what it is for and what it was made from.
            edges: of the bins, float64 [k + 1], from 0 to the longest length.
            decode: states of the newest token → bin of what remains.
            prompt: pooled states of the prompt → bin of the whole length.
            base_rates: how common each bin is among what remained at the training states, [k];
                None: all the same.

        Raises:
            InputError: the parts do not fit each other.
        """
        self.metadata = metadata
        self.edges = edges
        self.decode = decode
        self.prompt = prompt
        bins = edges.size - 1
        self.base_rates = np.full(bins, 1 / bins) if base_rates is None else base_rates
        wrong = self._inconsistency()
        if wrong:
            raise InputError(f"the probe is damaged ({wrong}): train it again")
        self._filters: dict[Refinement, Filter] = {}

    def filter(self, interval: int = 1) -> Filter:
        """The constants that fit predictions every `interval` tokens best.

        Those of the nearest interval that was fitted are taken.
        """
        found = min(self.metadata.refinement, key=lambda each: abs(each.interval - interval))
        if found not in self._filters:
            self._filters[found] = found.filter(self.edges, self.base_rates)
        return self._filters[found]

    def check(
        self,
        *,
        model_fingerprint: str | None = None,
        hidden_size: int | None = None,
        layers_total: int | None = None,
    ) -> None:
        """Refuse a model that it was not trained for; what is None is not looked at.

        Raises:
            InputError: another model, width or number of layers.
        """
        own = self.metadata
        for what, served, trained in (
            ("hidden size", hidden_size, own.hidden_size),
            ("number of layers", layers_total, own.layers_total),
            ("fingerprint", model_fingerprint, own.model_fingerprint),
        ):
            if served is not None and served != trained:
                raise InputError(
                    f"the probe was trained for {own.model} ({what} {trained}), the served model's "
                    f"{what} is {served}: collect states of it and train a probe on them"
                )

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a probe and check it.

        Raises:
            InputError: not a probe, damaged, or written by another version.
        """
        metadata = PROBE.read_config(folder, Metadata)
        tensors = PROBE.read_tensors(folder)
        decode, prompt = (
            Network(*(tensors[f"{name}.{part}"] for part in Network._fields))
            for name in ("decode", "prompt")
        )
        try:
            return cls(metadata, tensors["edges"], decode, prompt, tensors["base_rates"])
        except InputError as error:
            raise InputError(f"{folder}: {error}") from None

    def save(self, folder: Path) -> None:
        """Write the folder, over a probe that is there.

        Raises:
            InputError: the folder cannot be written.
        """
        tensors = {"edges": self.edges, "base_rates": self.base_rates}
        for name, network in (("decode", self.decode), ("prompt", self.prompt)):
            tensors |= {f"{name}.{part}": array for part, array in network._asdict().items()}
        arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
        PROBE.write(folder, self.metadata, arrays, probe_card(self.metadata, self.edges.size - 1))

    def _inconsistency(self) -> str | None:
        """What compiled code and matrix products could not survive."""
        edges, inputs = self.edges, len(self.metadata.layers) * self.metadata.hidden_size
        if edges.dtype != np.float64 or edges.ndim != 1 or edges.size < 2:
            return "the bins' edges have another type or shape than they should"
        if edges[0] != 0 or not np.all(np.diff(edges) > 1 - 1e-6) or not np.isfinite(edges[-1]):
            return "the bins' edges do not ascend from 0 by a token or more"
        if any(not 0 <= layer <= self.metadata.layers_total for layer in self.metadata.layers):
            return f"layer out of range 0 to {self.metadata.layers_total}"
        for name, network in (("decode", self.decode), ("prompt", self.prompt)):
            units = network.first_bias.size
            shapes = ((inputs, units), (units,), (units, edges.size - 1), (edges.size - 1,))
            for array, shape in zip(network, shapes, strict=True):
                if array.dtype != np.float32 or array.shape != shape:
                    return (
                        f"the {name} network does not fit {len(self.metadata.layers)} layers of "
                        f"width {self.metadata.hidden_size} and {edges.size - 1} bins"
                    )
                if not np.isfinite(array).all():
                    return f"the {name} network's weights are not finite"
        rates = self.base_rates
        if rates.dtype != np.float64 or rates.shape != (edges.size - 1,):
            return "the bins' base rates have another type or shape than they should"
        if not (np.isfinite(rates).all() and (rates > 0).all()):
            return "a bin's base rate is not above 0"
        return None


def probe_card(metadata: Metadata, bins: int) -> str:
    """A model card in Markdown.

    Args:
        metadata: of the probe.
        bins: how many it has.
    """
    training, metrics = metadata.training, metadata.metrics
    layers = ", ".join(map(str, metadata.layers))
    errors = "\n".join(
        f"| {meaning} | {metrics[name]:.1f} |"
        for name, meaning in (
            ("mae_prompt_only", "the prompt alone, counted down"),
            ("mae_reestimated", "the prompt and the age, estimated again at each token"),
            ("mae_raw", "this probe, each token by itself"),
            ("mae_refined", "this probe, refined from token to token"),
        )
        if name in metrics
    )
    return f"""# Probe of remaining answer length

Reads from the hidden states of {metadata.model} how many tokens of an answer are still to come.
Written by `lengthwise train-probe`; read by `lengthwise serve --probe DIR`.

| | |
|---|---|
| Model | {metadata.model}, fingerprint `{metadata.model_fingerprint[:16]}` |
| States | output after layer {layers} of {metadata.layers_total}, width {metadata.hidden_size} |
| Prompt | {metadata.pooling} of its tokens' states |
| Bins | {bins}, {metadata.bins} |
| Trained on | {training.requests} answers of at most {metadata.max_tokens} tokens, \
{training.states} states; {training.dropped_states} states and {training.dropped_requests} \
requests that were not finite left out |
| Trained at | {training.trained_at}, in {training.seconds:.0f} s, seed {training.seed} |

Mean absolute error of the tokens to come, over every output token of test answers:

| from | tokens |
|---|---|
{errors}

**Use.** For this very model, its system prompts and its sampling settings. Train again when one of
them changes: the errors above are of answers like those it learnt from.

**Contents.** No prompts and no answers are stored.
"""
