"""Netlink: the format of its messages, packed by hand, and the socket that sends them.

What is to be sent, the dataplane decides.
"""
