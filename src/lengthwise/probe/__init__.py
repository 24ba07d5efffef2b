"""Hidden states → what remains of an answer: bins, probe, refinement, training (TRAIL).

    states.py         the folder of hidden states that a probe is trained on
    bins.py           bins of the remaining length, and how it moves through them
    state_rows.py     what of it can be used
    fit.py            one network, trained by cross-entropy
    checkpoint.py     its progress on disk
    heads.py          the networks of a training
    training.py       a probe: choice of layer and pooling, its networks, its refinement
    refine.py         the Bayesian filter that serving runs at every prediction
    filter_replay.py  the filter over recorded answers, and the fit of its constants
    probe_report.py   what is reported, from what was trained
    probe_folder.py   a probe as a folder
    torch_network.py  its networks in torch

Reading and refining need numpy and numba only; `torch_network.py`, and what trains, import torch.
"""

from lengthwise.probe.probe_folder import Probe

__all__ = ["Probe"]
