"""The node agent, its command line and the lab: everything that touches the world."""
