"""Hold rules: what matches is put on hold, from its commit on and what is queued already (reference H27)."""

# ruff: noqa: E501 -- statements keep their own lines

import asyncio
import time
from datetime import datetime
from typing import Final, LiteralString

from mailrail.core.delivery.hold import HoldRule
from mailrail.kit import log
from mailrail.kit.postgres import storable
from mailrail.pb.queue.v1 import admin_pb2
from mailrail_queue.admin.base import CALLER, stamp
from mailrail_queue.admin.changes import RecipientChanges
from mailrail_queue.admin.filters import NotFound, domain_argument, object_argument
from mailrail_queue.store.connection import Connection, run
from mailrail_queue.store.hold_rules import read_hold_rules

_PATIENCE = 30.0
"""Seconds that a transaction which stores mail is waited for: no statement of ours lasts longer."""


class HoldRuleChanges:
    """Making and removing hold rules."""

    def __init__(self, changes: RecipientChanges) -> None:
        self._changes = changes
        self._log = log.get_logger()

    async def create(self, connection: Connection, rule: admin_pb2.HoldRule) -> tuple[admin_pb2.HoldRule, int]:
        """Hold what matches, queued or to come (reference H27). Returns the rule and how many were held."""
        account = object_argument("MailAccount", rule.account) if rule.account else None
        from_domain = domain_argument(rule.from_domain) if rule.from_domain else None
        to_domain = domain_argument(rule.to_domain) if rule.to_domain else None
        comment = storable(rule.comment[:500])
        async with connection.transaction():
            rows = await run(
                connection,
                "INSERT INTO hold_rule (account, from_domain, to_domain, comment) VALUES (%(account)s, %(from)s, %(to)s, %(comment)s)"
                " RETURNING id, created",
                {"account": account, "from": from_domain, "to": to_domain, "comment": comment},
            )
            await run(connection, "UPDATE hold_version SET version = version + 1")
        identity, created = rows[0]
        # Committed first, so that mail stored from here on sees the rule; what came before is held now. What is being stored
        # at this moment may have looked too early: it is waited for.
        await _writers_end(connection)
        made = HoldRule(identity, account, from_domain, to_domain, comment)
        self._log.info(
            "an administrator made a hold rule",
            by=CALLER.get(),
            rule=identity,
            account=account,
            from_domain=from_domain,
            to_domain=to_domain,
        )
        wanted = admin_pb2.Filter(account=rule.account, from_domain=rule.from_domain, to_domain=rule.to_domain)
        wanted.all = True
        held = await self._changes.hold(connection, wanted, made.reason)
        return _rule_pb(made, created), held.count.recipients

    async def all(self, connection: Connection) -> list[admin_pb2.HoldRule]:
        """All rules, oldest first."""
        found = await read_hold_rules(connection)
        return [_rule_pb(rule, created) for rule, created in zip(found.rules, found.created, strict=True)]

    async def delete(self, connection: Connection, identity: int) -> None:
        """Remove a rule; what it holds stays on hold. Raises NotFound."""
        async with connection.transaction():
            rows = await run(connection, "DELETE FROM hold_rule WHERE id = %(id)s RETURNING id", {"id": identity})
            if not rows:
                raise NotFound(f"hold rule {identity} does not exist")
            await run(connection, "UPDATE hold_version SET version = version + 1")
        self._log.info("an administrator removed a hold rule", by=CALLER.get(), rule=identity)


# A statement has its locks before it looks at anything, and keeps them until it is committed.
_WRITERS: Final[LiteralString] = """SELECT virtualtransaction FROM pg_locks WHERE locktype = 'relation' AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND relation = 'recipient'::regclass AND mode = 'RowExclusiveLock' AND pid <> pg_backend_pid()"""


async def _writers_end(connection: Connection) -> None:
    """Wait until all transactions that write recipients now are over, but not for one that hangs."""
    rows = await run(connection, _WRITERS)
    writers = {row[0] for row in rows}
    end = time.monotonic() + _PATIENCE
    while writers and time.monotonic() < end:
        await asyncio.sleep(0.01)
        writers &= {row[0] for row in await run(connection, _WRITERS)}


def _rule_pb(rule: HoldRule, created: datetime) -> admin_pb2.HoldRule:
    found = admin_pb2.HoldRule(
        id=rule.id,
        account=rule.account or "",
        from_domain=rule.sender_domain or "",
        to_domain=rule.recipient_domain or "",
        comment=rule.comment,
    )
    stamp(found.created, created)
    return found
