"""The probe's networks in torch: as they are served, and how one is trained.

A `ProbeNetwork` is for the worker, beside the model that it listens to.

A `Checkpoint` is the progress of one training on disk: weights, optimiser and the best weights so
far. A training goes on from it after an interruption.

A network is trained by cross-entropy on the bin of a length. The recipe is TRAIL's (arXiv
2410.01035, appendix; the authors' per_layer_classification.py): one hidden layer of 512 units,
AdamW with learning rate 0.01 and weight decay 0.01, batches of 32, the rate falling to 0 along a
cosine over 30 epochs. Ours on top: inputs are standardised, since the scale of hidden states
differs a hundredfold between models and layers; examples may count for more than others; where
there are many, batches are larger, which takes less time and was no worse on validation answers;
and the weights kept are those of the epoch with the lowest validation loss. The standardisation is
folded into the weights.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lengthwise.errors import InputError
from lengthwise.files import parse_json, replaced
from lengthwise.probe.probe_folder import Network

_BATCH: Final = 32
_LARGEST_BATCH: Final = 512
_BATCHES: Final = 200  #: an epoch, where the batch may be chosen
_AT_ONCE: Final = 4_096  #: rows whose loss or probabilities are computed together
_PROMPTS_AT_ONCE: Final = 64  #: the same, where each is a whole prompt


class ProbeNetwork(torch.nn.Module):  # type: ignore[misc]
    """States → probabilities of the bins. Its weights are buffers: nothing here is trained."""

    def __init__(self, network: Network) -> None:
        """Take over the weights of `Probe.decode` or `Probe.prompt`, in float32."""
        super().__init__()
        for name, array in network._asdict().items():
            self.register_buffer(name, torch.from_numpy(array.copy()), persistent=False)

    def forward(self, states: Any) -> Any:
        """What the bins' probabilities are.

        Args:
            states: [n, layers · hidden], any float type, on the device of the weights.

        Returns:
            float32 [n, bins]. A row that is not finite gives NaN.
        """
        with torch.inference_mode():
            hidden = torch.addmm(self.first_bias, states.float(), self.first).relu_()
            return torch.addmm(self.second_bias, hidden, self.second).softmax(1)


class Checkpoint:
    """The progress of a training, written after each epoch, whole or not at all."""

    def __init__(self, path: Path, key: str, model: Any, optimiser: Any) -> None:
        """Follow a training.

        Args:
            path: the file; need not be there.
            key: what the training depends on; a file with another key is not used.
            model: a torch module.
            optimiser: of its parameters.
        """
        self._path, self._key, self._model, self._optimiser = path, key, model, optimiser
        self._best_loss = math.inf
        self.best: dict[str, Any] = {}  #: the weights of the epoch with the lowest loss

    def resume(self) -> int:
        """Take up what is on disk; returns the epoch to go on with."""
        try:
            with safe_open(self._path, framework="pt") as saved:
                header = parse_json(saved.metadata()["training"])
                tensors = {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return 0  # there is none, or none that can be read
        if header["key"] != self._key:
            return 0
        self._model.load_state_dict(_part(tensors, "now."))
        self.best, self._best_loss = _part(tensors, "best."), header["best_loss"]
        state = self._optimiser.state_dict()
        for name, tensor in _part(tensors, "optimiser.").items():
            parameter, _, moment = name.partition(".")
            state["state"].setdefault(int(parameter), {})[moment] = tensor
        self._optimiser.load_state_dict(state)
        return int(header["epochs"])

    def end_epoch(self, epoch: int, loss: float) -> None:
        """Keep the weights if they are the best so far, and write everything down.

        Raises:
            InputError: the file cannot be written.
        """
        now = {
            name: tensor.detach().cpu().clone() for name, tensor in self._model.state_dict().items()
        }
        if loss < self._best_loss or not self.best:
            self._best_loss, self.best = loss, now
        tensors = {f"now.{name}": tensor for name, tensor in now.items()}
        # Copies: safetensors refuses one tensor under two names.
        tensors |= {f"best.{name}": tensor.clone() for name, tensor in self.best.items()}
        for parameter, state in self._optimiser.state_dict()["state"].items():
            for moment, tensor in state.items():
                tensors[f"optimiser.{parameter}.{moment}"] = tensor.cpu().clone()
        header = {"key": self._key, "epochs": epoch + 1, "best_loss": self._best_loss}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with replaced(self._path) as part:
                save_file(tensors, part, metadata={"training": json.dumps(header)})
        except (OSError, SafetensorError) as error:
            raise InputError(f"cannot write {self._path}: {error}") from None


def _part(tensors: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The tensors whose name begins with a prefix, without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


class Recipe(NamedTuple):
    """How a network is trained."""

    hidden: int = 512
    epochs: int = 30
    batch: int | None = None  #: examples; None: an epoch of 200 batches of 32 to 512
    learning_rate: float = 0.01
    weight_decay: float = 0.01

    def batch_of(self, examples: int) -> int:
        """The batch for so many examples to learn from."""
        if self.batch is not None:
            return self.batch
        return min(max(examples // _BATCHES, _BATCH), _LARGEST_BATCH)


class Examples(NamedTuple):
    """What a network learns from."""

    states: NDArray[np.float16]  #: [rows, inputs]
    targets: NDArray[np.int64]  #: [examples], the right bins
    train: NDArray[np.int64]  #: the examples to learn from
    valid: NDArray[np.int64]  #: the examples that say when it is best
    #: [examples], how much each counts; None: all the same
    weights: NDArray[np.float32] | None = None
    #: [examples + 1] where an example is many rows, to be pooled by attention; None: one row each
    starts: NDArray[np.int64] | None = None


class Fitted(NamedTuple):
    """A trained network."""

    network: Network
    query: NDArray[np.float32] | None  #: of attention pooling, [inputs]


def fit_network(
    examples: Examples,
    bins: int,
    recipe: Recipe,
    *,
    seed: int,
    checkpoint: Path,
    progress: Callable[[float], None],
) -> Fitted:
    """Train a network, or finish one.

    The state after each epoch is kept in `checkpoint`, so that the same call finishes what was
    interrupted; it comes to the same weights as if it had not been. A checkpoint of other examples
    or another recipe is written over.

    Args:
        examples: finite states and bins.
        bins: how many there are.
        recipe: how to train.
        seed: of the first weights and of the order of examples.
        checkpoint: a file.
        progress: called with the part that is done, 0 to 1.
    """
    device = _device()
    reader = _Reader(examples, device)
    torch.manual_seed(seed)
    model = _Model(examples.states.shape[1], bins, recipe, examples.starts is not None).to(device)
    model.standardise(examples)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    kept = Checkpoint(checkpoint, _key(examples, bins, recipe, seed), model, optimiser)
    targets = torch.from_numpy(examples.targets).to(device)
    weights = torch.ones_like(targets, dtype=torch.float32)
    if examples.weights is not None:
        mean = examples.weights[examples.train].mean()
        weights = torch.from_numpy(examples.weights / mean).to(device)
    batch = recipe.batch_of(examples.train.size)
    for epoch in range(kept.resume(), recipe.epochs):
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * (1 + math.cos(math.pi * epoch / recipe.epochs)) / 2
        # A generator for each epoch, so that a resumed run draws what the whole one would have.
        order = np.random.default_rng((seed, epoch)).permutation(examples.train)
        for first in range(0, order.size, batch):
            chosen = order[first : first + batch]
            losses = torch.nn.functional.cross_entropy(
                model(*reader(chosen)), targets[chosen], reduction="none"
            )
            loss = (losses * weights[chosen]).mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        kept.end_epoch(epoch, _loss(model, reader, targets, examples.valid))
        progress((epoch + 1) / recipe.epochs)
    model.load_state_dict(kept.best)
    fitted: Fitted = model.folded()
    return fitted


def probabilities(network: Network, states: NDArray[np.float16]) -> NDArray[np.float32]:
    """What a trained network says of states [rows, inputs]: float32 [rows, bins]."""
    device = _device()
    module = ProbeNetwork(network).to(device)
    found = np.empty((states.shape[0], network.second_bias.size), dtype=np.float32)
    for first in range(0, states.shape[0], _AT_ONCE):
        part = torch.from_numpy(states[first : first + _AT_ONCE]).to(device)
        found[first : first + _AT_ONCE] = module(part).cpu().numpy()
    return found


def attention_pooled(
    states: NDArray[np.float16], starts: NDArray[np.int64], query: NDArray[np.float32]
) -> NDArray[np.float16]:
    """The mean of each prompt's states, weighted by softmax(states · query).

    Args:
        states: [tokens, inputs].
        starts: [prompts + 1], where the tokens of each prompt begin.
        query: [inputs].

    Returns:
        [prompts, inputs].
    """
    pooled = np.empty((starts.size - 1, states.shape[1]), dtype=np.float16)
    for prompt in range(starts.size - 1):
        own = states[starts[prompt] : starts[prompt + 1]].astype(np.float32)
        scores = own @ query
        weights = np.exp(scores - scores.max())
        pooled[prompt] = weights @ own / weights.sum()
    return pooled


def _device() -> Any:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class _Reader:
    """Takes examples by their numbers: [n, inputs], or padded [n, longest, inputs] with a mask."""

    def __init__(self, examples: Examples, device: Any) -> None:
        self._states = torch.from_numpy(np.ascontiguousarray(examples.states)).to(device)
        self._starts = examples.starts

    def __call__(self, chosen: NDArray[np.int64]) -> tuple[Any, ...]:
        if self._starts is None:
            return (self._states[chosen].float(),)
        first, size = self._starts[chosen], np.diff(self._starts)[chosen]
        places = np.arange(size.max())
        inside = places < size[:, None]
        rows = np.where(inside, first[:, None] + places, 0)
        return self._states[rows].float(), torch.from_numpy(inside).to(self._states.device)


class _Model(torch.nn.Module):  # type: ignore[misc]
    """Standardise, pool where there are many rows, one hidden layer."""

    def __init__(self, inputs: int, bins: int, recipe: Recipe, attention: bool) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))
        self.first = torch.nn.Linear(inputs, recipe.hidden)
        self.second = torch.nn.Linear(recipe.hidden, bins)
        # Zero: every token counts the same, so training starts from the mean.
        self.query = torch.nn.Parameter(torch.zeros(inputs)) if attention else None

    def standardise(self, examples: Examples) -> None:
        """Learn mean and spread of the training rows."""
        rows = examples.train
        if examples.starts is not None:
            bounds = zip(examples.starts[rows], examples.starts[rows + 1], strict=True)
            rows = np.concatenate([np.arange(first, last) for first, last in bounds])
        total = np.zeros(examples.states.shape[1])
        squares = np.zeros_like(total)
        for part in np.array_split(rows, max(1, rows.size // _AT_ONCE)):
            own = examples.states[part].astype(np.float64)
            total += own.sum(axis=0)
            squares += (own**2).sum(axis=0)
        mean = total / rows.size
        scale = np.sqrt(np.maximum(squares / rows.size - mean**2, 0))
        self.mean.copy_(torch.from_numpy(mean))
        # A unit that never changes tells nothing, and must not be divided by zero.
        self.scale.copy_(torch.from_numpy(np.where(scale > 1e-6 * np.abs(mean), scale, np.inf)))

    def forward(self, states: Any, inside: Any = None) -> Any:
        """Scores of the bins, [n, bins]."""
        states = (states - self.mean) / self.scale
        if self.query is not None:
            scores = (states @ self.query).masked_fill(~inside, -math.inf)
            states = (scores.softmax(1).unsqueeze(1) @ states).squeeze(1)
        return self.second(torch.relu(self.first(states)))

    def folded(self) -> Fitted:
        """The same for inputs that are not standardised."""
        weight, bias = self.first.weight / self.scale, self.first.bias

        def plain(tensor: Any) -> NDArray[np.float32]:
            array: NDArray[np.float32] = tensor.detach().cpu().float().contiguous().numpy()
            return array

        network = Network(
            first=plain(weight.T),
            first_bias=plain(bias - weight @ self.mean),
            second=plain(self.second.weight.T),
            second_bias=plain(self.second.bias),
        )
        # The mean's share of the score is the same for every token, and softmax does not see it.
        return Fitted(network, None if self.query is None else plain(self.query / self.scale))


def _loss(model: _Model, reader: _Reader, targets: Any, rows: NDArray[np.int64]) -> float:
    """Mean cross-entropy over some examples, nats."""
    total = 0.0
    size = _AT_ONCE if model.query is None else _PROMPTS_AT_ONCE
    with torch.no_grad():
        for first in range(0, rows.size, size):
            chosen = rows[first : first + size]
            total += torch.nn.functional.cross_entropy(
                model(*reader(chosen)), targets[chosen], reduction="sum"
            ).item()
    return total / rows.size


def _key(examples: Examples, bins: int, recipe: Recipe, seed: int) -> str:
    """What a run depends on, as one string."""
    digest = hashlib.sha256(repr((recipe, bins, seed, examples.states.shape)).encode())
    for array in (examples.targets, examples.train, examples.valid, examples.states[:64]):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
