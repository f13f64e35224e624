"""The command line ``felix-py``: one module for each command, loaded only when its command runs."""

from felix_py.cli.main import main

__all__ = ["main"]
