"""SASL mechanisms, both ends (RFC 4954, 4616, 5802, 7677, 2195)."""
