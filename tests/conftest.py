"""Fixtures for every kind of test."""

from testkit.postgres import (  # fixtures are found by being here
    _databases,
    database,
    database_for,
    disposable_postgres,
    empty_database,
    postgres,
)

__all__ = ["_databases", "database", "database_for", "disposable_postgres", "empty_database", "postgres"]
