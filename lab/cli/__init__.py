"""``felix-py lab …``, which :mod:`felix_py.cli` has where this package is importable."""
