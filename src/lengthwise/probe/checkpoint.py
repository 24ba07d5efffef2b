"""The progress of one training on disk: weights, optimiser and the best weights so far."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lengthwise.errors import InputError
from lengthwise.files import replaced


class Checkpoint:
    """Written after each epoch, whole or not at all."""

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
                header = json.loads(saved.metadata()["training"])
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
