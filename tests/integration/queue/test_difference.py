"""Which recipients would go another way, over a real queue, against a decision for each of them (DIF-03, DIF-04)."""

# ruff: noqa: E501 -- statements keep their own lines

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

import pytest

from mailrail.core.revision.revision import (
    Match,
    ObjectRef,
    Revision,
    RouteLevel,
    Rule,
    Transport,
    TransportKind,
    encode,
)
from mailrail.core.route.difference import way_of
from mailrail.core.route.site import shard
from mailrail.pb.queue.v1 import admin_pb2
from mailrail_queue.admin import difference
from mailrail_queue.admin.base import AdminContext
from mailrail_queue.admin.difference import AnotherRuns, Differences
from mailrail_queue.admin.filters import BadRequest
from mailrail_queue.routing.router import RecipientFacts, Router
from mailrail_queue.store.connection import Connection

from testkit.stored_mail import GATEWAY, RELAY, Rig, revision
from testkit.stored_mail import rig as make_rig

OTHER = ObjectRef("MailTransport", "mail", "other")
GONE = ObjectRef("MailTransport", "mail", "gone")
REFUSE = ObjectRef("MailTransport", "mail", "refuse")


def _rule(index: int, match: Match, transport: ObjectRef) -> Rule:
    return Rule(ObjectRef("MailRoute", "mail", "r"), index, str(index), (match,), transport)


CANDIDATE = revision(
    transports=(
        Transport(RELAY, TransportKind.SMTP, host="relay.example", port=25),
        Transport(OTHER, TransportKind.SMTP, host="other.example", port=25),
        Transport(REFUSE, TransportKind.FAIL, code=550, text="no"),
    ),
    global_routes=(
        RouteLevel(
            GATEWAY,
            (
                _rule(0, Match(("d1.example",)), OTHER),
                _rule(1, Match(("d2.example",)), GONE),
                _rule(2, Match(("d3.example",)), REFUSE),
                _rule(3, Match(minimum_attempts=3), OTHER),
                _rule(4, Match(("relayed.example",)), RELAY),
            ),
        ),
    ),
)


class Compared:
    """A queue whose mail is compared."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.context = AdminContext(lambda: rig.router, lambda: rig.addresses, rig.notifier, lambda _: None)
        self.differences = Differences(self.context)

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Connection]:
        yield self.rig.connection

    async def ask(self, candidate: Revision = CANDIDATE, where: str = "") -> list[admin_pb2.DiffRevisionResponse]:
        request = admin_pb2.DiffRevisionRequest(candidate=encode(candidate), filter=admin_pb2.Filter(where=where))
        request.budget.FromSeconds(300)  # a busy machine makes nobody stop early
        async with aclosing(self.differences.compare(self.use, request)) as answers:
            return [answer async for answer in answers]


@pytest.fixture
async def mail(database_for: Callable[..., str]) -> AsyncIterator[Compared]:
    async with make_rig(database_for("queue")) as rig:
        await _fill(rig)
        yield Compared(rig)


DOMAINS = ("d1.example", "d2.example", "d3.example", "d4.example", "relayed.example", "here.example")


async def _fill(rig: Rig, count: int = 3000) -> None:
    """Recipients of all kinds; some have an attempt under way."""
    dice = random.Random(7)  # no secret
    async with rig.connection.cursor() as cursor:
        for number in range(1, count + 1):
            domain = dice.choice(DOMAINS)
            token = number if dice.random() < 0.05 else None
            await cursor.execute(
                "INSERT INTO recipient (id, message_id, shard, site, due, token, lease_until, attempts, origin, address, gateway, account,"
                " from_domain, is_local, override_transport, envelope_recipient)"
                " VALUES (%s, gen_random_uuid(), %s, 'x', now(), %s, CASE WHEN %s::bigint IS NULL THEN NULL ELSE now() END, %s, %s, %s,"
                " 'mail/main', %s, %s, %s, %s, '')",
                (
                    number, shard(domain), token, token, dice.randrange(5), dice.randrange(1, 4),
                    f"u{number}@{domain}" if dice.random() < 0.99 else "Postmaster",
                    dice.choice((None, "mail/alice")), dice.choice(("", "here.example", "from.example")),
                    domain == "here.example", dice.choice((None, None, None, "mail/relay")),
                ),
            )  # fmt: skip


async def brute_force(compared: Compared, candidate: Revision) -> tuple[int, Counter[tuple[object, object]]]:
    """(unchanged, recipients by their ways before and after), each recipient decided for itself."""
    before, after = compared.rig.router, Router(2, candidate)
    unchanged, ways = 0, Counter[tuple[object, object]]()
    for address, from_domain, account, origin, is_local, gateway, own, attempts in await compared.rig.rows(
        "SELECT address, from_domain, account, origin, is_local, gateway, override_transport, attempts FROM recipient"
        " WHERE token IS NULL"
    ):
        domain = address.partition("@")[2]
        facts = RecipientFacts(domain, from_domain, account, origin != 1, is_local, gateway, own)
        old, new = (way_of(router.table.evaluate(router.envelope(facts), attempts)) for router in (before, after))
        if old == new:
            unchanged += 1
        else:
            ways[old, new] += 1
    return unchanged, ways


@pytest.mark.parametrize("stretch", [50_000, 170])
async def test_the_groups_are_what_a_decision_for_each_recipient_gives_DIF_03(
    mail: Compared, stretch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(difference, "STRETCH", stretch)
    monkeypatch.setattr(difference, "_TOLD_EVERY", 0.0)
    unchanged, ways = await brute_force(mail, CANDIDATE)
    *others, found = await mail.ask()
    assert (found.complete, found.final, found.unchanged) == (True, True, unchanged)
    assert found.looked_at == found.of_about == unchanged + ways.total()
    assert sum(group.recipients for group in found.groups) == ways.total()
    assert Counter(group.recipients for group in found.groups).total() >= len(ways)
    by_kind = Counter[int]()
    for group in found.groups:
        by_kind[group.after.kind] += group.recipients
        assert len(group.samples) == min(3, group.recipients)
    assert found.deferred_new == by_kind[admin_pb2.RouteDecision.KIND_DEFERRED] > 0
    assert 0 < found.undeliverable_new < found.looked_at
    assert found.groups[0].after.kind == admin_pb2.RouteDecision.KIND_DEFERRED, "what would wait stands first"
    assert bool(others) is (stretch == 170), "it tells how far it is"
    assert not any(answer.final for answer in others)


async def test_the_same_configuration_changes_nothing_and_a_query_narrows_what_is_looked_at(mail: Compared) -> None:
    (same,) = await mail.ask(revision())
    assert (same.unchanged, list(same.groups)) == (same.looked_at, [])
    (some,) = await mail.ask(where="domain:d1.example")
    assert 0 < some.looked_at < same.looked_at
    assert {one.domain for group in some.groups for one in group.domains} == {"d1.example"}


async def test_what_is_compared_with_can_be_another_than_what_runs(mail: Compared) -> None:
    request = admin_pb2.DiffRevisionRequest(candidate=encode(CANDIDATE), base=encode(CANDIDATE))
    found = [answer async for answer in mail.differences.compare(mail.use, request)]
    assert found[-1].unchanged == found[-1].looked_at > 0


async def test_when_the_time_is_over_it_says_how_much_was_looked_at_DIF_04(
    mail: Compared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(difference, "STRETCH", 100)
    clock = iter(range(10**6))
    differences = Differences(mail.context, timer=lambda: next(clock))
    request = admin_pb2.DiffRevisionRequest(candidate=encode(CANDIDATE))
    request.budget.FromSeconds(20)
    answers = [answer async for answer in differences.compare(mail.use, request)]
    assert (answers[-1].complete, answers[-1].final) == (False, True)
    assert 0 < answers[-1].looked_at < 2700


async def test_one_comparison_runs_at_a_time_and_one_that_is_left_makes_room_DIF_04(
    mail: Compared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(difference, "STRETCH", 100)
    monkeypatch.setattr(difference, "_TOLD_EVERY", 0.0)
    request = admin_pb2.DiffRevisionRequest(candidate=encode(CANDIDATE))
    request.budget.FromSeconds(300)
    async with aclosing(mail.differences.compare(mail.use, request)) as answers:
        await anext(answers)
        with pytest.raises(AnotherRuns, match="try again"):
            await mail.ask()
    assert (await mail.ask())[-1].complete


@pytest.mark.parametrize("seconds", [-1, 0, 301])
async def test_a_budget_that_is_none_is_refused_DIF_04(mail: Compared, seconds: int) -> None:
    request = admin_pb2.DiffRevisionRequest(candidate=encode(CANDIDATE))
    request.budget.FromSeconds(seconds)
    with pytest.raises(BadRequest, match="at most 300 seconds"):
        await anext(mail.differences.compare(mail.use, request))


async def test_what_is_no_configuration_is_refused(mail: Compared) -> None:
    with pytest.raises(BadRequest, match="cannot be read"):
        await anext(mail.differences.compare(mail.use, admin_pb2.DiffRevisionRequest(candidate=b"{")))
