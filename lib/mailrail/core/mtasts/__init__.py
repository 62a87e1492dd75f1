"""MTA-STS (RFC 8461): the record, the policy, and what is done with a cached one; pure (standards 2)."""
