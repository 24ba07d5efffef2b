"""Tables for a terminal: the comparison, and one policy in the layout of `vllm bench serve`."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lengthwise.measure.comparison import Comparison, PolicyResult
from lengthwise.measure.metrics import Summary
from lengthwise.measure.run_info import VIRTUAL
from lengthwise.measure.wording import (
    TIMES,
    broken_label,
    factor,
    headline,
    limits,
    load_title,
    percent,
    seconds,
    setting_title,
)

_WIDTH = 50
_SECTIONS = (
    ("ttft", "TTFT", "Time to First Token"),
    ("tpot", "TPOT", "Time per Output Token (excl. 1st token)"),
    ("itl", "ITL", "Inter-token Latency"),
    ("e2el", "E2EL", "End-to-end Latency"),
    ("queue", "Queue", "Time in Queue"),
    ("latency_per_output_token", "E2EL/token", "Latency per Output Token"),
)


def comparison_table(comparison: Comparison) -> RenderableType:
    """The whole run for a terminal of 80 columns: a table for each load, then the result."""
    tables: list[RenderableType] = [
        _load_table(load, results, comparison) for load, results in comparison.by_load()
    ]
    rounds = comparison.rounds
    flagged = sum(bool(each.flags) for each in rounds)
    unit = "seed" if comparison.engine == VIRTUAL else "round"
    several = any(len(result.rounds) > 1 for result in comparison.results)
    note = f"End-to-end latency in s{f', medians of the {unit}s' if several else ''}."
    if comparison.baseline is not None:
        note += (
            f" factor: {comparison.baseline} / policy on the mean"
            f"{f', {unit} by {unit} (lowest to highest)' if several else ''}; gap: share of the "
            "oracle's gain."
        )
    if comparison.engine_note:
        note += f" {comparison.engine_note}"
    lines = [Text(note, style="dim")]
    if flagged:
        lines.append(Text(f"{flagged} of {len(rounds)} rounds are flagged (!):", style="yellow"))
        lines.extend(
            Text(f"  round {each.info.round} ({each.info.policy}): {'; '.join(each.flags)}")
            for each in rounds
            if each.flags
        )
    return Group(*tables, *lines, Text(headline(comparison), style="bold"))


def _load_table(load: str, results: list[PolicyResult], comparison: Comparison) -> Table:
    baseline = comparison.baseline
    table = Table(
        title=setting_title(load, results, comparison.engine),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("policy", overflow="fold", min_width=14)
    for name in ("mean", "p50", "p99", "max", "TTFT", "s/token"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("factor", justify="right", no_wrap=True)
    table.add_column("", justify="left", no_wrap=True)
    table.add_column("gap", justify="right", no_wrap=True)
    for result in results:
        figures = result.summary()
        ratio = result.ratios.get("mean_e2el_ms") if result.policy != baseline else None
        cells = [
            ("! " if result.flagged else "") + broken_label(result.policy),
            seconds(figures["mean_e2el_ms"]),
            seconds(figures["median_e2el_ms"]),
            seconds(figures["p99_e2el_ms"]),
            seconds(figures["max_e2el_ms"]),
            seconds(figures["mean_ttft_ms"]),
            seconds(figures["mean_latency_per_output_token_ms"]),
            factor(ratio)
            if ratio is not None
            else f"1{TIMES}"
            if result.policy == baseline
            else "",
            limits(ratio),
            percent(result.gap_closed),
        ]
        table.add_row(*cells)
    return table


def serving_result(
    figures: Summary, rounds: int = 1, rate: float | None = None, concurrency: int | None = None
) -> str:
    """One policy's figures in the 50-column layout that `vllm bench serve` prints.

    Its own sections come first, word for word; the sections that vLLM does not have follow.

    Args:
        figures: from `metrics.summarise` or `PolicyResult.summary`.
        rounds: how many rounds the figures come from.
        rate: requests per second asked for, where the load was one.
        concurrency: clients, in a closed loop.
    """
    lines = [
        _rule(" Serving Benchmark Result ", "="),
        _line("Successful requests:", figures["completed"]),
        _line("Failed requests:", figures["failed"]),
    ]
    if rounds > 1:
        lines.append(_line("Rounds (counts added up, else medians):", rounds))
    if concurrency is not None:
        lines.append(_line("Maximum request concurrency:", concurrency))
    if rate is not None:
        lines.append(_line("Request rate configured (RPS):", rate))
    lines += [
        _line("Benchmark duration (s):", figures["duration"]),
        _line("Total input tokens:", figures["total_input_tokens"]),
        _line("Total generated tokens:", figures["total_output_tokens"]),
        _line("Request throughput (req/s):", figures["request_throughput"]),
    ]
    if figures["request_goodput"] is not None:
        lines.append(_line("Request goodput (req/s):", figures["request_goodput"]))
    lines += [
        _line("Output token throughput (tok/s):", figures["output_throughput"]),
        _line("Peak output token throughput (tok/s):", figures["max_output_tokens_per_s"]),
        _line("Peak concurrent requests:", _float(figures["max_concurrent_requests"])),
        _line("Total token throughput (tok/s):", figures["total_token_throughput"]),
    ]
    for key, name, title in _SECTIONS:
        lines.append(_rule(title, "-"))
        for word, prefix in (("Mean", "mean"), ("Median", "median"), ("P99", "p99")):
            lines.append(_line(f"{word} {name} (ms):", figures[f"{prefix}_{key}_ms"]))
    lines += [
        _rule("Scheduling", "-"),
        _line("Longest wait for a token (ms):", figures["max_waiting_time_ms"]),
        _line("Preemptions:", figures["preemptions"]),
        _line("Overtakes:", figures["overtakes"]),
        "=" * _WIDTH,
    ]
    return "\n".join(lines)


def serving_results(comparison: Comparison, policy: str) -> str:
    """One policy at each of its loads, in the layout of `vllm bench serve`."""
    blocks = []
    for result in comparison.results:
        if result.policy != policy:
            continue
        kind, _, value = result.load.partition("=")
        block = serving_result(
            result.summary(),
            rounds=len(result.rounds),
            rate=float(value) if kind == "rate" else None,
            concurrency=int(value) if kind == "concurrency" else None,
        )
        blocks.append(f"{policy}, {load_title(result.load)}\n{block}")
    return "\n\n".join(blocks)


def _rule(title: str, character: str) -> str:
    return f"{title:{character}^{_WIDTH}}"


def _line(label: str, value: float | int | None) -> str:
    text = "n/a" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
    return f"{label:<40} {text:<10}"


def _float(value: float | int | None) -> float | None:
    return None if value is None else float(value)
