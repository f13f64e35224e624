"""Policies, pods and namespaces -> intermediate rules (:mod:`policy.ir`) of a node's endpoints, incrementally."""
