"""Fine-tuning a backbone to order prompts by the length of their answers.

As published in "Efficient LLM Scheduling by Learning to Rank" (arXiv 2408.15792; the authors'
trainer.py and train.sh): Adam with a learning rate of 2e-5 and weight decay 0.01 for five epochs,
shuffled mini-batches of 32 prompts that are one list each, no schedule and no clipping; the last
tenth of the rows is held out. It is trained in single precision here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import LengthwiseError, missing_extra
from lengthwise.predict.artifact import Metadata
from lengthwise.predict.encoder import EncoderSettings
from lengthwise.predict.encoder.predictor import EncoderPredictor, PromptText
from lengthwise.predict.extract import requests_of, vocabulary_of
from lengthwise.predict.held_out import calibrate_held_out, training_record
from lengthwise.predict.kinds import Progress, Recipe
from lengthwise.predict.lexical import scores_of
from lengthwise.predict.losses import Loss, loss_named, typical_lengths
from lengthwise.predict.tokenizer import PromptTokenizer
from lengthwise.workload.dataset import Dataset

EPOCHS: Final = 5  #: as published
LEARNING_RATE: Final = 2e-5  #: as published
WEIGHT_DECAY: Final = 0.01  #: as published
LIST_LENGTH: Final = 32  #: as published

_HELD_OUT_SHARE: Final = 0.1  #: as published
_LEAST_HELD_OUT: Final = 200  #: rows, where that is no more than half of them: quantiles need some
_CHUNK: Final = 1_000  #: prompts tokenised at a time: lists of ids are large


def train_encoder(
    dataset: Dataset, tokenizer: PromptTokenizer, recipe: Recipe, progress: Progress
) -> EncoderPredictor:
    """Fine-tune a backbone.

    Args:
        dataset: prompts and lengths.
        tokenizer: that of the model to be served.
        recipe: completed by its kind, with a backbone.
        progress: called now and then.

    Raises:
        InputError: the backbone cannot be loaded.
        LengthwiseError: the loss was no number.
    """
    assert recipe.backbone is not None
    try:
        import torch

        from lengthwise.predict.encoder.backbone import new_encoder, require_precision
    except ImportError as error:
        raise missing_extra(error.name or "torch", "encoder") from None
    require_precision(recipe.precision)
    started = time.monotonic()
    loss = loss_named(recipe.loss or "listmle")
    bucket = recipe.bucket or 1
    lengths = typical_lengths(dataset)
    order = np.random.default_rng(recipe.seed).permutation(lengths.size)
    held_out = order[: held_out_rows(lengths.size)]
    learnt = order[held_out.size :]
    outputs = 1
    if loss.name == "cross-entropy":
        outputs = int(loss.targets(lengths, bucket).max()) + 1
    vocabulary = vocabulary_of(tokenizer)
    texts = _texts(dataset, tokenizer, PromptText(vocabulary))
    # Weights that a backbone lacks are drawn too; the caller's generator is left as it was.
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        progress("loading the backbone", 0.0)
        encoder = new_encoder(recipe.backbone, recipe.head, outputs, recipe.seed)
        settings = EncoderSettings(
            backbone=recipe.backbone,
            head=recipe.head,
            precision=recipe.precision,
            window=encoder.window,
            epochs=recipe.epochs or EPOCHS,
            learning_rate=recipe.learning_rate or LEARNING_RATE,
            list_length=recipe.list_length or LIST_LENGTH,
        )
        fit(
            encoder,
            [texts[row] for row in learnt],
            lengths[learnt],
            loss,
            bucket,
            settings,
            recipe.seed,
            lambda part: progress("training", 0.95 * part),
        )
    progress("calibrating", 0.95)
    scores = np.full(lengths.size, np.nan)
    served = encoder.in_precision(recipe.precision)
    outputs_there = served.scores([texts[row] for row in held_out])
    scores[held_out] = scores_of(outputs_there, loss.name)
    calibration, metrics = calibrate_held_out(dataset, scores)
    progress("calibrating", 1.0)
    return EncoderPredictor(
        Metadata(
            kind=recipe.kind,
            loss=loss.name,
            bucket=bucket,
            model=dataset.model,
            tokenizer=tokenizer.name,
            tokenizer_fingerprint=tokenizer.fingerprint,
            training=training_record(dataset, recipe.seed, started),
            held_out=metrics,
            settings=settings.model_dump(mode="json"),
        ),
        vocabulary,
        calibration,
        lambda: encoder,
    )


def held_out_rows(rows: int) -> int:
    """How many of the rows calibrate: a tenth, more where that is few, never over a half."""
    return max(int(_HELD_OUT_SHARE * rows), min(rows // 2, _LEAST_HELD_OUT))


def fit(
    encoder: Any,
    texts: Sequence[str],
    lengths: NDArray[np.float64],
    loss: Loss,
    bucket: int,
    settings: EncoderSettings,
    seed: int,
    report: Callable[[float], None],
) -> None:
    """Train an encoder in place.

    Args:
        encoder: an `Encoder`.
        texts: n prompts.
        lengths: shape (n,), tokens of their answers.
        loss: what is lowered.
        bucket: tokens; lengths in one bucket count as equal.
        settings: epochs, learning rate and list length are read.
        seed: of lists and tie-breaks; dropout draws from torch's own generator.
        report: called with the part that is done, 0 to 1.

    Raises:
        LengthwiseError: the loss was no number.
    """
    import torch

    random = np.random.default_rng(seed)
    optimiser = torch.optim.Adam(
        list(encoder.parameters()), lr=settings.learning_rate, weight_decay=WEIGHT_DECAY
    )
    encoder.backbone.train()
    size = settings.list_length
    lists = -(-lengths.size // size) * settings.epochs
    done = 0
    for _ in range(settings.epochs):
        # Dealt at random, so ties are broken at random.
        order = random.permutation(lengths.size)
        for first in range(0, lengths.size, size):
            rows = order[first : first + size]
            outputs = encoder.outputs([texts[row] for row in rows])
            scores = outputs.detach().double().cpu().numpy()
            if scores.shape[1] == 1:
                scores = scores[:, 0]
            value, gradient = loss.function(scores, loss.targets(lengths[rows], bucket))
            if not np.isfinite(value):
                raise LengthwiseError(
                    f"the loss became {value} after {done} of {lists} lists: lower --learning-rate"
                )
            optimiser.zero_grad()
            outputs.backward(torch.from_numpy(gradient.reshape(outputs.shape)).to(outputs))
            optimiser.step()
            done += 1
            report(done / lists)
    encoder.backbone.eval()


def _texts(dataset: Dataset, tokenizer: PromptTokenizer, text: PromptText) -> list[str]:
    """Each prompt as serving will read it: through the served model's tokens."""
    texts: list[str] = []
    for first in range(0, len(dataset.prompts), _CHUNK):
        chats = requests_of(dataset, tokenizer, slice(first, first + _CHUNK))
        texts += [text.read(prompt.token_ids) for prompt in chats]
    return texts
