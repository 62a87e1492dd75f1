"""What domains ask of TLS: looked up, fetched and kept. The decisions are core/mtasts, core/dane and core/tlspolicy."""
