"""The container image, made without a daemon and without a registry: ``make image``, ``python -m image``.

:mod:`image.base` makes the first layer from Debian packages, :mod:`image.application` the second from the locked
dependencies and this source tree, :mod:`image.archive` the archive of both, :mod:`image.sbom` the list of what is
in it. Two builds from the same commit and the same packages give the same digest: the tars are sorted, every time
is the commit's, and nothing that a tool logs gets in.
"""
