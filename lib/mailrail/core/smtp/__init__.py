"""SMTP as values and state machines: addresses, replies, and both ends of a session."""
