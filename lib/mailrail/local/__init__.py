"""Local mode: everything on one machine with one command, in place of a cluster (design section 10)."""
