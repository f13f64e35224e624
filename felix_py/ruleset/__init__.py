"""What iptables rules mean: a decoder for what the kernel holds, a normal form, and a simulator.

It stands below the dataplane, which writes rules as text and asks here whether what it reads back still means
the same. Nothing here writes to the kernel.
"""
