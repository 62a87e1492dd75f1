"""Which floors count for a recipient: of the gateway, the sender's domain, the rule and the transport (decision 18)."""

from dataclasses import replace
from typing import Any

import pytest

from mailrail.core.revision.revision import (
    NO_FLOOR,
    Account,
    Domain,
    DomainDelivery,
    Gateway,
    ObjectRef,
    Revision,
    RouteLevel,
    Rule,
    Security,
    TlsMinimum,
    TlsProof,
    Transport,
    TransportKind,
)
from mailrail.core.route import RouteTable, RoutingFacts
from mailrail.core.tlspolicy.demands import NOTHING, Demanded

ENCRYPTED = Security(TlsMinimum.ENCRYPTED)
DANE, PKIX = (Security(TlsMinimum.AUTHENTICATED, (proof,)) for proof in (TlsProof.DANE, TlsProof.PKIX))


def ref(kind: str, name: str) -> ObjectRef:
    return ObjectRef(kind, "default", name)


EDGE = Gateway(ref("MailGateway", "edge"), "mail.example.org", (), ref("MailAccount", "postmaster"))
ORG = Domain(ref("MailDomain", "org"), "example.org", DomainDelivery.MAILBOX)
SHOP = Domain(ref("MailDomain", "shop"), "shop.example", DomainDelivery.TRANSPORT, ref("MailTransport", "store"))
ANN = Account(ref("MailAccount", "ann"), "uid", ORG.ref, "ann", ("ann@example.org",))
RELAY = Transport(ref("MailTransport", "relay"), TransportKind.SMTP, host="relay.example")
STORE = Transport(ref("MailTransport", "store"), TransportKind.LMTP, host="store.example")
FAIL = Transport(ref("MailTransport", "fail"), TransportKind.FAIL, code=554)


def demanded(
    *, edge: Security = NO_FLOOR, org: Security = NO_FLOOR, rule: Security = NO_FLOOR, via: Transport | None = None,
    **facts: Any,
) -> Demanded:  # fmt: skip
    """What is demanded of mail to there.example, which a rule sends by a transport (or directly)."""
    made = Rule(ref("MailRoute", "r"), 0, "first", (), via.ref if via is not None else None, require=rule)
    table = RouteTable(
        Revision(
            gateways=(replace(EDGE, security=edge),),
            domains=(replace(ORG, security=org), SHOP),
            accounts=(ANN,),
            transports=tuple({each.ref: each for each in (STORE, FAIL, *([via] if via else []))}.values()),
            global_routes=(RouteLevel(EDGE.ref, (made,)),),
        )
    )
    given: dict[str, Any] = {"recipient_domain": "there.example", "sender_domain": "example.org", "ours": True} | facts
    asked = RoutingFacts(**given)
    return table.demanded(asked, table.evaluate(asked, 0))


def test_nothing_is_demanded_where_nobody_says_anything() -> None:
    assert demanded() is NOTHING
    assert demanded(via=RELAY) is NOTHING


def test_the_strictest_minimum_counts_and_who_set_it_is_named() -> None:
    found = demanded(edge=ENCRYPTED, org=DANE, via=replace(RELAY, security=ENCRYPTED))
    assert found == Demanded(DANE, ("MailDomain default/org",))
    assert str(found) == "MailDomain default/org demands a server authenticated by DANE; mail that finds none waits"


def test_proofs_are_those_that_all_allow_and_who_leaves_none_is_named() -> None:
    found = demanded(edge=DANE, rule=PKIX)
    assert found.impossible
    assert found.owners == ("MailGateway default/edge", "MailRoute default/r rule first")
    assert "authenticated by no proof that all allow" in str(found)


@pytest.mark.parametrize(
    ("facts", "counts"),
    [
        ({}, True),
        ({"ours": False}, False),  # a stranger writes whatever he likes into MAIL FROM
        ({"sender_domain": "other.example"}, False),
        ({"sender_domain": "", "account": ANN.ref}, True),  # who leaves it empty is still of the domain
        ({"sender_domain": ""}, False),
    ],
)
def test_the_floor_of_a_domain_is_for_what_its_senders_submit(facts: dict[str, Any], counts: bool) -> None:
    assert (demanded(org=ENCRYPTED, **facts) != NOTHING) is counts


def test_what_does_not_leave_needs_nothing() -> None:
    assert demanded(edge=ENCRYPTED, recipient_domain="example.org") is NOTHING
    assert demanded(edge=ENCRYPTED, recipient_domain="shop.example") is NOTHING
    assert demanded(edge=ENCRYPTED, via=FAIL) is NOTHING
    assert demanded(edge=ENCRYPTED, rule=ENCRYPTED, via=STORE) is NOTHING


def test_a_mail_store_keeps_its_own_floor() -> None:
    assert demanded(edge=DANE, via=replace(STORE, security=ENCRYPTED)).security == ENCRYPTED


def test_an_administrators_transport_does_not_get_around_the_floors() -> None:
    facts: dict[str, Any] = {"transport": RELAY.ref}
    assert demanded(edge=ENCRYPTED, via=RELAY, **facts).security == ENCRYPTED
    assert demanded(edge=ENCRYPTED, direct=True).security == ENCRYPTED
