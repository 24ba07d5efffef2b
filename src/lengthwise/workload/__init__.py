"""What is asked of a server, and when: tables of prompts with answer lengths, and arrivals.

table.py       read parquet, JSONL and CSV, cell by cell
dataset.py     prompts and the lengths of their answers
split.py       which part of the data a prompt belongs to
arrivals.py    arrival times
trace.py       arrival times and lengths, without text
trace_rows.py  which rows of a trace are sound, and why others are not
synthetic.py   traces that are made up
layouts.py     the columns of published traces
recorded.py    the folders that Lengthwise itself leaves behind
columns.py     read parquet, JSONL and CSV, whole columns at once
cells.py       what the cells of a trace say
"""
