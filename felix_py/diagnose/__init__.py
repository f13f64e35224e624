"""Diagnosis of a node: why a packet passes or not, and whether the kernel holds the intended state.

It writes nothing and needs no running agent, but may run beside one.
"""
