"""Which recipients would go another way under another configuration, before it is published (DIF-03, DIF-04).

The queue is walked by id, in stretches of a statement and a transaction each. Postgres gathers a stretch by all that
routing looks at, and each bunch is decided once under both configurations.
"""

# ruff: noqa: E501 -- statements keep their own lines, and are put together from constants of our own alone

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, LiteralString

from mailrail.core.revision.revision import UnreadableRevision, decode
from mailrail.core.route.decision import RouteDecision
from mailrail.core.route.difference import Difference, DifferenceGroup
from mailrail.core.search import SearchPart
from mailrail.pb.queue.v1 import admin_pb2, types_pb2
from mailrail_queue.admin.base import AdminContext
from mailrail_queue.admin.explain import decision_pb
from mailrail_queue.admin.filters import BadRequest, Where, asked, live_where, seconds
from mailrail_queue.routing.router import PROBE, RecipientFacts, Router
from mailrail_queue.store.connection import Connection, Row, run

STRETCH: Final = 50_000
"""Recipients of one statement."""
BUDGET: Final = 15.0
"""Seconds that are looked, unless the call says otherwise."""
MOST_BUDGET: Final = 300.0
"""Seconds that a call can ask for."""
_TOLD_EVERY: Final = 1.0
"""Seconds between two answers about a walk that goes on."""

_ABOUT: Final[LiteralString] = "SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = 'recipient'::regclass"
_END: Final[LiteralString] = "SELECT id FROM recipient WHERE id > %(past)s ORDER BY id OFFSET %(skip)s LIMIT 1"
_BUNCHES: Final[
    LiteralString
] = """SELECT domain, from_domain, account, ours, is_local, gateway, override_transport, lacking, attempts, count(*), (array_agg(id ORDER BY id))[1:3]
    FROM (SELECT r.id, CASE WHEN strpos(r.address, '@') > 1 THEN lower(split_part(r.address, '@', -1)) ELSE '' END AS domain, r.from_domain, r.account,
                 r.origin IN (%(submission)s, %(system)s) AS ours, r.is_local, r.gateway, r.override_transport, r.lacking, r.attempts
          FROM recipient r WHERE r.id > %(past)s AND r.id <= %(up_to)s AND r.token IS NULL AND """
_GATHERED: Final[LiteralString] = (
    ") w GROUP BY domain, from_domain, account, ours, is_local, gateway, override_transport, lacking, attempts"
)

Use = Callable[[], AbstractAsyncContextManager[Connection]]


class AnotherRuns(Exception):
    """Another comparison is under way."""


class Differences:
    """Comparing two configurations over the queue; one comparison at a time."""

    def __init__(self, context: AdminContext, *, timer: Callable[[], float] = time.monotonic) -> None:
        """`timer`: seconds that only grow."""
        self._router, self._clock, self._timer = context.router, context.clock, timer
        self._running = False

    async def compare(
        self, use: Use, request: admin_pb2.DiffRevisionRequest
    ) -> AsyncGenerator[admin_pb2.DiffRevisionResponse]:
        """What was found, again and again while it goes on; the last answer is `final`. Raises BadRequest, AnotherRuns,
        psycopg.Error."""
        budget = seconds(request.budget) if request.HasField("budget") else BUDGET
        if not 0 < budget <= MOST_BUDGET:
            raise BadRequest(f"the budget is more than 0 and at most {MOST_BUDGET:g} seconds")
        where = live_where(request.filter, asked(request.filter, SearchPart.QUEUE, self._clock()))
        if self._running:
            raise AnotherRuns("another comparison is under way: try again when it has ended")
        self._running = True
        try:
            head = self._router()
            candidate = await asyncio.to_thread(_router, request.candidate)
            base = await asyncio.to_thread(_router, request.base) if request.base else head
            until = self._timer() + budget
            async for answer in _walk(use, where, base, candidate, self._timer, until):
                answer.config_revision = head.number
                yield answer
        finally:
            self._running = False


def _router(body: bytes) -> Router:
    try:
        return Router(0, decode(body))
    except UnreadableRevision as error:
        raise BadRequest(f"the configuration cannot be read: {error}") from error


async def _walk(
    use: Use, where: Where, base: Router, candidate: Router, timer: Callable[[], float], until: float
) -> AsyncIterator[admin_pb2.DiffRevisionResponse]:
    found = Difference()
    told, past, ended = timer(), 0, False
    bunches: LiteralString = _BUNCHES + where.text + _GATHERED
    origins = {"submission": types_pb2.ORIGIN_SUBMISSION, "system": types_pb2.ORIGIN_SYSTEM}
    async with use() as connection:
        ((about,),) = await run(connection, _ABOUT)
    walked = 0
    while not ended and timer() < until:
        async with use() as connection:  # of each stretch: nobody waits for a connection all the time
            ends = await run(connection, _END, {"past": past, "skip": STRETCH - 1})
            up_to = ends[0][0] if ends else 2**63 - 1
            bounds = {"past": past, "up_to": up_to, **origins}
            rows = await run(connection, bunches, {**where.parameters, **bounds})
        complete = await asyncio.to_thread(_decide, found, base, candidate, rows, lambda: timer() >= until)
        if not complete:
            break
        past, ended, walked = up_to, not ends, walked + STRETCH
        if not ended and timer() >= told + _TOLD_EVERY:
            told = timer()
            yield _answer(found, max(about, walked))
    answer = _answer(found, max(about, found.looked_at) if not ended else found.looked_at)
    answer.complete, answer.final = ended, True
    yield answer


def _decide(
    found: Difference, base: Router, candidate: Router, rows: Sequence[Row], is_over: Callable[[], bool]
) -> bool:
    """Decide each bunch twice. False: the time is over before all were."""
    for number, row in enumerate(rows):
        if number % 100 == 0 and is_over():
            return False
        facts = RecipientFacts(
            row[0], row[1], row[2], row[3], row[4], row[5], row[6], bytes(row[7]) if row[7] else None
        )
        attempts, count, samples = row[8], row[9], row[10]
        found.add(_decision(base, facts, attempts), _decision(candidate, facts, attempts), facts.domain, count, samples)
    return True


def _decision(router: Router, facts: RecipientFacts, attempts: int) -> RouteDecision:
    return PROBE if facts.is_probe else router.table.evaluate(router.envelope(facts), attempts)


def _answer(found: Difference, about: int) -> admin_pb2.DiffRevisionResponse:
    return admin_pb2.DiffRevisionResponse(
        looked_at=found.looked_at,
        of_about=about,
        unchanged=found.unchanged,
        deferred_new=found.deferred_new,
        undeliverable_new=found.undeliverable_new,
        ungrouped=found.ungrouped,
        groups=[_group(group) for group in found.groups],
    )


def _group(group: DifferenceGroup) -> admin_pb2.DiffGroup:
    top: list[Any] = group.domains.most_common(5)
    return admin_pb2.DiffGroup(
        before=decision_pb(group.before),
        after=decision_pb(group.after),
        recipients=group.recipients,
        domains=[admin_pb2.DomainCount(domain=domain, recipients=count) for domain, count in top],
        domain_count=len(group.domains),
        samples=group.samples,
    )
