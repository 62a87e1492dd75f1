"""What servers show, judged: TLSA records beside certificates, and the policy beside the MX hosts."""

import datetime
from dataclasses import replace

import pytest

from mailrail.core.dane.tlsa import TlsaRecord
from mailrail.core.dnscheck.answers import RecordState
from mailrail.core.dnscheck.served import MxHost, address, dane, policy, tlsa_value
from mailrail.core.mtasts.answer import FetchFailed, FetchTrouble
from mailrail.core.mtasts.policy import Mode, Policy

from testkit.chains import issue

HOST = "mx.example.org"
NOW = datetime.datetime(2026, 11, 30, tzinfo=datetime.UTC)
ISSUER = issue("ca", ca=True)
LEAF = issue("mx", HOST, by=ISSUER)
RIGHT = TlsaRecord.from_text(tlsa_value(LEAF.der))
SEEN = MxHost(HOST, HOST, (HOST,), ("192.0.2.1",), (RIGHT,), True, chain=(LEAF.der, ISSUER.der))


def test_the_tlsa_record_of_the_served_key_is_right_and_told_ready_to_copy() -> None:
    found = dane(SEEN, 25, NOW)
    assert (found.state, found.name, found.message) == (RecordState.MATCH, f"_25._tcp.{HOST}", "")
    assert found.value == tlsa_value(LEAF.der)
    assert found.value.startswith("3 1 1 ")


def test_a_record_that_names_the_issuer_counts_for_the_names_of_the_host_alone_DANE_12a() -> None:
    issuer = TlsaRecord.from_text("2" + tlsa_value(ISSUER.der)[1:])
    assert dane(replace(SEEN, records=(issuer,)), 25, NOW).state is RecordState.MATCH
    other = dane(replace(SEEN, records=(issuer,), names=("mx.example.net",)), 25, NOW)
    assert other.state is RecordState.MISMATCH
    assert "not for mx.example.net" in other.message


@pytest.mark.parametrize(
    ("change", "state", "said"),
    [
        ({"records": ()}, RecordState.MISSING, "DANE is not used"),
        ({"records": (RIGHT._replace(data=bytes(32)),)}, RecordState.MISMATCH, "no TLSA record"),
        ({"records": (RIGHT._replace(usage=1),)}, RecordState.MISMATCH, "not used for SMTP"),
        ({"proven": False}, RecordState.MISMATCH, "counts for nobody"),
        ({"proven": None}, RecordState.MATCH, "--trust-ad"),
        ({"chain": (), "unseen": "it does not offer STARTTLS"}, RecordState.UNKNOWN, "does not offer STARTTLS"),
        ({"trouble": "SERVFAIL"}, RecordState.UNKNOWN, "SERVFAIL"),
    ],
)
def test_what_is_wrong_with_dane_is_told(change: dict[str, object], state: RecordState, said: str) -> None:
    found = dane(replace(SEEN, **change), 25, NOW)  # type: ignore[arg-type]
    assert found.state is state
    assert said in found.message
    assert found.wanting is (state is RecordState.MISMATCH)


def test_a_certificate_that_cannot_be_read_has_no_record() -> None:
    assert tlsa_value(b"no certificate") == ""
    assert "(" in dane(replace(SEEN, chain=(b"no certificate",)), 25, NOW).value


def test_an_mx_host_without_an_address_is_told_unless_nobody_knows() -> None:
    assert address(SEEN) is None
    assert address(replace(SEEN, addresses=(), trouble="timeout")) is None
    missing = address(replace(SEEN, addresses=()))
    assert missing is not None
    assert (missing.state, missing.name) == (RecordState.MISSING, HOST)


POLICY = Policy(Mode.ENFORCE, 604_800, (HOST,))


@pytest.mark.parametrize(
    ("found", "ours", "state", "said"),
    [
        (POLICY, None, RecordState.MATCH, "mode enforce"),
        (POLICY, POLICY, RecordState.MATCH, "mode enforce"),
        (POLICY, replace(POLICY, mode=Mode.TESTING), RecordState.MISMATCH, "not the policy of spec.mtaSts"),
        (replace(POLICY, mx=("*.example.net",)), None, RecordState.MISMATCH, f"MX host {HOST}"),
        (Policy(Mode.NONE, 600), None, RecordState.MATCH, "mode none"),
        (FetchFailed(FetchTrouble.FETCH, "status 404"), None, RecordState.MISMATCH, "status 404"),
    ],
)
def test_a_policy_must_be_there_ours_and_name_each_mx_host(
    found: Policy | FetchFailed, ours: Policy | None, state: RecordState, said: str
) -> None:
    told = policy("example.org", found, ours, [HOST])
    assert (told.state, told.name) == (state, "mta-sts.example.org")
    assert said in told.message
