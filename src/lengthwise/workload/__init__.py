"""What is asked of a server, and when: tables of prompts with answer lengths, and arrivals.

table.py     read parquet, JSONL and CSV
dataset.py   prompts and the lengths of their answers
arrivals.py  arrival times
"""
