"""To be filled in by the next change."""
