"""Observability: status, metrics, notices, denied packets. Nothing here enforces policy."""
