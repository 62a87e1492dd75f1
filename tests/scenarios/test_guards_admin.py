"""An administrator changes mail while it is delivered: nothing lost or doubled, and all ends once, as it is told.

Each change meets mail in every state: waiting, leased, on the wire, delivered and not yet written (ADM-02). What is put
on hold, kicked or scheduled arrives once all the same; what is failed or dropped is told so or delivered, never both.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from google.protobuf.duration_pb2 import Duration

from mailrail.pb.queue.v1 import admin_pb2, admin_pb2_grpc, types_pb2

from testkit.conditions import wait_until
from testkit.guards import books, short_and_long
from testkit.next_hop import NextHop
from testkit.rail import Rail
from testkit.traffic import Sender

DELIVERED, FAILED = types_pb2.RECIPIENT_STATE_DELIVERED, types_pb2.RECIPIENT_STATE_FAILED
NAMES: dict[int, str] = {DELIVERED: "delivered", FAILED: "failed", types_pb2.RECIPIENT_STATE_CANCELLED: "cancelled"}
KEPT, DOOMED = "partner.test", "doomed.test"
AUTHOR = "author@source.test"  # of what is doomed
HANDS = 3  # administrators at once
AT_ONCE = 40  # recipients of one change
REPLY = 0.15  # seconds from a final dot to its reply, so that a change meets mail on the wire


@pytest.fixture
def hop() -> Iterator[NextHop]:
    with NextHop() as sink:
        sink.answers.delays["END"] = REPLY
        yield sink


class Administrator:
    """Does something to some of the mail, again and again, until told to stop."""

    def __init__(self, rail: Rail, number: int) -> None:
        self.done: Counter[str] = Counter()
        """Recipients that were changed, by what was done to them."""
        self._random = random.Random(number)
        self._channel = rail.channel("queue")
        self._stub = admin_pb2_grpc.QueueAdminServiceStub(self._channel)
        self._enough = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it; raises what went wrong in it."""
        self._enough.set()
        self._thread.join(60)
        self._channel.close()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while not self._enough.is_set():
                self._turn()
        except BaseException as error:
            self._error = error

    def _turn(self) -> None:
        domain = self._random.choice((KEPT, DOOMED))
        listed = self._stub.ListRecipients(
            admin_pb2.ListRecipientsRequest(filter=admin_pb2.Filter(to_domain=domain), page_size=1000), timeout=60
        ).recipients
        if not listed:
            self._enough.wait(0.05)
            return
        some = self._random.sample([one.id for one in listed], min(len(listed), AT_ONCE))
        actions = ["kick", "hold", "unhold", "sooner", "later", "without TLS", "by policy"]
        if domain == DOOMED:
            actions += ["fail", "drop"] * 3
        what = self._random.choice(actions)
        self.done[what] += self._change(what, admin_pb2.Filter(recipient_ids=some))

    def _change(self, what: str, chosen: admin_pb2.Filter) -> int:
        stub, within = self._stub, 60
        match what:
            case "kick":
                return stub.Kick(admin_pb2.KickRequest(filter=chosen), timeout=within).count.recipients
            case "hold":
                hold = admin_pb2.HoldRequest(filter=chosen, reason="a look at it")
                return stub.Hold(hold, timeout=within).count.recipients
            case "unhold":
                return stub.Unhold(admin_pb2.UnholdRequest(filter=chosen), timeout=within).count.recipients
            case "sooner" | "later":
                by = Duration(seconds=-30 if what == "sooner" else 1)
                moved = admin_pb2.ScheduleRequest(filter=chosen, from_scheduled=by)
                return stub.Schedule(moved, timeout=within).count.recipients
            case "without TLS" | "by policy":
                # Not REQUIRED: the hop has no TLS, and such mail goes back at once (RFC 8689 4.2.1).
                wanted = (
                    types_pb2.TLS_REQUIREMENT_NO if what == "without TLS" else types_pb2.TLS_REQUIREMENT_UNSPECIFIED
                )
                tls = admin_pb2.SetTlsRequirementRequest(filter=chosen, tls_requirement=wanted)
                return stub.SetTlsRequirement(tls, timeout=within).count.recipients
            case "fail":
                failed = admin_pb2.FailRequest(filter=chosen, reason="not wanted")
                return stub.Fail(failed, timeout=within).count.recipients
            case "drop":
                return stub.Drop(admin_pb2.DropRequest(filter=chosen), timeout=within).count.recipients
        raise ValueError(what)


def settled(rail: Rail) -> bool:
    """Undo what keeps mail (no hold, and due now), and wait a while; answers whether the queue is empty then."""
    everything = admin_pb2.Filter(all=True)
    with rail.channel("queue") as channel:
        stub = admin_pb2_grpc.QueueAdminServiceStub(channel)
        stub.Unhold(admin_pb2.UnholdRequest(filter=everything), timeout=60)
        stub.Kick(admin_pb2.KickRequest(filter=everything), timeout=60)
    try:
        rail.wait_until_empty(5)
    except AssertionError:
        return False
    return True


def ends(rail: Rail, domain: str) -> dict[str, list[int]]:
    """How recipients of a domain ended, by address, as history has it."""
    found: dict[str, list[int]] = {}
    token = ""
    with rail.channel("queue") as channel:
        stub = admin_pb2_grpc.QueueAdminServiceStub(channel)
        while True:
            request = admin_pb2.ListHistoryRequest(
                filter=admin_pb2.Filter(to_domain=domain), page_size=1000, page_token=token
            )
            answer = stub.ListHistory(request, timeout=60)
            for one in answer.recipients:
                found.setdefault(one.address, []).append(one.state)
            token = answer.next_page_token
            if not token:
                return found


@short_and_long("seconds", 8, 90)
def test_a_storm_of_changes_loses_and_doubles_nothing_and_ends_everything_once_ADM_02(
    rail: Rail, hop: NextHop, seconds: float
) -> None:
    kept = Sender(*rail.mx, messages=1_000_000, recipient=f"r{{n}}x@{KEPT}", sessions=4, pace=0.05)
    doomed = Sender(
        *rail.mx,
        messages=1_000_000,
        recipient=f"d{{n}}x@{DOOMED}",
        sender=AUTHOR,
        sessions=4,
        pace=0.05,
    )
    hands = []
    try:
        wait_until(lambda: len(hop) >= 20, 60, "mail flows")
        hands = [Administrator(rail, number) for number in range(HANDS)]
        until = time.monotonic() + seconds
        while time.monotonic() < until:  # the storm itself, which is to meet mail that waits for its next attempt, too
            for domain in (KEPT, DOOMED):
                hop.refuse(f"@{domain}", "451 4.3.0 not now")
                time.sleep(0.7)
                hop.accept(f"@{domain}")
        for sender in (kept, doomed):
            sender.enough()
            sender.finish(180)
        for one in hands:
            one.stop()
        # Mail that is in the hands of outbound takes a change when its attempt ends, and may be put off by it.
        ended = time.monotonic()
        wait_until(lambda: settled(rail), 100, lambda: f"{rail.recipients()[:5]}\n{rail.program.tail()}")
        print(f"empty {time.monotonic() - ended:.1f} s after the storm")
    finally:
        kept.stop()
        doomed.stop()
    done = sum((one.done for one in hands), Counter[str]())
    of_doomed = [one for one in hop.messages if DOOMED in one.recipients[0]]
    notified = [one for one in hop.messages if one.recipients == (AUTHOR,)]
    of_kept = books(kept.traffic, [one for one in hop.messages if one not in of_doomed and one not in notified])
    came = Counter(to for one in of_doomed for to in one.recipients)
    history = ends(rail, DOOMED)
    told = Counter(NAMES[how[0]] for how in history.values())
    print(f"{dict(done)}; kept: {of_kept}; doomed: {dict(told)}")

    of_kept.check()
    assert kept.traffic.given_up == doomed.traffic.given_up == 0
    otherwise = {address: how for address, how in ends(rail, KEPT).items() if len(how) > 1 or how[0] != DELIVERED}
    assert not otherwise, f"{len(otherwise)} arrived and are told otherwise: {sorted(otherwise.items())[:3]}"
    assert set(history) == {f"d{n}x@{DOOMED}" for n in range(doomed.messages)}
    twice = {address: how for address, how in history.items() if len(how) > 1}
    assert not twice, f"{len(twice)} ended more than once, such as {sorted(twice.items())[:3]}"
    delivered = {address for address, how in history.items() if how[0] == DELIVERED}
    assert came == Counter(delivered), "delivered without a delivery, or delivered and told otherwise"
    failed = sum(how[0] == FAILED for how in history.values())
    assert len(notified) == failed, f"{failed} failed, {len(notified)} notifications"
    assert failed, "nothing was failed"
    assert len(history) > len(delivered) + failed, "nothing was dropped"
    missed = [
        what for what in ("kick", "hold", "unhold", "sooner", "later", "without TLS", "fail", "drop") if not done[what]
    ]
    assert not missed, f"never met any mail: {missed}"
