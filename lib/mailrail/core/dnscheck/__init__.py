"""Which DNS records a domain needs, and what is wrong with those that are there; pure."""
