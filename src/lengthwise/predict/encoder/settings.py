"""How an encoder is built: kept in the artifact's config.json."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from lengthwise.predict.encoder import Head, Precision


class EncoderSettings(BaseModel):
    """What stands in `settings` of the metadata."""

    model_config = ConfigDict(frozen=True)

    backbone: str  #: name or path of the pretrained model
    head: Head
    precision: Precision
    window: int  #: tokens of the backbone's that are read of a prompt, its last ones
    epochs: int
    learning_rate: float
    list_length: int  #: prompts of a mini-batch
