"""The agent: facts, policy in force, endpoints, and the wiring of all parts."""
