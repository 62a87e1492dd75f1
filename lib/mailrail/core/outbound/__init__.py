"""Decisions of delivery that need no socket: which hosts, in which order, under which connection key, and what next."""
