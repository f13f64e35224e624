"""Kubernetes network policy, pure: objects -> model -> index -> intermediate rules, and an oracle.

Nothing in this package does I/O, reads a clock or imports anything outside the standard library, so every
line of it can be tested by property tests at full speed.
"""
