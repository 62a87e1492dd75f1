"""What TLS a hop needs, and why: one pure decision (design 7; RFC 3207, 7435)."""
