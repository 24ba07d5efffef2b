"""What happened to each request of a run, and what it adds up to: records, metrics, reports.

    results         what was run and what happened to each request, and the folder that holds both
    metrics         latencies, and one round's throughput, with the keys of `vllm bench serve`
    comparison      policies against a baseline within one run
    wording         how figures are written for people; tables for a terminal
    twins           live results beside virtual ones
    report          report.html and results.json
    charts          the drawings of report.html
    server_metrics  what a running server says of its queue

Imports nothing of Lengthwise but its errors and how files are written.
"""

from lengthwise.measure.comparison import Comparison, PolicyResult, Spread, compare
from lengthwise.measure.metrics import parse_objectives, request_metrics, summarise
from lengthwise.measure.report import write_report
from lengthwise.measure.results import (
    Records,
    RequestRecord,
    Results,
    ResultsWriter,
    RoundInfo,
    RunInfo,
    read_records,
    read_results,
    write_records,
)

__all__ = [
    "Comparison",
    "PolicyResult",
    "Records",
    "RequestRecord",
    "Results",
    "ResultsWriter",
    "RoundInfo",
    "RunInfo",
    "Spread",
    "compare",
    "parse_objectives",
    "read_records",
    "read_results",
    "request_metrics",
    "summarise",
    "write_records",
    "write_report",
]
