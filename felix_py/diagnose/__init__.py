"""What people ask of a node: why a packet passes or not, and whether the kernel is as it should be.

All of it only looks. It needs no running agent, and reads beside one that runs.
"""
