"""Kubernetes network policy without I/O: objects -> model -> index -> intermediate rules, and an oracle.

Nothing in this package reads a clock or imports anything outside the standard library either, so all of it can be
tested by property tests at full speed.
"""
