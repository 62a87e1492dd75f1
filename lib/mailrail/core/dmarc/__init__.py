"""DMARC: the record, the walk to it, the verdict and what is done by it (RFC 9989), reports (RFC 9990); pure."""
