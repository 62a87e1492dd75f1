"""Configuration as the services read it: the compiled revision, and the pure compiler that makes it."""
