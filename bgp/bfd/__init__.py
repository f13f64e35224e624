"""BFD (RFC 5880 to 5883) for the peers of BGP: packets, sessions (both pure), and the process that runs them."""
