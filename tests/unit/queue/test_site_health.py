"""What a delivery's results and other owners say of a site (SHD-04, SHD-05; design 4, Attempt)."""

from dataclasses import dataclass, field
from typing import cast

import pytest

from mailrail.core.revision import revision as rev
from mailrail.pb.queue.v1 import lease_pb2, types_pb2
from mailrail_queue.delivery.attempt import Delivery
from mailrail_queue.delivery.lease_writer import LeaseWriter, SiteBackoff
from mailrail_queue.delivery.site_health import SiteHealth
from mailrail_queue.delivery.sites import SiteState
from mailrail_queue.delivery.verdicts import site_verdict_of
from mailrail_queue.store.sites import SiteRow

from testkit.dispatching import Bench, Stream
from testkit.queue import RELAY, a_revision, relay, rule_to

DELIVERED, DEFERRED = types_pb2.OUTCOME_DELIVERED, types_pb2.OUTCOME_DEFERRED
UNDONE, CANCELLED = types_pb2.OUTCOME_NOT_ATTEMPTED, types_pb2.OUTCOME_CANCELLED


def a_result(*found: tuple[types_pb2.Outcome.ValueType, str], hosts: tuple[str, ...] = ()) -> lease_pb2.DeliveryResult:
    """Results of recipients: an outcome, and "site", "transport" or nobody to blame."""
    result = lease_pb2.DeliveryResult(mx_hosts=hosts)
    for number, (outcome, blame) in enumerate(found):
        one = result.recipients.add(site_failure=blame == "site", transport_failure=blame == "transport")
        one.attempt.outcome = outcome
        one.attempt.reply.lines.append(f"reply {number}")
    return result


@dataclass
class Notes:
    """A lease writer that writes nothing."""

    backoffs: list[tuple[str, SiteBackoff | None]] = field(default_factory=list)
    back: list[Delivery] = field(default_factory=list)

    def note_backoff(self, name: str, backoff: SiteBackoff | None) -> None:
        self.backoffs.append((name, backoff))

    def take_back(self, deliveries: list[Delivery]) -> None:
        self.back += deliveries


class Health:
    """A site with one delivery under way."""

    def __init__(self, revision: rev.Revision | None = None) -> None:
        self.bench = Bench(revision)
        self.bench.dispatcher.connect(Stream("a"))
        self.notes = Notes()
        self.health = SiteHealth(self.bench.dispatcher, cast("LeaseWriter", self.notes))
        self.delivery = self.hand_out()

    @property
    def site(self) -> SiteState:
        return self.delivery.site

    def hand_out(self) -> Delivery:
        delivery = self.bench.lease("x.example")
        self.bench.dispatcher.pump()
        return delivery


def through_proxy() -> rev.Revision:
    """All mail goes through a SOCKS5 proxy, whose sites are domains."""
    proxy = rev.Transport(RELAY, rev.TransportKind.SOCKS, host="127.0.0.1", port=1080)
    return a_revision(transports=[proxy], rules=[rule_to(RELAY)])


@pytest.mark.parametrize(
    ("found", "dialled", "blamed", "transport"),
    [
        ([(UNDONE, ""), (CANCELLED, "")], False, None, False),
        ([(UNDONE, ""), (DELIVERED, "")], True, None, False),
        ([(DEFERRED, "")], True, None, False),
        ([(DEFERRED, "site"), (DELIVERED, "")], True, "reply 0", False),
        ([(DEFERRED, "transport"), (DEFERRED, "site")], True, "reply 1", True),
    ],
)
def test_a_site_is_blamed_for_what_its_results_say_and_no_more(
    found: list[tuple[types_pb2.Outcome.ValueType, str]], dialled: bool, blamed: str | None, transport: bool
) -> None:
    verdict = site_verdict_of(a_result(*found))
    assert (verdict.dialled, verdict.transport_failed) == (dialled, transport)
    assert (verdict.blamed.reply.lines[0] if verdict.blamed is not None else None) == blamed
    assert verdict.error == (blamed or "")


def test_what_was_not_dialled_leaves_the_window_as_it_was_LSE_04() -> None:
    h = Health()
    size = h.site.window.size
    h.health.judge(h.delivery, a_result((UNDONE, "")))
    assert (h.site.window.in_flight, h.site.window.size, h.notes.backoffs) == (0, size, [])


def test_a_cohort_of_failures_is_noted_for_other_owners_and_pending_mail_goes_back_SHD_05() -> None:
    h = Health()
    deliveries = [h.delivery, *(h.hand_out() for _ in range(4))]
    waiting = h.hand_out()
    for delivery in deliveries:
        h.health.judge(delivery, a_result((DEFERRED, "site")))
    ((name, backoff),) = h.notes.backoffs
    assert name == "domain:x.example"
    assert backoff is not None
    assert backoff.failures == 1
    assert 54.0 <= backoff.seconds <= 66.0
    assert types_pb2.Attempt.FromString(backoff.last_error).reply.lines == ["reply 0"]
    assert h.notes.back == [waiting]


def test_trouble_of_a_transport_puts_it_into_backoff_and_not_the_site_it_was_met_at_SHD_05() -> None:
    h = Health(through_proxy())
    h.health.judge(h.delivery, a_result((DEFERRED, "transport")))
    now = h.bench.clock.now
    assert not h.site.window.probing
    assert h.site.in_backoff(now)
    ((name, backoff),) = h.notes.backoffs
    assert (name, backoff is not None and backoff.failures) == ("transport:default/relay", 1)
    h.site.window.start()
    h.health.judge(h.delivery, a_result((DELIVERED, "")))
    assert h.notes.backoffs[1:] == [("transport:default/relay", None)]
    assert not h.site.in_backoff(now)


def test_a_probe_that_succeeds_is_noted_once_and_the_last_error_forgotten_SHD_05() -> None:
    h = Health(a_revision(transports=[relay()], rules=[rule_to(RELAY)]))
    h.health.judge(h.delivery, a_result((DEFERRED, "transport")))
    h.site.window.start()
    h.health.judge(h.delivery, a_result((DELIVERED, "")))
    h.site.window.start()
    h.health.judge(h.delivery, a_result((DELIVERED, "")))
    assert [(name, backoff is None) for name, backoff in h.notes.backoffs] == [(h.site.key, False), (h.site.key, True)]
    assert h.site.last_error == b""


def test_sites_with_the_same_mx_hosts_share_a_group_whatever_their_order_SHD_03() -> None:
    h = Health()
    h.health.judge(h.delivery, a_result((DELIVERED, ""), hosts=("B.mx.example", "a.mx.example")))
    assert h.site.mx_group is not None
    assert h.site.mx_group.name == "a.mx.example,b.mx.example"


def test_what_another_owner_wrote_of_a_site_is_adopted_with_its_error_SHD_05() -> None:
    h = Health()
    h.health.learn(SiteRow("domain:x.example", 2, 100.0, b"error", 0.0))
    h.health.learn(SiteRow("domain:unknown.example", 2, 100.0, b"error", 0.0))
    assert h.site.in_backoff(h.bench.clock.now)
    assert h.site.last_error == b"error"
    h.health.learn(SiteRow("domain:x.example", 0, None, None, 0.0))
    assert not h.site.window.probing
