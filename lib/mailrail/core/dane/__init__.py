"""DANE for SMTP: which TLSA records count, at which names, and whether a server's certificates match (RFC 7672)."""
