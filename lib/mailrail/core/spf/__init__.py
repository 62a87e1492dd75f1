"""SPF (RFC 7208): whether a domain lets a client send with its name, and why; pure (standards 5)."""
