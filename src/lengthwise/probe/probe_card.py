"""The README.md of a probe, so that a folder found later explains itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lengthwise.probe.probe_folder import Metadata


def probe_card(metadata: Metadata, bins: int) -> str:
    """A model card in Markdown.

    Args:
        metadata: of the probe.
        bins: how many it has.
    """
    training, metrics = metadata.training, metadata.metrics
    layers = ", ".join(map(str, metadata.layers))
    errors = "\n".join(
        f"| {meaning} | {metrics[name]:.1f} |"
        for name, meaning in (
            ("mae_prompt_only", "the prompt alone, counted down"),
            ("mae_reestimated", "the prompt and the age, estimated again at each token"),
            ("mae_raw", "this probe, each token by itself"),
            ("mae_refined", "this probe, refined from token to token"),
        )
        if name in metrics
    )
    return f"""# Probe of remaining answer length

Reads from the hidden states of {metadata.model} how many tokens of an answer are still to come.
Written by `lengthwise train-probe`; read by `lengthwise serve --probe DIR`.

| | |
|---|---|
| Model | {metadata.model}, fingerprint `{metadata.model_fingerprint[:16]}` |
| States | output after layer {layers} of {metadata.layers_total}, width {metadata.hidden_size} |
| Prompt | {metadata.pooling} of its tokens' states |
| Bins | {bins}, {metadata.bins} |
| Trained on | {training.requests} answers of at most {metadata.max_tokens} tokens, \
{training.states} states; {training.dropped_states} states and {training.dropped_requests} \
requests that were not finite left out |
| Trained at | {training.trained_at}, in {training.seconds:.0f} s, seed {training.seed} |

Mean absolute error of the tokens to come, over every output token of test answers:

| from | tokens |
|---|---|
{errors}

**Use.** For this very model, its system prompts and its sampling settings. Train again when one of
them changes: the errors above are of answers like those it learnt from.

**Contents.** No prompts and no answers are stored.
"""
