"""A real Kubernetes for tests: each machine of it in namespaces of this one.

``tor`` is the top-of-rack router (BIRD), ``outside`` a host behind it, ``cp`` the control plane, ``node1`` … the
nodes with containerd, kubelet and kube-proxy. Nothing in here simulates anything, and nothing of it is reachable
from the machine's own network. ``python -m tests.cluster --help`` brings one up to play with.
"""
