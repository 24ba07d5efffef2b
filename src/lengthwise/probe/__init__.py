"""Hidden states → what remains of an answer: bins, probe, refinement, training (TRAIL).

    states.py         the folder of hidden states that a probe is trained on
    refine.py         bins of the remaining length and how it moves through them; the Bayesian
                      filter that serving runs at every prediction
    probe_folder.py   a probe as a folder
    fit.py            its networks in torch; one of them, trained by cross-entropy, and the progress
                      of that on disk
    state_rows.py     the states that can be used
    filter_replay.py  the filter over recorded answers, and the fit of its constants
    heads.py          the networks of a training
    training.py       a probe: choice of layer and pooling, its networks, its refinement; and what
                      is reported of it

Reading and refining need numpy and numba only; `fit.py`, and what trains, import torch.
"""

from lengthwise.probe.probe_folder import Probe

__all__ = ["Probe"]
