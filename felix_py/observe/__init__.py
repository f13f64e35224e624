"""What people and scrapers see of the agent: status, metrics, notices, denied packets. Nothing here enforces."""
