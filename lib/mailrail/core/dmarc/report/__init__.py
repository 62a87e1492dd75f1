"""Aggregate reports: what they tell of messages, counted, written and read (RFC 9990; RFC 7489 for older consumers)."""
