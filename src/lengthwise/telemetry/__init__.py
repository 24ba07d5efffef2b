"""What a scheduler tells while it serves: its numbers, records of what it did, and logs.

rolling_tau        how well predictions order the answers that are being served
prometheus         the numbers as Prometheus takes them: on a port, and on vLLM's own page
journal            a line for each step and request; who came, ran, was put back and ended
length_log_writer  hashed features and lengths of answers, to learn from
"""
