"""What happened to each request of a run, and what it adds up to: records, metrics, reports.

    record       one row per request of a round; parquet or JSONL
    round        one row per round: policy, load, capacity, flags
    run          what was run, where, with which versions
    results      the folder that holds all of it
    metrics      one round's latency and throughput, with the keys of `vllm bench serve`
    comparison   policies against a baseline within one run
    table        tables for a terminal
    plot, html   report.html

Imports nothing of Lengthwise but its errors.
"""
