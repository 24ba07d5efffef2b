"""What is asked of a server, and when: tables of prompts with answer lengths, and arrivals.

dataset.py       prompts and the lengths of their answers; which part of the data each is in
exchanges.py     from a file to its prompts and answers, one by one, or to its prompts alone
leaks.py         prompts that hold their own answers
prompt_layouts/  the layouts that they come in, a file for each family
conversation.py  who said what, where each answer begins, and what a request says beside its prompt

trace.py         arrival times and lengths, without text; the parts of a trace that are asked for
open_trace.py    one on disk, part by part; the folders that Lengthwise itself leaves behind
servegen.py      requests drawn from published clients
layouts.py       the columns of published traces, also of those whose rows are nested
trace_rows.py    what the cells of a trace say, which rows are sound, and why others are not
arrivals.py      arrival times, and traces that are made up
length_log.py    the log of answers that a server writes

records.py       what kind of file it is, its rows, one by one, and why some are not taken
column_files.py  its columns, part by part
inspection.py    what a file holds, without keeping any of it
"""
