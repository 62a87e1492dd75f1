"""What every service shares: settings, logs, metrics, gRPC, Postgres, configuration, resolver, start and stop."""

import os

# Read when grpc is imported, which is later. gRPC tells of each failed handshake in plain text, and logs are JSON.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
