"""The published comparisons that need no wall clock, each made exactly by one command.

    python -m bench.figures                     all tables, which is `make figures`
    python -m bench.figures guards cutoff       some of them

A table is a list of cells, and each cell a round of requests on one engine. All cells are
simulated; one of every table, which its name chooses, is served by vLLM's own engine in virtual
time as well, and both must agree about every request. See `table.py`.
"""
