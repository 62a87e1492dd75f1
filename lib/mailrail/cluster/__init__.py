"""What an installation on Kubernetes needs beside its services: keys, a Postgres for trying out, a test of it all."""
