"""What reports on TLS say (RFC 8460)."""
