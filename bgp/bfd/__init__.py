"""BFD (RFC 5880 to 5883) for the peers of BGP: packets, sessions (both pure), and the process that runs them."""

CEASE_BFD_DOWN = 10
"""RFC 9384: the subcode of the NOTIFICATION Cease that ends a BGP session whose BFD session went down."""
