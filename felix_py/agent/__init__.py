"""The agent: facts, health, and the wiring of all parts."""
