"""The paper's own predictor: a pretrained language model with a linear head, fine-tuned.

It needs torch and transformers: `pip install 'lengthwise[encoder]'`.
"""

from enum import StrEnum


class Head(StrEnum):
    """What of a backbone's states the linear layer looks at."""

    LAST = "last"  #: that of the last token that is no padding, as published
    MEAN = "mean"  #: their mean, which suits encoders such as BERT


class Precision(StrEnum):
    """In which a backbone predicts; all are trained in single precision."""

    FP32 = "fp32"
    BF16 = "bf16"
    INT8 = "int8"  #: dynamic quantisation of the linear layers, on a CPU only
