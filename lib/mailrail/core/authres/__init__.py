"""The Authentication-Results field (RFC 8601): read it, write it, find those that pretend to be ours; pure."""
