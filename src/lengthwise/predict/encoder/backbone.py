"""A backbone with a linear head, in torch: texts → scores.

As published in "Efficient LLM Scheduling by Learning to Rank" (arXiv 2408.15792; the authors'
opt.py): one linear layer without bias on the hidden state of the last token that is no padding.
The mean over all tokens is the other choice, which suits encoders such as BERT.
"""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import nn

from lengthwise.errors import InputError
from lengthwise.predict.encoder import Head, Precision
from lengthwise.predict.tokenizer import REFERENCE, holds_tokenizer
from lengthwise.reference import model_path

LONGEST_WINDOW: Final = 2_048  #: tokens, as published

_BATCH: Final = 32  #: texts that are scored at once
_BATCH_TOKENS: Final = 16_384  #: and at most so many tokens, padding included
_QUANTISATION: Final = "torch.ao.quantization"
_HEAD_DEVIATION: Final = 0.02  #: of the head's weights at the start, as for OPT and BERT


class Encoder:
    """A backbone, its tokenizer and a head.

    Attributes:
        backbone: the pretrained model without a head of its own.
        head: linear, from hidden states to outputs.
        window: tokens that are read of a text, its last ones.
    """

    def __init__(
        self, backbone: Any, tokenizer: Any, head: Any, pooling: Head, window: int
    ) -> None:
        """Put the parts together, on one device; `new_encoder` makes them."""
        self.backbone = backbone
        self.head = head
        self.window = window
        self._tokenizer = tokenizer
        self._pooling = pooling
        special = (
            tokenizer.bos_token_id,
            tokenizer.cls_token_id,
            tokenizer.eos_token_id,
            tokenizer.pad_token_id,
        )
        #: Stands for an empty text, and fills short ones up (where attention does not look).
        self._filler = next((token for token in special if token is not None), 0)

    def parameters(self) -> Iterator[Any]:
        """What training changes."""
        yield from self.backbone.parameters()
        yield from self.head.parameters()

    def outputs(self, texts: Sequence[str]) -> Any:
        """A tensor of shape (texts, outputs) that gradients can be sent back through."""
        return self._forward(self._encode(texts))

    def scores(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The outputs, shape (texts, outputs), without randomness and without gradients."""
        self.backbone.eval()
        rows = self._encode(texts)
        scores = np.empty((len(rows), self.head.out_features))
        with torch.inference_mode():
            for places in _batches([len(row) for row in rows]):
                outputs = self._forward([rows[place] for place in places])
                scores[places] = outputs.double().cpu().numpy()
        return scores

    def in_precision(self, precision: Precision) -> Encoder:
        """The same encoder with the backbone's weights in fewer bits; int8 moves to the CPU."""
        backbone, head = self.backbone, self.head
        if precision is Precision.BF16:
            backbone = copy.deepcopy(backbone).to(torch.bfloat16)
        elif precision is Precision.INT8:
            backbone, head = _quantised(backbone.cpu().eval()), head.cpu()
        return Encoder(backbone, self._tokenizer, head, self._pooling, self.window)

    def save_backbone(self, folder: Path) -> None:
        """Write the backbone's weights (safetensors), configuration and tokenizer."""
        self.backbone.save_pretrained(folder)
        self._tokenizer.save_pretrained(folder)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        encoded = self._tokenizer(
            list(texts), truncation=True, max_length=self.window, padding=False, verbose=False
        )
        return [row or [self._filler] for row in encoded["input_ids"]]

    def _forward(self, rows: Sequence[Sequence[int]]) -> Any:
        lengths = torch.tensor([len(row) for row in rows])
        longest = int(lengths.max())
        padded = [[*row, *[self._filler] * (longest - len(row))] for row in rows]
        device = self.head.weight.device
        mask = (torch.arange(longest) < lengths[:, None]).long().to(device)
        states = self.backbone(
            input_ids=torch.tensor(padded, device=device), attention_mask=mask
        ).last_hidden_state
        hidden = states.float()  # long sums in fewer bits lose what is small
        if self._pooling is Head.LAST:
            pooled = hidden[torch.arange(len(rows), device=device), lengths.to(device) - 1]
        else:
            pooled = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        return self.head(pooled)


def new_encoder(name: str, pooling: Head, outputs: int, seed: int) -> Encoder:
    """A pretrained backbone with a new head.

    Args:
        name: folder of a Hugging Face model, or its name on the hub.
        pooling: what the head looks at.
        outputs: how many numbers it gives.
        seed: of the head's weights.

    Raises:
        InputError: there is no such backbone, or it cannot be used as one.
    """
    backbone, tokenizer = load_backbone(name)
    with torch.no_grad():
        hidden = backbone(input_ids=torch.zeros(1, 1, dtype=torch.long)).last_hidden_state
    weights = np.random.default_rng(seed).normal(0, _HEAD_DEVIATION, (outputs, hidden.shape[-1]))
    limits = (
        LONGEST_WINDOW,
        tokenizer.model_max_length,
        getattr(backbone.config, "max_position_embeddings", None) or LONGEST_WINDOW,
    )
    return assemble(backbone, tokenizer, weights.astype(np.float32), pooling, min(limits))


def assemble(
    backbone: Any, tokenizer: Any, weights: NDArray[np.float32], pooling: Head, window: int
) -> Encoder:
    """An encoder of its parts, on the GPU if there is one with room.

    Args:
        backbone: from `load_backbone`.
        tokenizer: the same.
        weights: of the head, shape (outputs, hidden size).
        pooling: what the head looks at.
        window: tokens that are read of a text.
    """
    head = nn.Linear(weights.shape[1], weights.shape[0], bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weights))
    if torch.cuda.is_available():
        try:
            backbone, head = backbone.to("cuda"), head.to("cuda")
        except torch.OutOfMemoryError:  # the engine's own model may fill it
            backbone, head = backbone.to("cpu"), head.to("cpu")
    return Encoder(backbone, tokenizer, head, pooling, window)


def load_backbone(name: str, *, local: bool = False) -> tuple[Any, Any]:
    """A pretrained model and its tokenizer, in single precision, ready to predict.

    Args:
        name: folder of a Hugging Face model, its name on the hub, or `reference` for the built-in
            one, which needs no network.
        local: take it from the disk alone.

    Raises:
        InputError: it cannot be loaded, or is no encoder or decoder.
    """
    folder = model_path() if name == REFERENCE else Path(name).expanduser()
    if (name.startswith((".", "/", "~")) or name.count("/") > 1) and not folder.is_dir():
        raise InputError(f"no backbone {name}: there is no such folder")
    if folder.is_dir() and not holds_tokenizer(folder):
        raise InputError(f"the backbone {name} has no tokenizer beside it: save both in one folder")
    source = str(folder) if folder.is_dir() else name
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, local_files_only=local)
        backbone = transformers.AutoModel.from_pretrained(
            source, dtype=torch.float32, local_files_only=local
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise InputError(
            f"cannot load the backbone {name!r}: {reason}; give the folder of a Hugging Face "
            "model with its tokenizer, or its name on the hub, for example facebook/opt-125m"
        ) from None
    if backbone.config.is_encoder_decoder:
        raise InputError(
            f"the backbone {name!r} is an encoder and a decoder in one: give one that is either, "
            "for example facebook/opt-125m or distilbert/distilbert-base-uncased"
        )
    backbone.config.use_cache = False
    tokenizer.truncation_side = "left"  # what is asked for usually stands at the end
    return backbone.eval(), tokenizer


def _batches(lengths: Sequence[int]) -> Iterator[NDArray[np.int64]]:
    """Places of rows to be scored together: of like length, and not too many tokens."""
    order = np.argsort(lengths, kind="stable")[::-1]
    at = 0
    while at < order.size:
        size = max(1, min(_BATCH, _BATCH_TOKENS // lengths[order[at]]))
        yield order[at : at + size]
        at += size


def require_precision(precision: Precision) -> None:
    """Refuse a precision that this torch cannot predict in, before anything is trained for it.

    Raises:
        InputError: there is no dynamic quantisation.
    """
    if precision is Precision.INT8:
        try:
            importlib.import_module(_QUANTISATION)
        except ImportError:
            raise InputError(
                "this torch has no dynamic quantisation: choose --precision bf16 or fp32"
            ) from None


def _quantised(backbone: Any) -> Any:
    """The linear layers with weights in int8, and what enters them quantised as it comes."""
    require_precision(Precision.INT8)
    quantisation = importlib.import_module(_QUANTISATION)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its successor is another package
        return quantisation.quantize_dynamic(backbone, {nn.Linear}, dtype=torch.qint8)
