"""What one agent does for the whole cluster, while it leads."""
