"""The probe's networks in torch: for the worker, beside the model that they listen to."""

from __future__ import annotations

from typing import Any

import torch

from lengthwise.probe.probe_folder import Network


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
