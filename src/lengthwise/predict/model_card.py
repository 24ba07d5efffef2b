"""The README.md of a predictor: what it is, what it learnt from, and how good it was."""

from __future__ import annotations

from lengthwise.predict.artifact import Metadata
from lengthwise.predict.kinds import kind_named


def model_card(metadata: Metadata) -> str:
    """A model card in Markdown."""
    training, held_out = metadata.training, metadata.held_out
    backbone = metadata.settings.get("backbone")
    reads = (
        "words of the prompt" if backbone is None else f"pretrained model {backbone}, fine-tuned"
    )
    tau = "undefined" if held_out.tau is None else f"{held_out.tau:.3f}"
    return f"""# Predictor of answer lengths

Predicts from a prompt how many tokens the answer of {metadata.model or "one model"} will have.
Written by `lengthwise train`; read by `lengthwise serve --predictor DIR`.

| | |
|---|---|
| Kind | {metadata.kind}: {reads}, {kind_named(metadata.kind).summary} |
| Loss | {metadata.loss}, lengths in buckets of {metadata.bucket} |
| Target model | {metadata.model or "not named in the table"} |
| Tokenizer | {metadata.tokenizer}, vocabulary `{metadata.tokenizer_fingerprint[:16]}…` |
| Trained on | {training.dataset}, {training.selection}: {training.rows} prompts, \
{training.answers} answers, {training.rejected_rows} malformed rows left out |
| Trained at | {training.trained_at}, in {training.seconds:.1f} s, seed {training.seed} |
| Kendall tau-b, held out | {tau} ({held_out.rows} prompts) |
| Mean absolute error, held out | {held_out.mae:.1f} tokens |
| Answers between the 10 % and 90 % quantile, held out | {held_out.coverage_80:.1%} |

"Held out" is within the training rows: each was scored by a model that had not seen it. Measure on
rows of your own with `lengthwise evaluate`.

**Use.** It orders requests by expected length, and gives its mean and its 10 %, 50 % and 90 %
quantiles. It knows what was in the prompts above: those unlike them rank near the middle, and their
quantiles are less reliable. Train again when the model, its system prompt or the traffic changes.

**Contents.** No prompts are stored.
"""
