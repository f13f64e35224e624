"""The node agent, the CNI plugin and their command line: everything that touches the world."""
