"""What administrators see of the queue and do to it (ADM-01, ADM-02; reference F3, H27, H28)."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

from mailrail.core.revision.revision import Match, ObjectRef, RouteLevel, Rule, Transport, TransportKind
from mailrail.core.route.site import shard
from mailrail.pb.queue.v1 import admin_pb2, types_pb2
from mailrail_queue.admin import changes as admin_changes
from mailrail_queue.admin import hold_rules as admin_hold_rules
from mailrail_queue.admin.administration import Administration
from mailrail_queue.admin.base import CALLER, AdminContext
from mailrail_queue.admin.change_result import ChangeResult, PartlyDone
from mailrail_queue.admin.filters import BadRequest, NotFound, PageTokens, make_place, read_place
from mailrail_queue.admin.listing import RecipientPage
from mailrail_queue.store import leases as lease_store
from mailrail_queue.store import results as result_store
from mailrail_queue.store import waiting as waiting_store
from mailrail_queue.store.connection import Connection, run
from mailrail_queue.store.fencing import Ownership
from mailrail_queue.store.results import Ending

from testkit.conditions import eventually
from testkit.stored_mail import GATEWAY, RELAY, Rig, revision
from testkit.stored_mail import rig as make_rig


class Administrators:
    """An administrator at work on a rig."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.changed: list[set[int]] = []
        self.do = Administration(
            AdminContext(lambda: rig.router, lambda: rig.addresses, rig.notifier, self.changed.append)
        )

    def __getattr__(self, name: str) -> Any:
        parts = (self.do.listing, self.do.changes, self.do.hold_rules, self.do.explainer)
        method = next(getattr(part, name) for part in parts if hasattr(part, name))

        async def asked(*arguments: Any, **more: Any) -> Any:
            answer = await method(self.rig.connection, *arguments, **more)
            if isinstance(answer, RecipientPage):
                assert not answer.incomplete
                return answer.recipients, answer.next_token
            return answer.listed if isinstance(answer, ChangeResult) else answer

        return asked

    async def row(self, identity: int) -> dict[str, Any]:
        cursor = await self.rig.connection.execute("SELECT * FROM recipient WHERE id = %s", (identity,))
        found = await cursor.fetchone()
        assert found is not None
        assert cursor.description is not None
        return {column.name: value for column, value in zip(cursor.description, found, strict=True)}


@pytest.fixture
async def admin(database_for: Callable[..., str]) -> AsyncIterator[Administrators]:
    async with make_rig(database_for("queue")) as rig:
        yield Administrators(rig)


def only(*ids: int) -> admin_pb2.Filter:
    return admin_pb2.Filter(recipient_ids=ids)


async def listed(admin: Administrators, **fields: Any) -> list[str]:
    found, token = await admin.recipients(admin_pb2.Filter(**fields), 0, "")
    assert token == ""
    return sorted(r.address for r in found)


async def test_a_filter_is_the_and_of_what_is_set_H28(admin: Administrators) -> None:
    await admin.rig.accept("bob@there.example")
    await admin.rig.accept("carl@there.example", mail_from="x@stranger.example", account=None)
    await admin.rig.accept("dora@relayed.example", hold="look")
    everyone = ["bob@there.example", "carl@there.example", "dora@relayed.example"]
    assert await listed(admin) == everyone
    assert await listed(admin, to="THERE") == everyone[:2]
    assert await listed(admin, to="there", **{"from": "Stranger"}) == [everyone[1]]
    assert await listed(admin, to="dora", **{"from": "stranger"}) == []
    assert await listed(admin, account="mail/alice") == [everyone[0], everyone[2]]
    assert await listed(admin, from_domain="stranger.EXAMPLE") == [everyone[1]]
    assert await listed(admin, to_domain="there.example") == everyone[:2]
    assert await listed(admin, to_domain="ere.example") == []
    assert await listed(admin, on_hold=True) == [everyone[2]]
    assert await listed(admin, on_hold=False) == everyone[:2]
    assert await listed(admin, submitted_only=True) == [everyone[0], everyone[2]]
    assert await listed(admin, to="100%_'; --") == []


async def test_one_that_cannot_be_failed_is_no_reason_to_leave_the_others_ADM_02(admin: Administrators) -> None:
    for name in ("ann", "bad", "carl"):
        await admin.rig.accept(f"{name}@there.example")
    await admin.rig.connection.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF NEW.address LIKE 'bad%' THEN RAISE EXCEPTION 'this row is refused' USING ERRCODE = '22000'; END IF;"
        " RETURN NEW; END $$"
    )
    await admin.rig.connection.execute(
        "CREATE TRIGGER refuse BEFORE INSERT ON history FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    done = await admin.fail(admin_pb2.Filter(all=True), "enough")
    assert len(done) == 2
    assert await admin.rig.rows("SELECT address, hold_reason FROM recipient WHERE held_since IS NOT NULL") == [
        ("bad@there.example", "the requested change failed: this row is refused")
    ]
    assert [row[0] for row in await admin.rig.rows("SELECT address FROM history ORDER BY 1")] == [
        "ann@there.example",
        "carl@there.example",
    ]


async def test_what_cannot_be_read_is_listed_and_shown_all_the_same(admin: Administrators) -> None:
    (bob,) = await admin.rig.accept("bob@there.example")
    await admin.rig.connection.execute(r"UPDATE recipient SET envelope_recipient = '\xff', last_attempt = '\xff'")
    await admin.rig.connection.execute(r"UPDATE message SET envelope = '\xff'")
    await admin.rig.connection.execute(r"INSERT INTO attempt (recipient_id, data) VALUES (%s, '\xff')", (bob.id,))
    await admin.rig.connection.execute("UPDATE recipient SET has_attempts = true WHERE id = %s", (bob.id,))
    ((found,), _) = await admin.recipients(admin_pb2.Filter(), 0, "")
    assert (found.address, found.last.reason) == ("bob@there.example", "the stored attempt is corrupt")
    shown = await admin.message(bob.message_id)
    assert [a.reason for a in shown.recipients[0].attempts] == ["the stored attempt is corrupt"]
    await admin.fail(only(bob.id), "enough")
    assert [r.address for r in (await admin.history(admin_pb2.Filter(), 0, ""))[0]] == ["bob@there.example"]


@pytest.mark.parametrize("account", ["alice@example.org", "alice", "mail/", "/alice", "mail/alice/x"])
async def test_a_login_in_place_of_an_account_is_refused_and_not_matched_with_nothing(
    admin: Administrators, account: str
) -> None:
    for asked in (
        admin.recipients(admin_pb2.Filter(account=account), 0, ""),
        admin.history(admin_pb2.Filter(account=account), 0, ""),
        admin.create(admin_pb2.HoldRule(account=account)),
    ):
        with pytest.raises(BadRequest, match="is not the name of a MailAccount; write NAMESPACE/NAME"):
            await asked


async def test_times_are_compared_by_instant_H17(admin: Administrators) -> None:
    await admin.rig.accept("bob@there.example")
    wanted = admin_pb2.Filter()
    wanted.queued_before.FromDatetime(datetime.now(UTC) + timedelta(hours=1))
    wanted.due_after.FromDatetime(datetime.now(UTC) - timedelta(hours=1))
    assert len((await admin.recipients(wanted, 0, ""))[0]) == 1
    wanted.queued_before.FromDatetime(datetime.now(UTC) - timedelta(hours=1))
    assert (await admin.recipients(wanted, 0, ""))[0] == []


async def test_a_list_goes_by_pages_with_running_attempts_first(admin: Administrators) -> None:
    waiting = [p.id for i in range(5) for p in await admin.rig.accept(f"w{i}@there.example")]
    leased = [p.id for i in range(3) for p in await admin.rig.accept(f"l{i}@there.example", token=100 + i)]
    seen: list[int] = []
    token, pages = "", 0
    while True:
        found, token = await admin.recipients(admin_pb2.Filter(), 3, token)
        seen += [r.id for r in found]
        pages += 1
        if not token:
            break
    assert sorted(seen[:3]) == leased
    assert sorted(seen[3:]) == waiting
    assert pages == 3


async def test_a_listed_recipient_says_what_an_administrator_wants_to_know(admin: Administrators) -> None:
    (bob,) = await admin.rig.accept("bob@there.example", hold="hold rule 1")
    ((found,), _) = await admin.recipients(only(bob.id), 0, "")
    assert (found.address, found.mail_from, found.subject) == ("bob@there.example", "alice@here.example", "hello")
    assert (found.on_hold, found.hold_reason, found.site) == (True, "hold rule 1", "domain:there.example")
    assert found.state == types_pb2.RECIPIENT_STATE_QUEUED
    assert (found.account.namespace, found.account.name) == ("mail", "alice")
    lifetime = found.expires.ToDatetime() - found.queued.ToDatetime()
    assert timedelta(days=5) <= lifetime < timedelta(days=5, minutes=1)


@pytest.mark.parametrize("place", ["x", "W:yesterday:1", "Q:2026-01-01T00:00:00+00:00:1", "W:2026-01-01T00:00:00:1"])
async def test_a_page_token_of_somebody_else_is_refused(admin: Administrators, place: str) -> None:
    for token in (place, PageTokens("recipients").make(place)):
        with pytest.raises(BadRequest, match="the page token is not valid"):
            await admin.recipients(admin_pb2.Filter(), 0, token)
    assert read_place(make_place("W", datetime(2026, 1, 1, tzinfo=UTC), 5), "L")[2] == 5


async def test_a_page_token_is_of_use_for_its_own_list_and_filter_alone(admin: Administrators) -> None:
    for name in ("ann", "bob", "carl"):
        await admin.rig.accept(f"{name}@there.example")
        await admin.rig.accept(f"{name}@relayed.example")
    there = admin_pb2.Filter(to_domain="there.example")
    page, token = await admin.recipients(there, 2, "")
    rest, end = await admin.recipients(there, 2, token)
    assert [r.address[0] for r in (*page, *rest)] == ["a", "b", "c"]
    assert end == ""
    _, sites = await admin.sites(1, "")
    calls = (
        admin.recipients(admin_pb2.Filter(to_domain="relayed.example"), 2, token),
        admin.history(there, 2, token),
        admin.sites(2, token),
        admin.recipients(there, 2, sites),
    )
    for call in calls:
        with pytest.raises(BadRequest, match="of another list or filter: leave it out"):
            await call


CHANGES: list[tuple[str, tuple[Any, ...]]] = [
    ("hold", ("why",)),
    ("unhold", ()),
    ("kick", ()),
    ("set_tls", (1,)),
    ("set_transport", ("mail/relay",)),
    ("fail", ("no",)),
    ("drop", ()),
]


@pytest.mark.parametrize(("call", "arguments"), CHANGES)
async def test_an_empty_filter_changes_nothing(admin: Administrators, call: str, arguments: tuple[Any, ...]) -> None:
    await admin.rig.accept("bob@there.example")
    with pytest.raises(BadRequest, match="empty filter"):
        await getattr(admin, call)(admin_pb2.Filter(), *arguments)


@pytest.mark.parametrize(("call", "arguments"), CHANGES)
async def test_every_change_bumps_the_version_and_wakes_the_owner_ADM_01(
    admin: Administrators, call: str, arguments: tuple[Any, ...]
) -> None:
    (bob,) = await admin.rig.accept("bob@there.example", hold="x" if call == "unhold" else None)
    (change,) = await getattr(admin, call)(only(bob.id), *arguments)
    assert (change.recipient_id, change.state) == (bob.id, admin_pb2.CHANGE_STATE_APPLIED)
    assert admin.changed == [{bob.shard}]
    if call not in ("fail", "drop"):
        assert (await admin.row(bob.id))["version"] == 2


@pytest.mark.parametrize(("call", "arguments"), CHANGES)
async def test_on_a_leased_recipient_a_change_waits_for_the_attempt_ADM_02(
    admin: Administrators, call: str, arguments: tuple[Any, ...]
) -> None:
    (bob,) = await admin.rig.accept("bob@there.example", token=77)
    if call == "unhold":
        await admin.hold(only(bob.id), "first")
        admin.changed.clear()
    (change,) = await getattr(admin, call)(only(bob.id), *arguments)
    assert change.state == admin_pb2.CHANGE_STATE_PENDING
    row = await admin.row(bob.id)
    assert row["token"] == 77  # the attempt goes on
    assert admin.changed == [{bob.shard}]


async def test_a_hold_on_a_leased_recipient_applies_when_its_attempt_ends_ADM_02(admin: Administrators) -> None:
    (bob,) = await admin.rig.accept("bob@there.example", token=77)
    await admin.hold(only(bob.id), "wait")
    await result_store.defer(admin.rig.connection, [result_store.Deferral(bob.id, bob.message_id, 77, 1, 450.0, b"")])
    row = await admin.row(bob.id)
    assert (row["token"], row["held_since"] is not None) == (None, True)
    assert await waiting_store.fetch_due(admin.rig.connection, [(bob.shard, row["site"], 10)]) == []


async def test_a_schedule_on_a_leased_recipient_applies_when_its_attempt_ends_ADM_02(admin: Administrators) -> None:
    (bob,) = await admin.rig.accept("bob@there.example", token=77)
    request = admin_pb2.ScheduleRequest(filter=only(bob.id))
    request.from_now.FromTimedelta(timedelta(hours=7))
    await admin.schedule(request)
    await result_store.defer(admin.rig.connection, [result_store.Deferral(bob.id, bob.message_id, 77, 1, 1.0, b"")])
    due = (await admin.row(bob.id))["due"]
    assert timedelta(hours=6, minutes=59) < due - datetime.now(UTC) < timedelta(hours=7, minutes=1)


async def test_delivered_wins_over_a_request_to_drop_ADM_02(admin: Administrators) -> None:
    (bob,) = await admin.rig.accept("bob@there.example", token=77)
    (change,) = await admin.drop(only(bob.id))
    assert change.state == admin_pb2.CHANGE_STATE_PENDING
    assert (await admin.row(bob.id))["request"] == 2
    done = await result_store.finish(
        admin.rig.connection,
        [Ending(bob.id, bob.message_id, 77, 1, result_store.DELIVERED, types_pb2.OUTCOME_DELIVERED, b"")],
    )
    assert done == {bob.id}


async def test_a_change_and_a_lease_never_both_win_ADM_01(admin: Administrators) -> None:
    (bob,) = await admin.rig.accept("bob@there.example")
    await admin.rig.connection.execute("UPDATE shard SET owner = 'me', epoch = 1")
    ownership = Ownership("me", {bob.shard: 1})
    (seen,) = await waiting_store.live(admin.rig.connection, [bob.id])
    await admin.set_transport(only(bob.id), "mail/relay")
    leased, _ = await lease_store.lease(admin.rig.connection, ownership, 120.0, [(seen, 5, seen.site)])
    assert leased == set()
    (fresh,) = await waiting_store.live(admin.rig.connection, [bob.id])
    leased, _ = await lease_store.lease(admin.rig.connection, ownership, 120.0, [(fresh, 6, fresh.site)])
    assert leased == {bob.id}


async def test_time_on_hold_counts_for_no_lifetime(admin: Administrators) -> None:
    (bob,) = await admin.rig.accept("bob@there.example")
    await admin.hold(only(bob.id), "")
    await admin.rig.connection.execute("UPDATE recipient SET held_since = held_since - interval '3 hours'")
    await admin.unhold(only(bob.id))
    row = await admin.row(bob.id)
    assert 3 * 3600 <= row["uncounted_seconds"] < 3 * 3600 + 60
    assert (row["held_since"], row["hold_reason"]) == (None, None)
    assert await admin.unhold(only(bob.id)) == []


async def test_hold_keeps_the_first_reason(admin: Administrators) -> None:
    (bob,) = await admin.rig.accept("bob@there.example")
    assert len(await admin.hold(only(bob.id), "first")) == 1
    assert await admin.hold(only(bob.id), "second") == []
    assert (await admin.row(bob.id))["hold_reason"] == "first"


async def test_kick_makes_due_and_ends_the_backoff_of_the_site(admin: Administrators) -> None:
    (bob,) = await admin.rig.accept("bob@there.example")
    await admin.rig.connection.execute("UPDATE recipient SET due = now() + interval '5 hours'")
    await admin.rig.connection.execute("DELETE FROM site_due")
    await admin.rig.connection.execute(
        "INSERT INTO site (name, failures, backoff_until) VALUES ('domain:there.example', 3, now() + interval '1 hour')"
    )
    await admin.kick(only(bob.id))
    rows = await admin.rig.rows("SELECT due <= now() FROM recipient")
    assert rows == [(True,)]
    assert await admin.rig.rows("SELECT site, next_due <= now() FROM site_due") == [("domain:there.example", True)]
    assert await admin.rig.rows("SELECT backoff_until <= now() FROM site") == [(True,)]


async def test_no_owner_finds_kicked_mail_due_at_a_site_in_backoff_SHD_05(
    admin: Administrators, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        await admin.rig.accept("bob@there.example")
    await admin.rig.connection.execute("UPDATE recipient SET due = now() + interval '5 hours'")
    await admin.rig.connection.execute(
        "INSERT INTO site (name, failures, backoff_until) VALUES ('domain:there.example', 3, now() + interval '1 hour')"
    )
    seen: list[Any] = []
    monkeypatch.setattr(admin_changes, "BATCH", 1)

    async def watched(connection: Connection, *statement: Any) -> list[Any]:
        rows = await run(connection, *statement)
        async with await psycopg.AsyncConnection.connect(admin.rig.url) as owner:
            cursor = await owner.execute(
                "SELECT FROM queue.recipient WHERE due <= now() AND EXISTS"
                " (SELECT FROM queue.site WHERE backoff_until > now())"
            )
            seen.extend(await cursor.fetchall())
        return rows

    monkeypatch.setattr(admin_changes, "run", watched)
    assert len(await admin.kick(admin_pb2.Filter(to="bob"))) == 3
    assert seen == []
    assert await admin.rig.rows("SELECT bool_and(due <= now()) FROM recipient") == [(True,)]


async def test_schedule_sets_or_moves_the_time(admin: Administrators) -> None:
    (bob,) = await admin.rig.accept("bob@there.example")
    at = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    request = admin_pb2.ScheduleRequest(filter=only(bob.id))
    request.at.FromDatetime(at)
    await admin.schedule(request)
    assert (await admin.row(bob.id))["due"] == at
    request.from_scheduled.FromTimedelta(-timedelta(hours=2))
    await admin.schedule(request)
    assert (await admin.row(bob.id))["due"] == at - timedelta(hours=2)
    with pytest.raises(BadRequest, match="give a time"):
        await admin.schedule(admin_pb2.ScheduleRequest(filter=only(bob.id)))


async def test_a_transport_must_exist_and_moves_the_recipient_to_its_site_H28(admin: Administrators) -> None:
    (bob,) = await admin.rig.accept("bob@there.example")
    with pytest.raises(BadRequest, match=r"transport mail/nope does not exist; there are: mail/relay"):
        await admin.set_transport(only(bob.id), "mail/nope")
    await admin.set_transport(only(bob.id), "mail/relay")
    row = await admin.row(bob.id)
    assert (row["override_transport"], row["site"]) == ("mail/relay", "transport:mail/relay")
    ((found,), _) = await admin.recipients(admin_pb2.Filter(transport="mail/relay"), 0, "")
    assert found.override_transport.name == "relay"
    await admin.set_transport(only(bob.id), None)
    row = await admin.row(bob.id)
    assert (row["override_transport"], row["site"]) == (None, "domain:there.example")


async def test_however_far_mail_is_put_off_it_can_still_be_listed(admin: Administrators) -> None:
    (bob,) = await admin.rig.accept("bob@there.example")
    (leased,) = await admin.rig.accept("carl@there.example", token=7)
    request = admin_pb2.ScheduleRequest(filter=only(bob.id, leased.id))
    request.at.FromDatetime(datetime(9999, 12, 31, tzinfo=UTC))
    await admin.schedule(request)
    request.from_scheduled.FromTimedelta(timedelta(days=3000))
    await admin.schedule(request)
    found, _ = await admin.recipients(admin_pb2.Filter(), 0, "")
    assert [r.address for r in found] == ["carl@there.example", "bob@there.example"]
    limit = datetime.now(UTC) + timedelta(days=3661)
    assert datetime.now(UTC) < found[1].next_attempt.ToDatetime(UTC) < limit
    assert (await admin.row(leased.id))["due_after_attempt"] < limit


@pytest.mark.parametrize("what", ["hold", "fail"])
async def test_a_change_that_postgres_ends_for_a_deadlock_is_made_all_the_same(
    admin: Administrators, what: str
) -> None:
    (bob,) = await admin.rig.accept("bob@there.example")
    (carl,) = await admin.rig.accept("carl@there.example")
    # Postgres ends ours, once.
    for statement in (
        "CREATE SEQUENCE tries",
        "CREATE FUNCTION circle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF nextval('tries') = 2 THEN RAISE EXCEPTION 'deadlock detected' USING ERRCODE = '40P01'; END IF;"
        " RETURN coalesce(NEW, OLD); END $$",
        "CREATE TRIGGER circle BEFORE UPDATE OR DELETE ON recipient FOR EACH ROW EXECUTE FUNCTION circle()",
    ):
        await admin.rig.connection.execute(statement)
    done = await getattr(admin, what)(only(bob.id, carl.id), "a look")
    assert await admin.rig.rows("SELECT last_value FROM tries") == [(4,)]
    assert [changed.recipient_id for changed in done] == [bob.id, carl.id]
    assert len(await listed(admin, on_hold=True)) == (2 if what == "hold" else 0)


Between = Callable[[int], Awaitable[None]]


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Callable[[Between], None]:
    """Changes go one recipient at a time, and something happens before each."""
    monkeypatch.setattr(admin_changes, "BATCH", 1)
    again, count = admin_changes._again_after_deadlock, itertools.count()

    def use(happens: Between) -> None:
        async def step(transaction: Callable[[], Awaitable[Any]]) -> Any:
            await happens(next(count))
            return await again(transaction)

        monkeypatch.setattr(admin_changes, "_again_after_deadlock", step)

    return use


@pytest.mark.parametrize("what", ["hold", "kick", "set_tls", "drop"])
async def test_mail_that_comes_while_a_change_runs_is_not_meant_ADM_04(
    admin: Administrators, between: Callable[[Between], None], what: str
) -> None:
    first = [p.id for name in ("ann", "bob") for p in await admin.rig.accept(f"{name}@there.example")]

    async def comes(batch: int) -> None:
        if batch == 1:
            await admin.rig.accept("late@there.example")

    between(comes)
    arguments: dict[str, tuple[Any, ...]] = {"hold": ("look",), "set_tls": (types_pb2.TLS_REQUIREMENT_NO,)}
    done = await getattr(admin, what)(admin_pb2.Filter(all=True), *arguments.get(what, ()))
    assert [changed.recipient_id for changed in done] == first
    assert await admin.rig.rows("SELECT version FROM recipient WHERE address LIKE 'late@%%'") == [(1,)]


async def test_a_change_that_ends_in_the_middle_says_how_far_it_came_and_wakes_the_owners_ADM_04(
    admin: Administrators, between: Callable[[Between], None]
) -> None:
    first = [p.id for n in range(4) for p in await admin.rig.accept(f"user{n}@there.example")]

    async def breaks(batch: int) -> None:
        if batch == 2:
            raise psycopg.OperationalError("the server closed the connection")

    between(breaks)
    with pytest.raises(PartlyDone, match="2 recipients were changed before") as caught:
        await admin.hold(admin_pb2.Filter(all=True), "look")
    assert [changed.recipient_id for changed in caught.value.result.listed] == first[:2]
    assert admin.changed == [{shard("there.example")}]


async def test_a_move_that_was_cut_off_goes_on_where_it_stopped_when_it_is_repeated_ADM_04(
    admin: Administrators, between: Callable[[Between], None]
) -> None:
    for n in range(4):
        await admin.rig.accept(f"user{n}@there.example")
    await admin.rig.connection.execute("UPDATE recipient SET due = '2026-01-01 00:00+00'")
    broken = True

    async def breaks(batch: int) -> None:
        if broken and batch == 2:
            raise psycopg.OperationalError("the server closed the connection")
        await admin.rig.accept("late@there.example")

    between(breaks)
    request = admin_pb2.ScheduleRequest(filter=admin_pb2.Filter(to="user"), operation_id=b"o" * 16)
    request.from_scheduled.FromTimedelta(timedelta(hours=1))
    with pytest.raises(PartlyDone):
        await admin.schedule(request)
    broken = False
    for _ in range(2):  # and once more, when all is done
        answer = await admin.do.changes.schedule(admin.rig.connection, request)
        assert (answer.count.recipients, answer.count.truncated) == (4, True)
        rows = await admin.rig.rows(
            "SELECT DISTINCT extract(hour FROM due)::int FROM recipient WHERE address LIKE 'user%%'"
        )
        assert rows == [(1,)]
    request.from_scheduled.FromTimedelta(timedelta(hours=2))
    with pytest.raises(BadRequest, match="another request"):
        await admin.schedule(request)


async def test_a_change_leaves_in_the_log_who_asked_for_what_and_how_many_it_met_ADM_04(admin: Administrators) -> None:
    await admin.rig.accept("bob@there.example")
    CALLER.set("cli")
    with capture_logs() as lines:
        await admin.drop(admin_pb2.Filter(to="bob@"))
    (line,) = [line for line in lines if line["event"] == "an administrator changed recipients"]
    assert (line["change"], line["by"], line["filter"], line["recipients"], line["finished"]) == (
        "drop",
        "cli",
        'to: "bob@"',
        1,
        True,
    )


async def test_of_what_is_failed_after_a_drop_that_is_not_granted_yet_nobody_is_told_ADM_02(
    admin: Administrators,
) -> None:
    (bob,) = await admin.rig.accept("bob@there.example")
    # As a drop leaves it whose attempt ended a moment ago: its owner is about to grant it.
    await admin.rig.connection.execute("UPDATE recipient SET request = 2 WHERE id = %s", (bob.id,))
    await admin.fail(only(bob.id), "enough")
    ((found,), _) = await admin.history(admin_pb2.Filter(), 0, "")
    assert found.state == types_pb2.RECIPIENT_STATE_CANCELLED
    assert await listed(admin) == [], "a notification"


async def test_the_tls_requirement_of_queued_mail_can_be_changed(admin: Administrators) -> None:
    (bob,) = await admin.rig.accept("bob@there.example")
    await admin.set_tls(only(bob.id), types_pb2.TLS_REQUIREMENT_NO)
    assert (await admin.row(bob.id))["tls_requirement"] == types_pb2.TLS_REQUIREMENT_NO
    with pytest.raises(BadRequest):
        await admin.set_tls(only(bob.id), 9)


async def test_fail_ends_a_recipient_with_one_dsn_and_drop_with_none_ADM_02(admin: Administrators) -> None:
    bob, carl, dora = await admin.rig.accept("bob@there.example", "carl@there.example", "dora@there.example")
    await admin.fail(only(bob.id, carl.id), "not allowed here")
    await admin.drop(only(dora.id))
    found, _ = await admin.history(admin_pb2.Filter(), 0, "")
    states = {r.address: (r.state, r.outcome) for r in found}
    assert states["bob@there.example"] == (types_pb2.RECIPIENT_STATE_FAILED, types_pb2.OUTCOME_FAILED)
    assert states["dora@there.example"] == (types_pb2.RECIPIENT_STATE_CANCELLED, types_pb2.OUTCOME_CANCELLED)
    ((body,),) = await admin.rig.rows("SELECT body FROM message WHERE account = 'mail/postmaster'")
    assert b"not allowed here" in body
    assert b"bob@there.example" in body
    assert b"carl@there.example" in body
    assert b"dora" not in body.split(b"rfc822-headers")[0]


async def test_changes_go_by_batches_over_all_that_a_filter_finds(admin: Administrators) -> None:
    ids = [p.id for _ in range(13) for p in await admin.rig.accept(*(f"r{i}@there.example" for i in range(90)))]
    changes = await admin.hold(admin_pb2.Filter(all=True), "stop")
    assert sorted(c.recipient_id for c in changes) == ids
    dropped = await admin.drop(admin_pb2.Filter(on_hold=True))
    assert len(dropped) == len(ids) == 1170
    assert await admin.rig.rows("SELECT count(*) FROM recipient") == [(0,)]


async def test_a_hold_rule_holds_what_is_queued_and_what_comes_and_its_end_leaves_holds_H27(
    admin: Administrators,
) -> None:
    (bob,) = await admin.rig.accept("bob@there.example")
    (null,) = await admin.rig.accept("carl@other.example", mail_from="", account=None)
    rule, held = await admin.create(admin_pb2.HoldRule(to_domain="There.Example", comment="look"))
    assert (held, rule.to_domain) == (1, "there.example")
    assert (await admin.row(bob.id))["hold_reason"] == f"hold rule {rule.id}: look"
    assert (await admin.row(null.id))["held_since"] is None
    assert await admin.rig.rows("SELECT version FROM hold_version") == [(1,)]
    assert [r.id for r in await admin.all()] == [rule.id]
    await admin.delete(rule.id)
    assert (await admin.row(bob.id))["held_since"] is not None
    with pytest.raises(NotFound):
        await admin.delete(rule.id)


async def test_a_hold_rule_waits_for_mail_that_is_being_stored_without_it_H27(
    database_for: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []

    async def counted(connection: Any, statement: Any, parameters: Any = None) -> Any:
        rows = await run(connection, statement, parameters)
        if "pg_locks" in statement:
            looks.append(len(rows))
        return rows

    monkeypatch.setattr(admin_hold_rules, "run", counted)
    url = database_for("queue")
    async with make_rig(url) as rig, await psycopg.AsyncConnection.connect(url) as storing:
        admin = Administrators(rig)
        await rig.accept("bob@there.example")
        # As the statement does that stores a batch: it has looked at the rules, and its rows are not committed.
        await storing.execute("SELECT version FROM queue.hold_version")
        copy = "(jsonb_populate_record(r, '{\"id\": 1000000}')).*"
        await storing.execute(f"INSERT INTO queue.recipient SELECT {copy} FROM queue.recipient r")
        making = asyncio.create_task(admin.create(admin_pb2.HoldRule(to_domain="there.example")))
        await eventually(lambda: len(looks) > 3)
        assert set(looks) == {1}
        await storing.commit()
        _, held = await making
        assert held == 2


async def test_a_message_is_shown_whole_with_every_attempt(admin: Administrators) -> None:
    bob, carl = await admin.rig.accept("bob@there.example", "carl@there.example", token=7)
    busy = admin.rig.attempt(types_pb2.OUTCOME_DEFERRED, "busy", code=450)
    await result_store.defer(
        admin.rig.connection, [result_store.Deferral(bob.id, bob.message_id, 7, 1, 450.0, busy.SerializeToString())]
    )
    gone = admin.rig.attempt(types_pb2.OUTCOME_FAILED, "gone", code=550)
    await result_store.finish(
        admin.rig.connection,
        [
            Ending(
                carl.id, carl.message_id, 7, 1, result_store.FAILED, types_pb2.OUTCOME_FAILED, gone.SerializeToString()
            )
        ],
    )
    whole = await admin.message(bob.message_id)
    assert whole.envelope.subject == "hello"
    shown = {t.recipient.address: [list(a.reply.lines) for a in t.attempts] for t in whole.recipients}
    assert shown == {"bob@there.example": [["busy"]], "carl@there.example": [["gone"]]}
    with pytest.raises(NotFound):
        await admin.message(b"\0" * 16)
    with pytest.raises(BadRequest):
        await admin.message(b"short")


async def test_history_goes_newest_first_by_pages_FIN_03(admin: Administrators) -> None:
    recipients = [p for i in range(5) for p in await admin.rig.accept(f"r{i}@there.example")]
    for recipient in recipients:
        await result_store.finish(
            admin.rig.connection,
            [Ending(recipient.id, recipient.message_id, 0, 1, result_store.DELIVERED, types_pb2.OUTCOME_RELAYED, None)],
        )
    first, token = await admin.history(admin_pb2.Filter(to="there"), 3, "")
    rest, end = await admin.history(admin_pb2.Filter(to="there"), 3, token)
    assert [r.address for r in (*first, *rest)] == [f"r{i}@there.example" for i in reversed(range(5))]
    assert end == ""
    assert await admin.history(admin_pb2.Filter(from_domain="here.example", to="r1@"), 0, "") != ([], "")
    with pytest.raises(BadRequest):
        await admin.history(admin_pb2.Filter(transport="mail/relay"), 0, "")


async def test_stats_count_what_is_there(admin: Administrators) -> None:
    await admin.rig.accept("bob@there.example", "carl@there.example")
    await admin.rig.accept("dora@there.example", hold="x")
    await admin.rig.accept("eve@there.example", token=5)
    found = await admin.stats()
    assert (found.queued, found.due, found.leased, found.on_hold, found.messages) == (4, 2, 1, 1, 3)
    assert found.bytes > 0
    assert found.HasField("oldest")


async def test_sites_show_what_is_due_in_flight_and_in_backoff_SHD_03(admin: Administrators) -> None:
    await admin.rig.accept("a@there.example", "b@there.example")
    await admin.rig.accept("c@relayed.example")
    await admin.rig.accept("d@flying.example", token=3)
    attempt = admin.rig.attempt(types_pb2.OUTCOME_DEFERRED, "no connection").SerializeToString()
    await admin.rig.connection.execute(
        "INSERT INTO site (name, failures, backoff_until, last_error)"
        " VALUES ('domain:there.example', 2, now() + interval '1 hour', %s)",
        (attempt,),
    )
    first, token = await admin.sites(2, "")
    rest, end = await admin.sites(2, token)
    shown = {s.name: (s.queued, s.in_flight, s.last_error, s.HasField("backoff_until")) for s in (*first, *rest)}
    assert shown == {
        "domain:flying.example": (1, 1, "", False),
        "domain:there.example": (2, 0, "no connection", True),
        "transport:mail/relay": (1, 0, "", False),
    }
    assert end == ""


# --- explain ----------------------------------------------------------------------------------------------------------


def asked(**fields: Any) -> admin_pb2.ExplainRequest:
    return admin_pb2.ExplainRequest(**fields)


async def test_explain_tells_where_a_queued_recipient_goes_and_why(admin: Administrators) -> None:
    (bob,) = await admin.rig.accept("bob@relayed.example")
    answer = await admin.explain(asked(recipient_id=bob.id))
    assert (answer.attempt, answer.site, answer.shard) == (1, "transport:mail/relay", bob.shard)
    assert answer.decision.kind == admin_pb2.RouteDecision.KIND_TRANSPORT
    assert (answer.decision.level, answer.decision.transport.name, answer.decision.route.name) == (
        "global",
        "relay",
        "r",
    )
    (*_, decided) = (tried for tried in answer.tried if tried.level != "security")  # notes on TLS follow
    assert decided.matched
    assert answer.planned[0].attempt == 1
    with pytest.raises(NotFound):
        await admin.explain(asked(recipient_id=999_999))


FOUND = types_pb2.MessageAuthentication(
    results=[types_pb2.AuthenticationResult(method="dmarc", result="fail", domain="example.com", reason="because")],
    action=types_pb2.AUTHENTICATION_ACTION_QUARANTINED,
    author_domains=["example.com"],
    policy_domain="example.com",
    policy="quarantine",
    applied="quarantine",
)


async def test_what_was_found_about_the_sender_is_told_while_mail_waits_and_when_it_is_history(
    admin: Administrators,
) -> None:
    (bob,) = await admin.rig.accept("bob@there.example", account=None, authentication=FOUND)
    assert (await admin.message(bob.message_id)).envelope.authentication == FOUND
    assert (await admin.explain(asked(recipient_id=bob.id))).authentication == FOUND
    await admin.drop(only(bob.id))
    assert await admin.rig.rows("SELECT id FROM recipient") == []
    assert (await admin.message(bob.message_id)).envelope.authentication == FOUND


async def test_where_nobody_looked_who_sent_it_nothing_is_told_and_nothing_stored(admin: Administrators) -> None:
    (bob,) = await admin.rig.accept("bob@there.example")
    assert not (await admin.message(bob.message_id)).envelope.HasField("authentication")
    assert not (await admin.explain(asked(recipient_id=bob.id))).HasField("authentication")
    imagined = await admin.explain(asked(to="bob@there.example"))
    assert not imagined.HasField("authentication")


async def test_explain_answers_for_attempt_n_and_plans_where_the_decision_changes_LSE_05(admin: Administrators) -> None:
    late = Rule(ObjectRef("MailRoute", "mail", "late"), 0, "0", (Match(minimum_attempts=3),), RELAY)
    admin.rig.configure(revision(global_routes=(RouteLevel(GATEWAY, (late,)),)))
    (bob,) = await admin.rig.accept("bob@there.example")
    kinds = [(await admin.explain(asked(recipient_id=bob.id, attempt=n))).decision.kind for n in (1, 3, 4)]
    direct, transport = admin_pb2.RouteDecision.KIND_DIRECT, admin_pb2.RouteDecision.KIND_TRANSPORT
    assert kinds == [direct, direct, transport]
    answer = await admin.explain(asked(recipient_id=bob.id))
    first, second = answer.planned
    assert (first.attempt, first.last_attempt, first.decision.kind) == (1, 3, direct)
    assert (second.attempt, second.decision.kind) == (4, transport)
    minute = 60  # the default schedule: 0, 7.5, 22.5, 52.5 minutes, and the last attempt once 5 days are over
    assert first.last_due.seconds - first.due.seconds == 22.5 * minute
    assert second.due.seconds - first.due.seconds == 52.5 * minute
    assert 5 * 86400 <= second.last_due.seconds - first.due.seconds < 5.5 * 86400


async def test_explain_says_a_decision_that_holds_for_all_attempts_once(admin: Administrators) -> None:
    (bob,) = await admin.rig.accept("bob@relayed.example")
    (planned,) = (await admin.explain(asked(recipient_id=bob.id))).planned
    assert (planned.attempt, planned.decision.transport.name) == (1, "relay")
    assert planned.last_attempt > 10
    (late,) = (await admin.explain(asked(recipient_id=bob.id, attempt=planned.last_attempt + 50))).planned
    assert (late.attempt, late.decision.transport.name) == (planned.last_attempt + 50, "relay")


async def test_explain_answers_for_an_imagined_envelope(admin: Administrators) -> None:
    answer = await admin.explain(asked(**{"from": "alice@here.example", "to": "x@RELAYED.example", "account": "alice"}))
    assert answer.decision.transport.name == "relay"
    own = await admin.explain(asked(to="alice+tag@here.example"))
    assert own.decision.kind == admin_pb2.RouteDecision.KIND_MAILBOX
    nobody = await admin.explain(asked(to="nobody@here.example"))
    assert nobody.decision.kind == admin_pb2.RouteDecision.KIND_UNKNOWN_RECIPIENT
    alias = await admin.explain(asked(to="team@here.example"))
    assert "stands for alice@here.example, carol@there.example" in alias.tried[0].reason
    for bad, why in (
        ({"to": "nonsense"}, "is not an address"),
        ({}, "give a recipient"),
        ({"to": "a@b.org", "account": "zed"}, "no account"),
    ):
        with pytest.raises(BadRequest, match=why):
            await admin.explain(asked(**bad))


async def test_explain_says_that_a_site_is_in_backoff(admin: Administrators) -> None:
    (bob,) = await admin.rig.accept("bob@there.example")
    await admin.rig.connection.execute(
        "INSERT INTO site (name, failures, backoff_until) VALUES ('domain:there.example', 1, now() + interval '1 hour')"
    )
    assert (await admin.explain(asked(recipient_id=bob.id))).HasField("site_backoff_until")


async def test_explain_says_that_the_proxy_of_a_site_is_in_backoff_as_a_whole(admin: Administrators) -> None:
    ref = ObjectRef("MailTransport", "mail", "tor")
    proxy = Transport(ref, TransportKind.SOCKS, proxy_host="127.0.0.1", proxy_port=1)
    rule = Rule(ObjectRef("MailRoute", "mail", "r"), 0, "0", (Match(to_domains=("there.example",)),), ref, False)
    base = revision()
    admin.rig.configure(
        replace(base, transports=(*base.transports, proxy), global_routes=(RouteLevel(GATEWAY, (rule,)),))
    )
    (bob,) = await admin.rig.accept("bob@there.example")
    answer = await admin.explain(asked(recipient_id=bob.id))
    assert (answer.site, answer.HasField("site_backoff_until")) == ("proxy:mail/tor:there.example", False)
    await admin.rig.connection.execute(
        "INSERT INTO site (name, failures, backoff_until) VALUES ('transport:mail/tor', 1, now() + interval '1 hour')"
    )
    assert (await admin.explain(asked(recipient_id=bob.id))).HasField("site_backoff_until")


async def test_explain_of_a_missing_transport_says_deferred(admin: Administrators) -> None:
    rule = Rule(ObjectRef("MailRoute", "mail", "r"), 0, "0", (), replace(RELAY, name="gone"), missing=True)
    admin.rig.configure(revision(global_routes=(RouteLevel(GATEWAY, (rule,)),)))
    answer = await admin.explain(asked(to="x@y.example"))
    assert answer.decision.kind == admin_pb2.RouteDecision.KIND_DEFERRED
    assert answer.decision.transport.name == "gone"
    assert answer.site == "missing:mail/gone"
