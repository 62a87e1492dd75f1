"""How far mail went proven, and how far it could have."""

from dataclasses import replace

import pytest
from hypothesis import given
from unit.tlspolicy.test_properties import SHOWN, hops

from mailrail.core.outbound.learned import Offered
from mailrail.core.revision.revision import TlsMode, TlsProof
from mailrail.core.tlspolicy.adoption import Adoption, adoption, proof_of
from mailrail.core.tlspolicy.decision import Hop, Proven, PublishedProof, Requirement, decide, lacks
from mailrail.core.tlspolicy.facts import NO_DNSSEC, NO_STS, DnsFacts, StsFacts, StsPolicy, Tlsa

HOST = "mx.example.org"
RECORDS = DnsFacts(True, True, True, Tlsa.USABLE, "set")
UNUSABLE = DnsFacts(True, True, True, Tlsa.UNUSABLE)
SIGNED = DnsFacts(True, True, True)
ENFORCE = StsFacts(StsPolicy.ENFORCE, True, "example.org")
TESTING = StsFacts(StsPolicy.TESTING, True, "example.org")
UNLISTED = StsFacts(StsPolicy.TESTING, False, "example.org")
CLEAR, TLS = Proven(False, None), Proven(True, None)
VALID, MATCHED = Proven(True, HOST), Proven(True, None, "set")
NEITHER, STARTTLS, BOTH = Offered(False, False), Offered(True, False), Offered(True, True)
NO, REQUIRED = Requirement.NO, Requirement.REQUIRED


@pytest.mark.parametrize(
    ("hop", "shown", "offered", "counted"),
    [
        (Hop(HOST, None), CLEAR, NEITHER, Adoption("clear", "nothing", "no")),
        (Hop(HOST, None), CLEAR, STARTTLS, Adoption("clear", "starttls", "no")),
        (Hop(HOST, None), TLS, STARTTLS, Adoption("none", "nothing", "no")),
        (Hop(HOST, None, dns=RECORDS), MATCHED, STARTTLS, Adoption("dane", "nothing", "no")),
        (Hop(HOST, None, dns=RECORDS), MATCHED, BOTH, Adoption("dane", "nothing", "possible")),
        (Hop(HOST, None, dns=RECORDS, requirement=REQUIRED), MATCHED, BOTH, Adoption("dane", "nothing", "used")),
        (Hop(HOST, None, dns=RECORDS, requirement=NO), TLS, STARTTLS, Adoption("none", "dane", "no")),
        (Hop(HOST, None, dns=RECORDS, requirement=NO), CLEAR, STARTTLS, Adoption("clear", "dane", "no")),
        (Hop(HOST, None, dns=UNUSABLE), TLS, STARTTLS, Adoption("none", "tlsa_unusable", "no")),
        (Hop(HOST, None, sts=ENFORCE), VALID, BOTH, Adoption("mta_sts", "nothing", "possible")),
        (Hop(HOST, None, sts=ENFORCE, requirement=NO), TLS, BOTH, Adoption("none", "mta_sts", "no")),
        (Hop(HOST, None, sts=TESTING), VALID, BOTH, Adoption("pkix", "sts_testing", "no")),
        (Hop(HOST, None, sts=TESTING), TLS, STARTTLS, Adoption("none", "sts_testing", "no")),
        (Hop(HOST, None, sts=UNLISTED), TLS, STARTTLS, Adoption("none", "nothing", "no")),
        (Hop(HOST, None, sts=TESTING, dns=SIGNED), VALID, BOTH, Adoption("pkix", "sts_testing", "possible")),
        (Hop(HOST, TlsMode.VERIFIED), VALID, BOTH, Adoption("pkix", "nothing", "possible")),
        (Hop(HOST, TlsMode.REQUIRED), TLS, BOTH, Adoption("none", "nothing", "no")),
    ],
)
def test_a_message_is_counted_by_what_proved_the_host_and_what_else_could_have(
    hop: Hop, shown: Proven, offered: Offered, counted: Adoption
) -> None:
    decision = decide(hop)
    assert lacks(decision, shown) is None, "else no message goes over the connection"
    assert adoption(decision, shown, offered) == counted


@given(hops)
def test_what_the_destination_demands_is_unused_for_lenient_mail_alone(hop: Hop) -> None:
    decision = decide(hop)
    for shown in SHOWN:
        if lacks(decision, shown) is None:
            for requiretls in {False, shown.encrypted}:
                counted = adoption(decision, shown, Offered(True, requiretls))
                assert (counted.proof == "clear") is not shown.encrypted
                if counted.possible in ("dane", "mta_sts"):
                    assert decision.lenient


@given(hops)
def test_what_is_published_is_told_whatever_the_message_says(hop: Hop) -> None:
    told = {
        decision.published
        for requirement in (Requirement.DEFAULT, Requirement.NO)
        for decision in [decide(replace(hop, requirement=requirement))]
        if decision.refusal is None
    }
    assert len(told) <= 1
    if hop.sts == NO_STS and hop.dns == NO_DNSSEC:
        assert told <= {PublishedProof.NOTHING}


def test_of_several_proofs_the_first_is_told() -> None:
    both = decide(Hop(HOST, None, sts=ENFORCE, dns=RECORDS))
    assert proof_of(both, Proven(True, HOST, "set")) is TlsProof.DANE
    assert proof_of(both, VALID) is TlsProof.MTA_STS
    assert proof_of(both, TLS) is None
