"""What is asked of a server, and when: tables of prompts with answer lengths, and arrivals.

dataset.py          prompts and the lengths of their answers; which part of the data each is in
dataset_columns.py  its columns as they grow
prompts_alone.py    prompts alone
exchanges.py        from a file to its prompts and answers, one by one
prompt_layouts/     the layouts that they come in, a file for each family
conversation.py     who said what, and where each answer begins
leaks.py            prompts that hold their own answers
request_facts.py    what a request says beside its prompt

trace.py            arrival times and lengths, without text
open_trace.py       one on disk, part by part; the folders that Lengthwise itself leaves behind
load_trace.py       the parts of it that are asked for
layouts.py          the columns of published traces
trace_records.py    traces whose rows are nested
servegen.py         requests drawn from published clients
trace_rows.py       which rows of a trace are sound, and why others are not
cells.py            what the cells of a trace say
arrivals.py         arrival times
synthetic.py        traces that are made up
length_log.py       the log of answers that a server writes

file_kinds.py       what kind of file it is, and its bytes, unpacked
records.py          its rows, one by one
rejections.py       why rows, columns and files are not taken
columns.py          its columns, part by part
column_files.py     the files that are read so
inspection.py       what a file holds, without keeping any of it
"""
