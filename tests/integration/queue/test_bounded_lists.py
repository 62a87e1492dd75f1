"""What administrators look at reads a bounded part of the queue, however much is in it (QRY-05)."""

# ruff: noqa: E501 -- statements keep their own lines

from collections.abc import Callable, Iterator
from uuid import UUID

import psycopg
import pytest

from mailrail.kit import migrations
from mailrail.kit import postgres as pools
from mailrail.pb.queue.v1 import admin_pb2
from mailrail_queue.admin import walk
from mailrail_queue.admin.base import AdminContext
from mailrail_queue.admin.changes import BATCH, RecipientChanges
from mailrail_queue.admin.filters import PageTokens
from mailrail_queue.admin.listing import Listing
from mailrail_queue.routing.router import Router
from mailrail_queue.rpc.answering import Rows
from mailrail_queue.store.connection import Connection, Database, run

from testkit.backlog import BOUND, DEAD, Backlog, seed
from testkit.plans import PlanMode, explained
from testkit.postgres import embedded_postgres
from testkit.stored_mail import Rig, revision

RECIPIENTS = 200_000


def _from(text: str) -> admin_pb2.Filter:
    found = admin_pb2.Filter()
    setattr(found, "from", text)
    return found


LED = {
    "all": admin_pb2.Filter(),
    "one domain": admin_pb2.Filter(to_domain="d77.example"),
    "a domain that is absent": admin_pb2.Filter(to_domain="absent.example"),
    "the domain of most": admin_pb2.Filter(to_domain=DEAD),
    "on hold": admin_pb2.Filter(on_hold=True),
    "bound": admin_pb2.Filter(transport=BOUND),
    "bound elsewhere": admin_pb2.Filter(transport="default/absent"),
    **{
        query: admin_pb2.Filter(where=query)
        for query in (
            "domain:d77.example",
            "domain:absent.example",
            "to:user100077@d77.example",
            "site:domain:d77.example",
            "state:held",
            "state:sending",
            "state:sending to:nobody*",
            f"transport:{BOUND}",
            "transport:default/absent",
            "due:>9d",
            "due:>9d account:default/absent",
            "id:7",
            "id:7 domain:d77.example",
            f"msg:{UUID(int=7)}",
            "state:held account:default/absent",
            "domain:d77.example from:nobody*",
        )
    },
}
"""What an index leads to."""
WALKED = {
    "an absent account": admin_pb2.Filter(account="default/absent"),
    "a rare text in the address": admin_pb2.Filter(to="nobody-has-this"),
    "a rare text in the sender": _from("nobody-has-this"),
    "an absent sender's domain": admin_pb2.Filter(from_domain="absent.example"),
    "submitted": admin_pb2.Filter(submitted_only=True),
    **{
        query: admin_pb2.Filter(where=query)
        for query in (
            "account:default/absent",
            "to:*nobody-has-this*",
            "from:*nobody-has-this*",
            "from:nobody@from1.example",
            "msgid:<nobody@example.org>",
            "domain:.absent.example",
            "attempts:>5",
            "origin:submission",
            "queued:>1d",
        )
    },
}
"""What none leads to."""


@pytest.fixture(scope="module")
def full() -> Iterator[str]:
    """A database with RECIPIENTS."""
    with embedded_postgres(autovacuum="off") as server:
        url = server.url("mailrail")
        migrations.migrate(url, migrations.load("queue"))
        with psycopg.connect(url, autocommit=True) as connection:
            seed(connection, Backlog(RECIPIENTS, leased=1000))
            connection.execute("VACUUM ANALYZE")
        yield url


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine makes nobody stop early: what is bounded here is what is read."""
    monkeypatch.setattr(walk, "SECONDS", 600.0)


def a_listing() -> Listing:
    router = Router(1, revision())
    return Listing(AdminContext(lambda: router, lambda: None, None, lambda _: None))  # type: ignore[arg-type, return-value]


@pytest.fixture(params=["force_custom_plan", "force_generic_plan"])
def mode(request: pytest.FixtureRequest) -> PlanMode:
    found: PlanMode = request.param
    return found


async def test_a_filter_that_an_index_leads_to_reads_what_it_finds_and_is_complete_QRY_04(
    full: str, mode: PlanMode
) -> None:
    listing = a_listing()
    for name, wanted in LED.items():
        async with explained(full, mode) as found:
            page = await listing.recipients(found.connection, wanted, 50, "")
        assert sum(plan.buffers for plan in found.plans) < 2_000, name
        assert not page.incomplete, name


async def test_a_filter_that_none_leads_to_reads_a_stretch_and_says_where_it_stopped_QRY_05(
    full: str, mode: PlanMode
) -> None:
    listing = a_listing()
    for name, wanted in WALKED.items():
        async with explained(full, mode) as found:
            page = await listing.recipients(found.connection, wanted, 50, "")
        assert page.incomplete, name
        assert page.next_token, name
        assert page.recipients == [], name
        # A recipient and its message, by index; twice that is what a walk of the whole would have to be told from.
        assert sum(plan.buffers for plan in found.plans) < 8 * walk.ENTRIES, name


async def test_a_walk_goes_on_where_it_stopped_and_finds_each_once(full: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "_STEP", 1_000)
    listing = a_listing()
    wanted = admin_pb2.Filter(account="default/account77")
    async with explained(full, "force_custom_plan") as found:
        connection = found.connection
        cursor = await connection.execute("SELECT id FROM recipient WHERE account = 'default/account77'")
        expected = sorted(row[0] for row in await cursor.fetchall())
        seen: list[int] = []
        token, pages, looked_to = "", 0, []
        while True:
            page = await listing.recipients(connection, wanted, 7, token)
            seen += [one.id for one in page.recipients]
            looked_to += [page.looked_to] if page.looked_to else []
            pages, token = pages + 1, page.next_token
            if not token:
                break
    assert len(expected) == 200
    assert sorted(seen) == expected
    assert looked_to == sorted(looked_to)
    assert pages > len(expected) / 7


async def test_a_walk_begins_no_further_step_after_a_second(full: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "SECONDS", 0.0)
    async with explained(full, "force_custom_plan") as found:
        page = await a_listing().recipients(found.connection, WALKED["an absent account"], 50, "")
    assert page.incomplete
    assert len(found.plans) <= 4


def _changes(connection: Connection) -> RecipientChanges:
    rig = Rig(connection, Router(1, revision()))
    return RecipientChanges(AdminContext(lambda: rig.router, lambda: rig.addresses, rig.notifier, rig.woken.append))


async def test_a_change_of_what_is_named_reads_nothing_else_QRY_04(full: str, mode: PlanMode) -> None:
    async with explained(full, mode) as found:
        ((recipient, message),) = await run(found.connection, "SELECT id, message_id FROM recipient LIMIT 1")
        for wanted, meant in (
            (admin_pb2.Filter(recipient_ids=[recipient]), 1),
            (admin_pb2.Filter(message_ids=[message.bytes]), 1_000),
        ):
            found.plans.clear()
            kicked = await _changes(found.connection).kick(found.connection, wanted)
            assert kicked.count.recipients == meant
            assert not [plan for plan in found.plans if "OFFSET" in plan.statement], "it walks"
            looked = [plan for plan in found.plans if "FOR UPDATE" in plan.statement]
            assert len(looked) == meant // BATCH + 1
            assert sum(plan.buffers for plan in looked) < 200 + 80 * meant


async def test_a_change_by_a_filter_reads_a_stretch_a_statement_and_reaches_all_that_is_meant_QRY_05(
    full: str, mode: PlanMode
) -> None:
    async with explained(full, mode) as found:
        changes = _changes(found.connection)
        none = await changes.hold(found.connection, WALKED["an absent account"], "why")
        assert none.count.recipients == 0
        assert len([plan for plan in found.plans if "FOR UPDATE" in plan.statement]) >= RECIPIENTS // walk.ENTRIES
        assert max(plan.buffers for plan in found.plans) < 2 * walk.ENTRIES
        some = await changes.fail(found.connection, admin_pb2.Filter(account="default/account77"), "why")
        assert some.count.recipients == 200
        most = await changes.hold(found.connection, admin_pb2.Filter(account="default/account78"), "why")
        assert most.count.recipients == 200


async def test_a_page_of_sites_costs_a_page_wherever_it_is(full: str, mode: PlanMode) -> None:
    listing = a_listing()
    seen: list[str] = []
    token = ""
    for _ in range(20):
        async with explained(full, mode) as found:
            sites, token = await listing.sites(found.connection, 50, token)
        seen += [one.name for one in sites]
        assert sum(plan.buffers for plan in found.plans) < 12_000
    assert len(set(seen)) == len(seen) == 1000
    assert seen == sorted(seen)


async def test_of_a_site_with_very_many_recipients_the_list_says_that_there_are_more(full: str) -> None:
    async with explained(full, "force_custom_plan") as found:
        listing = a_listing()
        token = PageTokens("sites").make("domain:de")
        ((dead, *others), _) = await listing.sites(found.connection, 50, token)
    assert dead.name == f"domain:{DEAD}"
    assert dead.queued_at_least
    assert 1_000 <= dead.queued < RECIPIENTS / 2
    assert others == []


async def test_history_is_walked_in_the_same_way(database_for: Callable[..., str]) -> None:
    url = database_for("queue")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO queue.history (finished, id, message_id, state, outcome, attempts, tls_requirement, origin, queued, size, address,"
            " mail_from, site, envelope, envelope_recipient) SELECT now() - n * interval '1 second', n, gen_random_uuid(), 1, 1, 1, 0, 1, now(), 1,"
            " 'user' || n || '@d.example', 's@d.example', 'domain:d.example', '', '' FROM generate_series(1, 60000) n"
        )
        connection.execute("ANALYZE queue.history")
    listing = a_listing()
    wanted = admin_pb2.Filter(to="user59999@")
    async with explained(url, "force_generic_plan") as found:
        first = await listing.history(found.connection, wanted, 50, "")
        assert (first.incomplete, first.recipients) == (True, [])
        second = await listing.history(found.connection, wanted, 50, first.next_token)
        assert (second.incomplete, [one.id for one in second.recipients]) == (False, [59999])
        newest = await listing.history(found.connection, admin_pb2.Filter(), 3, "")
        assert [one.id for one in newest.recipients] == [1, 2, 3]
        assert max(plan.buffers for plan in found.plans) < 30_000


async def test_neither_administration_nor_the_message_path_takes_a_second_processor(full: str) -> None:
    asked = "SHOW max_parallel_workers_per_gather"
    login = pools.Login.of(full)
    async with pools.pool(login, "queue", size=1) as pool, Rows(pool).use() as connection:
        assert (await (await connection.execute(asked)).fetchone()) == ("0",)
    async with Database(login, "looking").lane("backlog").use() as connection:
        assert (await (await connection.execute(asked)).fetchone()) == ("0",)
        await connection.close()
