"""BGP state: a node's peers, its announcements, the learned routes, and the sidecar.

Only :mod:`bgp.bridge` and :mod:`bgp.sidecar` do I/O.
"""
