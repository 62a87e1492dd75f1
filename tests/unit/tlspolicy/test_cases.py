"""Cases that went wrong elsewhere, as far as the TLS decision is concerned: hosts, and what becomes of the message."""

from dataclasses import dataclass, field, replace

import pytest

from mailrail.core.delivery.outcome import HopKind, Outcome, Verdict
from mailrail.core.outbound.envelope import ContentFacts, Envelope, EnvelopePlan, EnvelopeRecipient, Form, plan
from mailrail.core.outbound.host_failover import HostFailover
from mailrail.core.outbound.tls_answers import tls_refused
from mailrail.core.revision.revision import TlsMode
from mailrail.core.smtp.answer import Trouble
from mailrail.core.smtp.capabilities import Capabilities
from mailrail.core.tlspolicy.decision import (
    Hop,
    Ignored,
    Proven,
    Requirement,
    RequireTls,
    TlsDecision,
    decide,
    ignored_by,
    lacks,
)
from mailrail.core.tlspolicy.facts import DnsFacts, StsFacts, StsPolicy, Tlsa

SECURE = DnsFacts(trusted=True, mx_secure=True, address_secure=True)
USABLE = replace(SECURE, tlsa=Tlsa.USABLE, matching="set")
REQUIRED, NO = Requirement.REQUIRED, Requirement.NO


@dataclass(frozen=True)
class Server:
    """An MX host, and what a session with it shows."""

    name: str = "mx1"
    sts: StsFacts = StsFacts(StsPolicy.ENFORCE, True, "example.org")  # noqa: RUF009 - frozen
    dns: DnsFacts = DnsFacts(trusted=True)  # noqa: RUF009 - frozen
    encrypted: bool = True
    valid: bool = True
    """PKIX, for its name."""
    matched: str = ""
    requires_tls: bool = True

    def shows(self, *, plaintext: bool = False) -> Proven:
        """What a connection to it shows."""
        if plaintext or not self.encrypted:
            return Proven(False, None)
        return Proven(True, self.name if self.valid else None, self.matched)


@dataclass
class Delivery:
    """What a message met on its way."""

    delivered_to: str | None = None
    dialled: list[str] = field(default_factory=list)
    over: Proven | None = None
    ignored: tuple[Ignored, ...] = ()
    ending: Verdict | None = None


def mail(decision: TlsDecision, capabilities: Capabilities) -> EnvelopePlan:
    """The MAIL command for a server that offers this."""
    required = decision.require_tls is RequireTls.MUST
    to = [(0, EnvelopeRecipient("b@example.org"))]
    content = ContentFacts(100, False, False, False)
    return plan(Envelope(""), to, content, capabilities, form=Form.AS_IS, require_tls=required)


def deliver(*servers: Server, null_path: bool = False, broken: bool = False, **facts: object) -> Delivery:
    """Send one message as outbound does. `broken`: handshakes fail, rather than what they show."""
    found, failover = Delivery(), HostFailover(1, hop=HopKind.FOREIGN)
    for server in servers:
        hop = Hop(server.name, None, sts=server.sts, dns=server.dns, **facts)  # type: ignore[arg-type]
        decision = decide(hop)
        if decision.refusal is not None:
            failover.record_session_failure(tls_refused(decision.refusal))
            continue
        found.dialled.append(server.name)
        shown = server.shows(plaintext=broken and decision.plaintext_may_follow)
        lacking = lacks(decision, shown)
        planned = mail(decision, Capabilities(require_tls=server.requires_tls))
        if lacking is not None:
            failover.record_session_failure(tls_refused(lacking))
        elif planned.refused:
            failover.record_refusals(planned.refused)
        else:
            found.delivered_to, found.over, found.ignored = server.name, shown, ignored_by(decision, shown)
            return found
    if null_path and facts.get("requirement") is REQUIRED and failover.wants_tls:
        again = deliver(*servers, **{**facts, "redacted": True})  # type: ignore[arg-type]
        return replace(again, dialled=found.dialled + again.dialled)
    found.ending = failover.conclude()[0].verdict
    return found


def test_the_second_host_offers_requiretls_and_gets_the_message() -> None:
    """RTLS-15a."""
    went = deliver(Server("mx1", requires_tls=False), Server("mx2"), requirement=REQUIRED)
    assert (went.delivered_to, went.dialled) == ("mx2", ["mx1", "mx2"])


def test_without_tls_anywhere_a_required_message_fails_with_5_7_10() -> None:
    """RTLS-16a, RTLS-17a."""
    went = deliver(Server(encrypted=False), requirement=REQUIRED)
    assert went.ending is not None
    assert (went.delivered_to, went.ending.outcome, str(went.ending.status)) == (None, Outcome.FAILED, "5.7.10")


def test_an_unsigned_mx_without_a_policy_is_not_even_dialled() -> None:
    """RTLS-11a, RTLS-17a."""
    went = deliver(Server(sts=StsFacts()), requirement=REQUIRED)
    assert went.ending is not None
    assert (went.dialled, went.ending.outcome, str(went.ending.status)) == ([], Outcome.FAILED, "5.7.30")


def test_a_policy_in_mode_testing_proves_no_mx() -> None:
    """RTLS-12a."""
    went = deliver(Server(sts=StsFacts(StsPolicy.TESTING, True)), requirement=REQUIRED)
    assert (went.dialled, went.delivered_to) == ([], None)


def test_of_three_hosts_the_one_that_is_listed_and_well_gets_a_required_message() -> None:
    """RTLS-15a, STS-10a."""
    outside = Server("mx1", sts=StsFacts(StsPolicy.ENFORCE, False))
    went = deliver(outside, Server("mx2", valid=False), Server("mx3"), requirement=REQUIRED)
    assert (went.delivered_to, went.dialled) == ("mx3", ["mx2", "mx3"])


def test_a_notification_of_a_required_message_goes_redacted_where_nobody_offers_requiretls() -> None:
    """RTLS-21a."""
    server = Server(sts=StsFacts(), valid=False, requires_tls=False)
    went = deliver(server, null_path=True, requirement=REQUIRED)
    assert went.delivered_to == "mx1"
    assert went.over is not None
    assert went.over.encrypted
    assert deliver(server, requirement=REQUIRED).delivered_to is None


def test_a_redacted_notification_goes_in_clear_only_where_no_host_has_tls_that_works() -> None:
    """RTLS-21a: the last resort, and a policy of the destination is still followed."""
    plain = Server(sts=StsFacts(), encrypted=False)
    went = deliver(plain, null_path=True, requirement=REQUIRED)
    assert went.over == Proven(False, None)
    assert deliver(Server(encrypted=False), null_path=True, requirement=REQUIRED).delivered_to is None


def test_tls_required_no_goes_over_tls_with_an_expired_certificate_although_the_policy_forbids() -> None:
    """RTLS-22a."""
    went = deliver(Server(valid=False), requirement=NO)
    assert went.delivered_to == "mx1"
    assert went.over is not None
    assert went.over.encrypted
    assert went.ignored == (Ignored.CERTIFICATE,)


@pytest.mark.parametrize(
    ("server", "ignored"),
    [
        (Server(), ()),
        (Server(encrypted=False), (Ignored.NO_TLS,)),
        (Server(sts=StsFacts(StsPolicy.ENFORCE, False)), (Ignored.STS_MX,)),
        (Server(sts=StsFacts(StsPolicy.UNKNOWN)), (Ignored.STS_UNANSWERED,)),
        (Server(sts=StsFacts(), dns=replace(SECURE, tlsa=Tlsa.FAILED)), (Ignored.TLSA_UNANSWERED,)),
        (Server(sts=StsFacts(), dns=USABLE, matched="set"), ()),
        (Server(sts=StsFacts(), dns=USABLE), (Ignored.TLSA,)),
        (Server(sts=StsFacts(), dns=USABLE, encrypted=False), (Ignored.NO_TLS,)),
        (Server(sts=StsFacts(StsPolicy.TESTING, True), valid=False), ()),
    ],
)
def test_all_that_tls_required_no_passes_over_is_counted(server: Server, ignored: tuple[Ignored, ...]) -> None:
    """RTLS-22a."""
    went = deliver(server, requirement=NO)
    assert (went.delivered_to, went.ignored) == ("mx1", ignored)


def test_a_smarthost_that_does_not_offer_requiretls_gets_no_required_message() -> None:
    """RTLS-25a."""
    decision = decide(Hop("relay.example.net", None, carries_credentials=True, requirement=REQUIRED))
    assert lacks(decision, Proven(True, "relay.example.net")) is None
    (refused,) = mail(decision, Capabilities()).refused
    assert refused[1].trouble is Trouble.REQUIRETLS
    assert mail(decision, Capabilities(require_tls=True)).mail_line == b"MAIL FROM:<> REQUIRETLS\r\n"


def test_bad_tls_of_our_own_smarthost_never_bounces_a_required_message() -> None:
    decision = decide(Hop("relay.example.net", None, carries_credentials=True, requirement=REQUIRED))
    refusal = lacks(decision, Proven(True, None))
    assert refusal is not None
    assert refusal.status.category == 4


@pytest.mark.parametrize(
    ("loopback", "verified", "status"),
    [(True, False, None), (False, True, None), (False, False, "5.7.10")],
)
def test_a_required_message_ends_at_a_store_on_this_machine_or_over_verified_tls(
    loopback: bool, verified: bool, status: str | None
) -> None:
    """RTLS-27a."""
    mode = TlsMode.VERIFIED if verified else TlsMode.NONE
    decision = decide(Hop("store", mode, final=True, loopback=loopback, requirement=REQUIRED))
    assert (str(decision.refusal.status) if decision.refusal else None) == status


def test_a_cached_policy_in_mode_enforce_holds_back_mail_for_another_mx() -> None:
    """STS-10a, STS-14a."""
    went = deliver(Server("evil.example", sts=StsFacts(StsPolicy.ENFORCE, False, "example.com")))
    assert went.ending is not None
    assert (went.dialled, went.ending.outcome, str(went.ending.status)) == ([], Outcome.DEFERRED, "4.7.5")
    assert "does not list evil.example" in went.ending.text


def test_of_two_hosts_the_one_in_the_policy_is_dialled_in_the_same_attempt() -> None:
    """STS-10a."""
    went = deliver(Server("mx1.example.com", sts=StsFacts(StsPolicy.ENFORCE, False)), Server("mx2.example.com"))
    assert (went.delivered_to, went.dialled) == ("mx2.example.com", ["mx2.example.com"])


@pytest.mark.parametrize("policy", [StsFacts(StsPolicy.TESTING, True), StsFacts(StsPolicy.NONE), StsFacts()])
def test_testing_none_and_a_policy_that_cannot_be_fetched_hold_nothing_back(policy: StsFacts) -> None:
    """STS-12a."""
    assert deliver(Server(sts=policy, valid=False, encrypted=False)).delivered_to == "mx1"


def test_records_that_do_not_match_are_not_made_up_for_by_a_valid_certificate() -> None:
    """STS-21a, DANE-14a."""
    went = deliver(Server(dns=USABLE, valid=True, matched="other"))
    assert went.delivered_to is None
    assert went.ending is not None
    assert went.ending.outcome is Outcome.DEFERRED


def test_unusable_records_alone_ask_for_tls_and_for_no_certificate() -> None:
    """DANE-15a."""
    unusable = replace(SECURE, tlsa=Tlsa.UNUSABLE)
    assert deliver(Server(sts=StsFacts(), dns=unusable, valid=False)).delivered_to == "mx1"
    assert deliver(Server(sts=StsFacts(), dns=unusable, encrypted=False)).delivered_to is None
    assert deliver(Server(sts=StsFacts(), dns=unusable), broken=True).delivered_to == "mx1"


def test_insecure_addresses_make_mail_flow_though_records_cannot_be_had() -> None:
    insecure = DnsFacts(trusted=True, mx_secure=True, address_secure=False, tlsa=Tlsa.FAILED)
    assert deliver(Server(sts=StsFacts(), dns=insecure, encrypted=False)).delivered_to == "mx1"


def test_a_host_whose_records_cannot_be_had_is_not_dialled_and_the_next_one_is() -> None:
    """DANE-03a."""
    failed = Server("mx1", sts=StsFacts(), dns=replace(SECURE, tlsa=Tlsa.FAILED))
    ending = deliver(failed).ending
    assert ending is not None
    assert (ending.outcome, str(ending.status)) == (Outcome.DEFERRED, "4.7.5")
    assert "which TLSA records mx1 has" in ending.text
    assert deliver(failed).dialled == []
    went = deliver(failed, Server("mx2", sts=StsFacts(), dns=SECURE))
    assert (went.delivered_to, went.dialled) == ("mx2", ["mx2"])


def test_records_of_a_host_that_an_insecure_mx_names_prove_nothing() -> None:
    """DANE-05a."""
    insecure = replace(USABLE, mx_secure=False)
    decision = decide(Hop("mx1", None, dns=insecure))
    assert not decision.verified
    assert "DANE" not in decision.reason
    assert deliver(Server(sts=StsFacts(), dns=insecure), requirement=REQUIRED).delivered_to is None


def test_a_better_host_without_records_comes_before_a_worse_one_with_records() -> None:
    """DANE-16a: it is dialled with opportunistic TLS, and may go in clear."""
    went = deliver(Server("a", sts=StsFacts(), dns=SECURE), Server("b", sts=StsFacts(), dns=USABLE), broken=True)
    assert (went.delivered_to, went.over) == ("a", Proven(False, None))


def test_an_mx_that_is_an_address_has_no_dane() -> None:
    """DANE-21."""
    assert deliver(Server("192.0.2.1", sts=StsFacts(), dns=USABLE)).delivered_to == "192.0.2.1"
