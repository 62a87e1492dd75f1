"""What reports on DMARC and on TLS have in common: the mail that carries one, its compression, names and addresses."""
