"""Benchmarks: each compares with the bare tool or the limit, in one run, and prints the ratio."""
