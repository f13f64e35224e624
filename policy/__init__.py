"""Kubernetes network policy without I/O: objects -> model -> index -> intermediate rules, and an oracle.

Objects, parser, model and intermediate rules are here; what makes the rules is in :mod:`policy.engine`.

Nothing in this package reads a clock or imports anything outside the standard library either, so all of it can be
tested by property tests at full speed.
"""
