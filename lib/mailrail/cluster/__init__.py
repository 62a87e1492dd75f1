"""What an installation on Kubernetes needs beside its services: keys, a Postgres for trying out, a test of it all."""

from typing import Final

POSTGRES_PORT: Final = 5432
"""Where the bundled Postgres listens unless --port says otherwise, and where its Secret says that it does."""
