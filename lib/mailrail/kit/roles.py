"""Roles of the services in Postgres: each reaches its own schema alone (DBS-01)."""

from collections.abc import Callable, Sequence

import psycopg
from psycopg import sql


def grant_roles(url: str, schemas: Sequence[str], *, say: Callable[[str], None] = lambda _: None) -> list[str]:
    """Make a role `mailrail_<schema>` for each schema, with rights in that schema alone; answers the names (DBS-01).

    The roles may not log in until an administrator gives them a password or another way (`ALTER ROLE ... LOGIN`).
    Repeatable: rights are granted again, also for tables that later migrations of the same owner will make.
    """
    names = []
    with psycopg.connect(url, autocommit=True, application_name="mailrail migrate") as connection:
        for schema in schemas:
            role = f"mailrail_{schema}"
            if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (role,)).fetchone() is None:
                connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(role)))
                say(f"role {role} made; give it a way to log in: ALTER ROLE {role} LOGIN PASSWORD '...'")
            parts = {"role": sql.Identifier(role), "schema": sql.Identifier(schema)}
            with connection.transaction():
                for statement in (
                    "GRANT USAGE, CREATE ON SCHEMA {schema} TO {role}",  # CREATE: a service adds its own partitions
                    "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES"
                    " ON ALL TABLES IN SCHEMA {schema} TO {role}",
                    "GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA {schema} TO {role}",
                    "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO {role}",
                    "ALTER DEFAULT PRIVILEGES IN SCHEMA {schema}"
                    " GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES ON TABLES TO {role}",
                    "ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT USAGE, SELECT ON SEQUENCES TO {role}",
                ):
                    connection.execute(sql.SQL(statement).format(**parts))
            names.append(role)
    return names
