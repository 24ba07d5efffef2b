"""What a scheduler tells while it serves: its numbers, records of what it did, and logs.

rolling_tau        how well predictions order the answers that are being served
engine_file        an engine's numbers in a file, for the server's other processes
prometheus         the numbers as Prometheus takes them: on a port, and on vLLM's own page
engine_record      a line for each step and each request
journal            who came, ran, was put back and ended, in bounded space
length_log_writer  hashed features and lengths of answers, to learn from
queued_writer      what the last three have in common: a queue, and a thread that empties it
"""
