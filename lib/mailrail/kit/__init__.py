"""What every service shares: settings, logs, metrics, gRPC, Postgres, configuration, resolver, start and stop."""
