"""What happened to each request of a run, and what it adds up to: records, metrics, reports.

    request_record  one row per request of a round; parquet or JSONL
    run_info        what was run, where, with which versions; one row per round
    results         the folder that holds all of it
    metrics         latencies, and one round's throughput, with the keys of `vllm bench serve`
    comparison      policies against a baseline within one run
    wording         how figures are written for people
    terminal        tables for a terminal
    twins           live results beside virtual ones
    report          report.html and results.json
    html            the page, with its drawings: charts, svg
    server_metrics  what a running server says of its queue

Imports nothing of Lengthwise but its errors.
"""

from lengthwise.measure.comparison import Comparison, PolicyResult, Spread, compare
from lengthwise.measure.metrics import parse_objectives, request_metrics, summarise
from lengthwise.measure.report import write_report
from lengthwise.measure.request_record import Records, RequestRecord, read_records, write_records
from lengthwise.measure.results import Results, ResultsWriter, read_results
from lengthwise.measure.run_info import RoundInfo, RunInfo

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
