"""Content of mail that was refused takes no room in the database (ACC-02)."""

import smtplib
import ssl

import psycopg
import pytest

from testkit.conditions import wait_until
from testkit.rail import LOGIN, PASSWORD, Rail, account, basics

pytestmark = pytest.mark.timeout(300)

SIZE = 5_000_000


def _submit(rail: Rail) -> int:
    """Submit a large message as alice; the code that it was answered with."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with smtplib.SMTP(*rail.submission, timeout=120) as client:
        client.starttls(context=context)
        client.login(LOGIN, PASSWORD)
        client.mail(LOGIN)
        client.rcpt(LOGIN)
        return client.data(b"From: alice@example.org\r\nSubject: large\r\n\r\n" + (b"x" * 74 + b"\r\n") * (SIZE // 76))[
            0
        ]


def test_large_messages_over_the_daily_limit_leave_nothing_in_the_database_ACC_02(database: str) -> None:
    alice = account("alice", "example-org", "alice", credentials="alice-login", limits={"messagesPerDay": 1})
    documents = [one for one in basics() if one["metadata"]["name"] != "alice"]
    with Rail([*documents, alice], options=("--database-url", database)) as rail:
        assert [_submit(rail) for _ in range(4)] == [250, 452, 452, 452]

        def stored() -> tuple[int, int]:
            with psycopg.connect(database) as connection:
                row = connection.execute(
                    "SELECT count(DISTINCT message_id), sum(length(data)) FROM queue.chunk"
                ).fetchone()
            assert row is not None
            return row[0], row[1]

        wait_until(lambda: stored()[0] == 1, 60, lambda: f"the accepted message alone has content: {stored()}")
        assert SIZE - 100 <= stored()[1] < SIZE + 10_000
