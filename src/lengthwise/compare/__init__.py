"""Policies compared on one real server: the same requests, the same arrivals, in turn."""
