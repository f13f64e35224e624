"""A cluster on one machine, to try things and for the tests: not part of what is installed on nodes."""
