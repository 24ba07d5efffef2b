"""The paper's own predictor: a pretrained language model with a linear head, fine-tuned.

It needs torch and transformers: `pip install 'lengthwise[encoder]'`.
"""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class Head(StrEnum):
    """What of a backbone's states the linear layer looks at."""

    LAST = "last"  #: that of the last token that is no padding, as published
    MEAN = "mean"  #: their mean, which suits encoders such as BERT


class Precision(StrEnum):
    """In which a backbone predicts; all are trained in single precision."""

    FP32 = "fp32"
    BF16 = "bf16"
    INT8 = "int8"  #: dynamic quantisation of the linear layers, on a CPU only


class EncoderSettings(BaseModel):
    """What stands in `settings` of the metadata of a fine-tuned predictor."""

    model_config = ConfigDict(frozen=True)

    backbone: str  #: name or path of the pretrained model
    head: Head
    precision: Precision
    window: int  #: tokens of the backbone's that are read of a prompt, its last ones
    epochs: int
    learning_rate: float
    list_length: int  #: prompts of a mini-batch
