"""Measurements that are no tests. Each runs from the root: `python bench/NAME.py`."""
