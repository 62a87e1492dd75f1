"""DKIM (RFC 6376 with 8301, 8463, 8616): signatures are judged and made, keys read and rotated; pure (standards 6)."""
