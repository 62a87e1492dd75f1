"""What explain says of the security of a way: the floors that count, and whether mail with REQUIRETLS can go by it."""

from dataclasses import replace
from typing import Any

import pytest

from mailrail.core.revision.revision import (
    ObjectRef,
    Otherwise,
    Security,
    TlsMinimum,
    TlsMode,
    Transport,
    TransportKind,
    Unanswered,
)
from mailrail.core.route import RouteDecision, Via
from mailrail.core.route.decision import DIRECT, DecisionLevel
from mailrail.core.tlspolicy.demands import NOTHING, Demand, add_up
from mailrail_queue.admin.explain import requiretls_obstacle, security_notes

RELAY = Transport(ObjectRef("MailTransport", "default", "relay"), TransportKind.SMTP, host="relay.example")


def way(**fields: Any) -> RouteDecision:
    return RouteDecision(Via.TRANSPORT, DecisionLevel.GLOBAL, "because", replace(RELAY, **fields))


@pytest.mark.parametrize("mode", [TlsMode.NONE, TlsMode.OPPORTUNISTIC, TlsMode.REQUIRED])
def test_a_route_that_cannot_honour_requiretls_says_so_with_its_code(mode: TlsMode) -> None:
    """RTLS-02."""
    (note,) = security_notes(way(tls=mode), NOTHING)
    assert note.startswith("mail with REQUIRETLS fails this way, 5.7.10: the message requires TLS")
    assert f"tls.mode {mode.capitalize()}" in note
    assert note.endswith("unless its TLSA records prove it") is (mode is not TlsMode.NONE)


def test_an_address_has_no_tlsa_records_that_could_prove_it_DANE_21() -> None:
    (note,) = security_notes(way(tls=TlsMode.REQUIRED, host="192.0.2.25"), NOTHING)
    assert note.endswith("the transport says tls.mode Required, which proves nothing")


@pytest.mark.parametrize("decision", [way(tls=TlsMode.VERIFIED), way(username="u"), DIRECT])
def test_a_route_that_may_honour_it_needs_no_word(decision: RouteDecision) -> None:
    assert list(security_notes(decision, NOTHING)) == []


def test_the_floors_of_a_way_are_told_and_who_set_them() -> None:
    demanded = add_up([Demand("MailGateway default/edge", Security(TlsMinimum.ENCRYPTED, otherwise=Otherwise.FAIL))])
    assert list(security_notes(DIRECT, demanded)) == [
        "MailGateway default/edge demands TLS; mail that finds none fails"
    ]


@pytest.mark.parametrize(("said", "told"), [(Unanswered.PROCEED, True), (Unanswered.DEFER, False), (None, False)])
def test_that_mail_goes_on_while_the_dns_does_not_answer_is_told_STS_24b(said: Unanswered | None, told: bool) -> None:
    demanded = add_up([Demand("MailRoute default/r rule 0", Security(when_unanswered=said))])
    words = ["what the DNS does not answer counts as no demand of the destination"]
    assert list(security_notes(DIRECT, demanded)) == (words if told else [])


@pytest.mark.parametrize(
    ("host", "mode", "able"),
    [
        ("127.0.0.1", TlsMode.NONE, True),
        ("localhost", TlsMode.NONE, True),
        ("store.example", TlsMode.REQUIRED, False),
        ("store.example", TlsMode.VERIFIED, True),
    ],
)
def test_a_mail_store_takes_it_on_this_machine_or_over_verified_tls(host: str, mode: TlsMode, able: bool) -> None:
    found = requiretls_obstacle(way(kind=TransportKind.LMTP, host=host, tls=mode), NOTHING)
    assert (found == "") is able


@pytest.mark.parametrize("kind", [TransportKind.DIRECT, TransportKind.SOCKS, TransportKind.FAIL])
def test_of_mx_hosts_only_the_attempt_knows(kind: TransportKind) -> None:
    assert requiretls_obstacle(way(kind=kind), NOTHING) == ""
