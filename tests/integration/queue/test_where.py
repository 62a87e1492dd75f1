"""What a query finds in the queue and in its history, by Postgres (QRY-01, QRY-04)."""

from collections.abc import AsyncIterator, Callable
from uuid import UUID

import pytest

from mailrail.pb.queue.v1 import admin_pb2, types_pb2
from mailrail_queue.admin import walk
from mailrail_queue.admin.administration import Administration
from mailrail_queue.admin.base import AdminContext
from mailrail_queue.admin.filters import BadRequest
from mailrail_queue.store import results as result_store
from mailrail_queue.store.results import Ending

from testkit.stored_mail import Rig
from testkit.stored_mail import rig as make_rig


class Searched:
    """A queue with some mail, and how it is asked."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.do = Administration(AdminContext(lambda: rig.router, lambda: rig.addresses, rig.notifier, lambda _: None))

    async def queue(self, where: str, **others: object) -> list[str]:
        """Local parts, sorted, of what is found in the queue."""
        wanted = admin_pb2.Filter(where=where, **others)  # type: ignore[arg-type]
        page = await self.do.listing.recipients(self.rig.connection, wanted, 0, "")
        assert (page.incomplete, page.next_token) == (False, "")
        return sorted(one.address.partition("@")[0] for one in page.recipients)

    async def history(self, where: str) -> list[str]:
        page = await self.do.listing.history(self.rig.connection, admin_pb2.Filter(where=where), 0, "")
        assert (page.incomplete, page.next_token) == (False, "")
        return sorted(one.address.partition("@")[0] for one in page.recipients)

    async def end(self, address: str, state: int, outcome: int) -> None:
        for recipient in await self.rig.accept(address):
            ending = Ending(recipient.id, recipient.message_id, 0, 1, state, outcome, None)
            await result_store.finish(self.rig.connection, [ending])


@pytest.fixture
async def mail(database_for: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Searched]:
    monkeypatch.setattr(walk, "SECONDS", 600.0)  # a busy machine makes nobody stop early
    async with make_rig(database_for("queue")) as rig:
        yield Searched(rig)


async def test_each_field_finds_in_the_queue_what_it_says_QRY_01(mail: Searched) -> None:
    (bob,) = await mail.rig.accept("bob@there.example")
    await mail.rig.accept("carl@sub.there.example", mail_from="x_y@stranger.example", account=None, tls=1)
    await mail.rig.accept("dora@relayed.example", hold="look")
    await mail.rig.accept("erik@notthere.example", mail_from="", account=None)
    await mail.rig.accept("fred@there.example", token=77)
    change = mail.rig.connection.execute
    await change("UPDATE recipient SET attempts = 3, due = now() + interval '1 hour' WHERE address LIKE 'bob@%'")
    await change("UPDATE recipient SET override_transport = 'mail/relay' WHERE address LIKE 'carl@%'")
    await change("UPDATE recipient SET due = now() + interval '3 days' WHERE address LIKE 'erik@%'")
    await change("UPDATE recipient SET queued = now() - interval '2 days' WHERE address LIKE 'dora@%'")
    everyone = ["bob", "carl", "dora", "erik", "fred"]
    found = {
        "": everyone,
        f"id:{bob.id}": ["bob"],
        f"id:{bob.id} id:{bob.id + 1}": [],
        f"msg:{UUID(bytes=bob.message_id)}": ["bob"],
        "msgid:one@here.example": everyone,
        "msgid:<other@here.example>": [],
        "to:BOB@there.example": ["bob"],
        "to:bob@there.exampl": [],
        "to:bob*": ["bob"],
        "to:*R*@*": ["carl", "dora", "erik", "fred"],
        "to:b_b*": [],
        "to:%*": [],
        "domain:There.Example": ["bob", "fred"],
        "domain:.there.example": ["bob", "carl", "fred"],
        "from:X_Y@stranger.example": ["carl"],
        "from:xzy@stranger.example": [],
        "from:x_*": ["carl"],
        "from:a_i*": [],
        "from:<>": ["erik"],
        "from-domain:here.example": ["bob", "dora", "fred"],
        "from-domain:.example": ["bob", "carl", "dora", "fred"],
        "account:mail/alice": ["bob", "dora", "fred"],
        "account:mail/*": ["bob", "dora", "fred"],
        "account:mai/*": [],
        "site:domain:there.example": ["bob", "fred"],
        "site:transport:mail/relay": ["dora"],
        "transport:mail/relay": ["carl"],
        "state:queued": ["carl"],
        "state:sending": ["fred"],
        "state:deferred": ["bob"],
        "state:held": ["dora"],
        "state:scheduled": ["erik"],
        "due:>30m": ["bob", "erik"],
        "due:>30m due:<1d": ["bob"],
        "due:<1m": ["carl", "dora"],
        "queued:<-1d": ["dora"],
        "queued:>-1d": ["bob", "carl", "erik", "fred"],
        "attempts:3": ["bob"],
        "attempts:1..5": ["bob", "fred"],
        "attempts:<3": ["carl", "dora", "erik", "fred"],
        "tls:required": ["carl"],
        "tls:default": ["bob", "dora", "erik", "fred"],
        "origin:mx": ["carl", "erik"],
        "origin:submission to:b*": ["bob"],
        "bob": ["bob"],
        "there.example": ["bob", "fred"],
        'to:"100%\'; --*"': [],
    }
    assert {query: await mail.queue(query) for query in found} == found
    assert await mail.queue("to:b*", to_domain="there.example") == ["bob"], "a filter beside it must hold, too"
    assert await mail.queue("to:b*", on_hold=True) == []


async def test_each_field_finds_in_history_what_it_says_QRY_01(mail: Searched) -> None:
    await mail.end("bob@there.example", result_store.DELIVERED, types_pb2.OUTCOME_DELIVERED)
    await mail.end("carl@sub.there.example", result_store.DELIVERED, types_pb2.OUTCOME_RELAYED)
    await mail.end("dora@relayed.example", result_store.FAILED, types_pb2.OUTCOME_FAILED)
    found = {
        "state:delivered": ["bob"],
        "state:relayed": ["carl"],
        "state:failed": ["dora"],
        "state:cancelled": [],
        "state:captured": [],
        "to:bob@there.example": ["bob"],
        "to:*ar*": ["carl"],
        "domain:there.example": ["bob"],
        "domain:.there.example": ["bob", "carl"],
        "from:alice@here.example to:d*": ["dora"],
        "from-domain:.here.example to:d*": ["dora"],
        "from:<>": [],
        "msgid:<one@here.example> to:d*": ["dora"],
        "msgid:<two@here.example>": [],
        "finished:>-1h": ["bob", "carl", "dora"],
        "finished:<-1h": [],
        "site:transport:mail/relay": ["dora"],
        "account:mail/*": ["bob", "carl", "dora"],
        "attempts:>99": [],
        "tls:no": [],
        "origin:submission": ["bob", "carl", "dora"],
        "queued:>-1h": ["bob", "carl", "dora"],
    }
    assert {query: await mail.history(query) for query in found} == found


@pytest.mark.parametrize("where", ["state:asleep", "state:failed", "finished:<-1h", "id:"])
async def test_a_query_that_makes_no_sense_is_refused_with_its_place(mail: Searched, where: str) -> None:
    with pytest.raises(BadRequest, match=r"the query, character [0-9]+: "):
        await mail.queue(where)


async def test_a_change_by_a_query_changes_what_it_finds_and_an_empty_one_nothing_ADM_01(mail: Searched) -> None:
    await mail.rig.accept("bob@there.example")
    await mail.rig.accept("carl@there.example")
    connection = mail.rig.connection
    held = await mail.do.changes.hold(connection, admin_pb2.Filter(where="to:bob*"), "why")
    assert held.count.recipients == 1
    assert await mail.queue("state:held") == ["bob"]
    for empty in ("", "  "):
        with pytest.raises(BadRequest, match="an empty filter"):
            await mail.do.changes.drop(connection, admin_pb2.Filter(where=empty))
    assert await mail.queue("") == ["bob", "carl"]
