"""The meaning of iptables rules: a decoder of the kernel's rules, a normal form, and a simulator.

The package stands below the dataplane, which writes rules as text and asks here whether the rules that it reads
back mean the same. Nothing here writes to the kernel.
"""
