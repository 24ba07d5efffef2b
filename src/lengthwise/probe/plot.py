"""The layer sweep as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lengthwise.probe.report import LayerError


def write_layer_plot(layers: Sequence[LayerError], model: str, path: Path) -> None:
    """Error of the raw probe by layer, on test answers with 95 % intervals, as an SVG.

    Raises:
        InputError: the file cannot be written.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    from lengthwise.errors import InputError

    figure, axes = pyplot.subplots(figsize=(6.4, 3.6))
    numbers = [each.layer for each in layers]
    values = [each.mae_raw.value for each in layers]
    below = [each.mae_raw.value - each.mae_raw.low for each in layers]
    above = [each.mae_raw.high - each.mae_raw.value for each in layers]
    axes.errorbar(numbers, values, (below, above), marker="o", markersize=4, capsize=3)
    axes.set(
        xlabel="Layers below the state (0: the embedding)",
        ylabel="Mean absolute error (tokens)",
        title=f"Remaining length from one state of {model}",
        ylim=(0, None),
    )
    axes.xaxis.set_major_locator(pyplot.MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    try:
        figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None
    finally:
        pyplot.close(figure)
