"""Who sent a message, by SPF, DKIM, ARC, DMARC and the client's address, and what follows from that; pure (standards 5
to 7)."""
