"""ARC (RFC 8617): whether the chain of seals on a message holds, and what its sealers had found; pure (standards 6)."""
