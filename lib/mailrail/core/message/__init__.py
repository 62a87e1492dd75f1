"""Messages as bytes: header fields and MIME structure (RFC 5322, 2045, 2046)."""
