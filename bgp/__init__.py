"""BGP state: which peers a node must have, what to announce to them, what was learned, and the sidecar.

Everything but :mod:`bgp.bridge` and :mod:`bgp.sidecar` is free of I/O.
"""
