"""Which DNS records a domain needs: every verdict from answers alone, no resolver."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.dnscheck.answers import DnsAnswer, DnsReason, DnsVerdict, Question, Record, RecordState
from mailrail.core.dnscheck.check import check
from mailrail.core.dnscheck.needs import Egress, Needs, needs_of
from mailrail.core.mtasts.own import own_record
from mailrail.core.mtasts.policy import Mode, Policy
from mailrail.core.revision.revision import (
    DkimKey,
    Domain,
    DomainDelivery,
    Gateway,
    Match,
    ObjectRef,
    ReportAddresses,
    Revision,
    RouteLevel,
    Rule,
    SecretRef,
    Transport,
    TransportKind,
)

HOST = "mx1.example.org"
NEEDS = Needs("example.org", True, HOST, (Egress("192.0.2.1", HOST),), (("s1", "v=DKIM1; k=ed25519; p=QUJD"),))
ZONE: dict[tuple[str, str], tuple[str, ...]] = {
    ("TXT", "example.org"): ("some-verification=1", "v=spf1 ip4:192.0.2.0/24 -all"),
    ("TXT", "s1._domainkey.example.org"): ("v=DKIM1; k=ed25519; p=QU JD",),
    ("TXT", "_dmarc.example.org"): ("v=DMARC1; p=reject",),
    ("MX", "example.org"): ("10 mx1.example.org.",),
    ("TXT", "_mta-sts.example.org"): ("v=STSv1; id=20260101",),
    ("A", "mta-sts.example.org"): ("192.0.2.9",),
    ("TXT", "_smtp._tls.example.org"): ("v=TLSRPTv1; rua=mailto:a@example.org",),
    ("PTR", "192.0.2.1"): ("mx1.example.org.",),
    ("A", HOST): ("192.0.2.1",),
}


def judged(needs: Needs, zone: dict[tuple[str, str], tuple[str, ...]], failing: tuple[str, ...] = ()) -> DnsVerdict:
    """Ask until there is a verdict, as the shell does; the rounds must end."""
    known: dict[Question, DnsAnswer] = {}
    for _ in range(20):
        result = check(needs, known)
        if isinstance(result, DnsVerdict):
            return result
        assert result.isdisjoint(known)
        known |= {q: DnsAnswer(zone.get((q.type, q.name), ()), failed=q.name in failing) for q in result}
    raise AssertionError("the questions never end")


def record(verdict: DnsVerdict, purpose: str) -> Record:
    return next(r for r in verdict.records if r.purpose == purpose)


def test_a_domain_with_every_record_is_configured() -> None:
    verdict = judged(NEEDS, ZONE)
    assert (verdict.status, verdict.reason) == ("True", DnsReason.CONFIGURED)
    assert {r.purpose for r in verdict.records} == {"SPF", "DKIM", "DMARC", "MX", "MTA-STS", "TLSRPT", "PTR"}
    assert {r.state for r in verdict.records} == {RecordState.MATCH}


def test_an_empty_zone_says_what_to_publish() -> None:
    verdict = judged(NEEDS, {})
    assert (verdict.status, verdict.reason) == ("False", DnsReason.RECORDS_MISSING)
    assert 'SPF: publish TXT example.org "v=spf1 ip4:192.0.2.1 -all"' in verdict.message
    assert 'DKIM: publish TXT s1._domainkey.example.org "v=DKIM1; k=ed25519; p=QUJD"' in verdict.message
    assert "MX: publish MX example.org 10 mx1.example.org." in verdict.message
    assert "PTR: publish PTR 1.2.0.192.in-addr.arpa mx1.example.org." in verdict.message
    assert "MTA-STS: publish TXT _mta-sts.example.org" in verdict.message
    assert "TLSRPT: publish TXT _smtp._tls.example.org" in verdict.message
    assert "DMARC: publish TXT _dmarc.example.org" in verdict.message


OWN = replace(NEEDS, policy=Policy(Mode.ENFORCE, 604_800, (HOST, "*.backup.example")))
RECORD = f"v=STSv1; id={own_record(Policy(Mode.ENFORCE, 604_800, (HOST, '*.backup.example'))).id};"


def with_sts(*texts: str, **others: tuple[str, ...]) -> dict[tuple[str, str], tuple[str, ...]]:
    zone = ZONE | {("TXT", "_mta-sts.example.org"): texts}
    return zone | {("MX", "example.org"): others["mx"]} if "mx" in others else zone


def test_the_record_of_a_policy_of_ours_is_told_ready_to_copy() -> None:
    told = record(judged(OWN, with_sts()), "MTA-STS")
    assert (told.state, told.value) == (RecordState.MISSING, f'"{RECORD}"')
    assert record(judged(OWN, with_sts(RECORD)), "MTA-STS").state is RecordState.MATCH
    assert judged(OWN, with_sts(RECORD)).reason is DnsReason.CONFIGURED


@pytest.mark.parametrize("texts", [("v=STSv1; id=20260101",), (RECORD, RECORD), ("v=STSv1; id=no-id",)])
def test_another_record_than_that_of_the_policy_is_wrong(texts: tuple[str, ...]) -> None:
    verdict = judged(OWN, with_sts(*texts))
    assert verdict.reason is DnsReason.RECORDS_MISSING
    assert record(verdict, "MTA-STS").state is RecordState.MISMATCH
    assert f"publish {RECORD}" in verdict.message


def test_until_a_policy_is_served_its_record_is_not_told_and_the_one_before_is_right_STS_23b() -> None:
    early = replace(OWN, policy_served=False)
    verdict = judged(early, with_sts())
    assert (verdict.status, verdict.reason) == ("Unknown", DnsReason.PENDING)
    assert "not served yet" in verdict.message
    assert RECORD not in str(verdict)
    before = judged(early, with_sts("v=STSv1; id=20260101"))
    assert before.reason is DnsReason.CONFIGURED
    assert record(before, "MTA-STS").value == '"v=STSv1; id=20260101;"'
    # Whoever has published it all the same has the right record, and a lookup that failed says nothing.
    assert judged(early, with_sts(RECORD)).reason is DnsReason.CONFIGURED
    assert judged(early, ZONE, failing=("_mta-sts.example.org",)).reason is DnsReason.LOOKUP_FAILED


def test_a_lookup_that_failed_is_told_also_where_a_record_is_held_back() -> None:
    early = replace(OWN, policy_served=False)
    assert record(judged(early, with_sts()), "MTA-STS").held_back
    verdict = judged(early, with_sts(), failing=("_dmarc.example.org",))
    assert verdict.reason is DnsReason.LOOKUP_FAILED
    assert "DMARC _dmarc.example.org" in verdict.message


def test_mx_hosts_that_the_policy_keeps_others_from_are_told() -> None:
    inside = judged(OWN, with_sts(RECORD, mx=(f"10 {HOST}.", "20 mx.BACKUP.example.")))
    assert inside.reason is DnsReason.CONFIGURED
    outside = judged(OWN, with_sts(RECORD, mx=(f"10 {HOST}.", "20 mx.elsewhere.example.")))
    assert outside.reason is DnsReason.RECORDS_MISSING
    assert "the policy does not name mx.elsewhere.example" in outside.message
    left = replace(OWN, policy=Policy(Mode.NONE, 86_400))
    assert "does not name" not in judged(left, with_sts(RECORD)).message


def test_the_policy_host_needs_an_address_also_before_the_record_is_there() -> None:
    zone = with_sts()
    del zone["A", "mta-sts.example.org"]
    assert "its policy host has no address" in str(judged(OWN, zone))


def test_a_domain_that_only_sends_needs_no_mx_mta_sts_or_tlsrpt() -> None:
    verdict = judged(replace(NEEDS, receives=False), ZONE)
    assert {r.purpose for r in verdict.records} == {"SPF", "DKIM", "DMARC", "PTR"}


def test_spf_must_cover_the_addresses_of_socks_proxies_too() -> None:
    needs = replace(NEEDS, egress=(*NEEDS.egress, Egress("198.51.100.7", "out1.example.org")))
    verdict = judged(needs, ZONE)
    spf = record(verdict, "SPF")
    assert (spf.state, spf.message) == (RecordState.MISMATCH, "it does not pass 198.51.100.7; add ip4:198.51.100.7")
    assert "ip4:192.0.2.1 ip4:198.51.100.7" in spf.value


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("v=spf1 mx -all", RecordState.MATCH),
        ("v=spf1 a:mx1.example.org -all", RecordState.MATCH),
        ("v=spf1 a:mx1.example.org/24 ~all", RecordState.MATCH),
        ("v=spf1 include:_spf.example.net -all", RecordState.MATCH),
        ("v=spf1 redirect=_spf.example.net", RecordState.MATCH),
        ("v=spf1 exists:mx1.example.org -all", RecordState.MATCH),
        ("v=spf1 -ip4:192.0.2.1 +all", RecordState.MISMATCH),
        ("v=spf1 ?all", RecordState.MISMATCH),
        ("v=spf1", RecordState.MISMATCH),
        ("v=spf1 ip6:2001:db8::/32 -all", RecordState.MISMATCH),
        ("v=spf1 include:nowhere.example -all", RecordState.MISMATCH),
        ("v=spf1 nonsense:x -all", RecordState.MISMATCH),
        ("v=spf1 ip4:300.0.0.1 -all", RecordState.MISMATCH),
        ("v=spf1 include:loop.example -all", RecordState.MISMATCH),
        ("v=spf1 exists:%{i}.ok.example.net -all", RecordState.MATCH),
        ("v=spf1 a:%{h} -all", RecordState.MATCH),
        ("v=spf1 ptr:example.org -all", RecordState.MATCH),
        ("v=spf1 exists:%{i}.example.net -all", RecordState.MISMATCH),
        ("v=spf1 exists:%{l}.example.net -all", RecordState.UNKNOWN),
        ("v=spf1 ip4:192.0.2.1 nonsense -all", RecordState.MISMATCH),
        ("v=spf1 include:broken.example -all", RecordState.UNKNOWN),
    ],
)
def test_spf_is_judged_as_a_receiver_does(text: str, state: RecordState) -> None:
    zone = ZONE | {
        ("TXT", "example.org"): (text,),
        ("TXT", "_spf.example.net"): ("v=spf1 ip4:192.0.2.1 ~all",),
        ("TXT", "loop.example"): ("v=spf1 include:loop.example -all",),
        ("A", "192.0.2.1.ok.example.net"): ("127.0.0.2",),
    }
    spf = record(judged(NEEDS, zone, failing=("broken.example",)), "SPF")
    assert spf.state is state
    assert (spf.message == "") == (state is RecordState.MATCH)


def test_two_spf_records_are_an_error_for_receivers() -> None:
    spf = record(judged(NEEDS, ZONE | {("TXT", "example.org"): ("v=spf1 +all", "v=spf1 -all")}), "SPF")
    assert spf.state is RecordState.MISMATCH
    assert "more than one" in spf.message


@pytest.mark.parametrize(
    ("published", "words"), [("v=DKIM1; p=", "revoked"), ("v=DKIM1; k=ed25519; p=WFla", "not the key of this selector")]
)
def test_another_dkim_key_or_a_revoked_one_is_told_apart(published: str, words: str) -> None:
    verdict = judged(NEEDS, ZONE | {("TXT", "s1._domainkey.example.org"): (published,)})
    assert words in record(verdict, "DKIM").message


def test_a_policy_of_the_organisational_domain_counts_for_dmarc() -> None:
    zone = ZONE | {("TXT", "_dmarc.example.org"): ("v=DMARC1; p=reject; sp=none",)}
    assert record(judged(replace(NEEDS, domain="news.example.org"), zone), "DMARC").state is RecordState.MATCH


def test_a_dmarc_record_without_a_policy_is_wrong() -> None:
    assert record(judged(NEEDS, ZONE | {("TXT", "_dmarc.example.org"): ("v=DMARC1; p=yes",)}), "DMARC").message


def test_an_mx_that_leads_elsewhere_is_named() -> None:
    mx = record(judged(NEEDS, ZONE | {("MX", "example.org"): ("5 mail.elsewhere.example.",)}), "MX")
    assert (mx.state, mx.message) == (
        RecordState.MISMATCH,
        "it leads to mail.elsewhere.example, not to mx1.example.org",
    )


def test_a_ptr_must_lead_back_to_the_address_and_need_not_be_the_ehlo_name() -> None:
    other = ZONE | {("PTR", "192.0.2.1"): ("pool-1.isp.example.",)}
    assert record(judged(NEEDS, other), "PTR").state is RecordState.MISMATCH
    back = record(judged(NEEDS, other | {("A", "pool-1.isp.example"): ("192.0.2.1",)}), "PTR")
    assert back.state is RecordState.MATCH
    assert "EHLO name would be better" in back.message


def test_a_policy_host_without_an_address_is_missing() -> None:
    zone = {k: v for k, v in ZONE.items() if k != ("A", "mta-sts.example.org")}
    missing = [r for r in judged(NEEDS, zone).records if r.state is RecordState.MISSING]
    assert [r.name for r in missing] == ["mta-sts.example.org"]


def test_a_resolver_that_fails_leaves_the_verdict_open_and_accuses_nobody() -> None:
    verdict = judged(NEEDS, {}, failing=tuple(name for _, name in ZONE))
    assert (verdict.status, verdict.reason) == ("Unknown", DnsReason.LOOKUP_FAILED)
    assert {r.state for r in verdict.records} == {RecordState.UNKNOWN}


@given(st.text(max_size=80), st.lists(st.text(max_size=40), max_size=3))
def test_hostile_records_give_a_verdict_and_never_an_exception(spf: str, others: list[str]) -> None:
    zone = {key: tuple(others) for key in ZONE if key[0] in ("TXT", "MX", "PTR")} | {
        ("TXT", "example.org"): (f"v=spf1 {spf}",),
        ("A", HOST): ("192.0.2.1",),
    }
    assert judged(NEEDS, zone).status in ("True", "False", "Unknown")


FOREIGN = Needs("example.org", True, "", selectors=("s1",))


@pytest.mark.parametrize(
    ("answers", "state", "said"),
    [
        ({}, RecordState.MATCH, "mail goes to mx1.example.org"),
        ({("MX", "example.org"): ("0 .",)}, RecordState.MATCH, "it accepts no mail"),
        ({("MX", "example.org"): (), ("A", "example.org"): ("192.0.2.1",)}, RecordState.MATCH, "the domain itself"),
        ({("MX", "example.org"): ()}, RecordState.MISSING, "no such record"),
    ],
)
def test_of_a_domain_that_is_not_ours_it_is_told_where_its_mail_goes(
    answers: dict[tuple[str, str], tuple[str, ...]], state: RecordState, said: str
) -> None:
    found = record(judged(FOREIGN, ZONE | answers), "MX")
    assert found.state is state
    assert said in found.message


@pytest.mark.parametrize(
    ("texts", "state", "said"),
    [
        (("v=DKIM1; k=rsa; p=QUJD",), RecordState.MATCH, ""),
        ((), RecordState.MISSING, "no such record"),
        (("v=DKIM1; p=",), RecordState.MISMATCH, "revoked"),
        (("v=DKIM1; k=rsa",), RecordState.MISMATCH, "one record with a key"),
        (("p=QUJD", "p=QUJE"), RecordState.MISMATCH, "one record with a key"),
    ],
)
def test_a_key_of_which_only_the_selector_is_known_must_be_there(
    texts: tuple[str, ...], state: RecordState, said: str
) -> None:
    found = record(judged(FOREIGN, ZONE | {("TXT", "s1._domainkey.example.org"): texts}), "DKIM")
    assert found.state is state
    assert said in found.message


# --- what is needed ---------------------------------------------------------------------------------------------


def _ref(kind: str, name: str) -> ObjectRef:
    return ObjectRef(kind, "mail", name)


GATEWAY = Gateway(_ref("MailGateway", "mx1"), HOST, (), _ref("MailAccount", "postmaster"))
KEY = DkimKey("s1", "ed25519-sha256", SecretRef("mail", "dkim", "private.pem", "d", "k"), record="v=DKIM1; p=QUJD")
DOMAIN = Domain(_ref("MailDomain", "org"), "example.org", DomainDelivery.MAILBOX, dkim=(KEY,), gateway=GATEWAY.ref)
PROXY = Transport(
    _ref("MailTransport", "proxy"),
    TransportKind.SOCKS,
    remote_ips=("198.51.100.7", "2001:db8::7"),
    remote_hostname="out1.example.org",
)
RELAY = Transport(_ref("MailTransport", "relay"), TransportKind.SMTP, host="relay.example.org")


def _revision(*rules: Rule) -> Revision:
    level = RouteLevel(GATEWAY.ref, rules)
    return Revision(gateways=(GATEWAY,), domains=(DOMAIN,), transports=(PROXY, RELAY), global_routes=(level,))


def test_addresses_beyond_the_limit_are_not_passed_over_in_silence() -> None:
    pool = replace(PROXY, remote_ips=tuple(f"198.51.100.{n}" for n in range(40)))
    revision = Revision(
        gateways=(GATEWAY,),
        domains=(DOMAIN,),
        transports=(pool,),
        global_routes=(RouteLevel(GATEWAY.ref, (_rule(pool.ref),)),),
    )
    needs = needs_of(DOMAIN, revision, ())
    assert needs is not None
    assert len(needs.egress) == 32
    assert needs.notes == ("only the first 32 of 40 egress addresses are checked",)


def _rule(transport: ObjectRef | None, *matches: Match) -> Rule:
    return Rule(_ref("MailRoute", "r"), 0, "r", matches, transport)


def test_mail_can_leave_from_proxies_that_rules_name_and_directly_when_no_rule_takes_all() -> None:
    revision = _revision(_rule(PROXY.ref, Match(to_domains=("example.net",))))
    needs = needs_of(DOMAIN, revision, ("192.0.2.1",))
    assert needs is not None
    assert [e.address for e in needs.egress] == ["192.0.2.1", "198.51.100.7", "2001:db8::7"]
    assert [e.hostname for e in needs.egress] == [HOST, "out1.example.org", "out1.example.org"]
    assert needs.dkim == (("s1", "v=DKIM1; p=QUJD"),)
    assert not needs.notes


def test_a_rule_that_takes_everything_leaves_no_direct_delivery() -> None:
    needs = needs_of(DOMAIN, _revision(_rule(RELAY.ref), _rule(PROXY.ref)), ("192.0.2.1",))
    assert needs is not None
    assert needs.egress == ()
    assert not needs.notes


def test_unknown_addresses_of_direct_delivery_are_said_and_not_guessed() -> None:
    needs = needs_of(DOMAIN, _revision(), ())
    assert needs is not None
    assert "are not known" in needs.notes[0]


def test_a_domain_without_its_gateway_needs_nothing_yet() -> None:
    assert needs_of(replace(DOMAIN, gateway=_ref("MailGateway", "gone")), _revision(), ()) is None


REPORTING = replace(NEEDS, dmarc_reports="d-r@example.org", tls_reports="t!r@example.org")


def test_the_records_to_publish_name_the_addresses_that_take_reports() -> None:
    verdict = judged(REPORTING, ZONE)
    assert record(verdict, "DMARC").value == '"v=DMARC1; p=none; rua=mailto:d-r@example.org"'
    assert record(verdict, "TLSRPT").value == '"v=TLSRPTv1; rua=mailto:t%21r@example.org"'  # TRPT-21
    for purpose, address in (("DMARC", "d-r@example.org"), ("TLSRPT", "t!r@example.org")):
        assert record(verdict, purpose).state is RecordState.MISMATCH
        assert address in record(verdict, purpose).message


def test_records_that_name_the_report_addresses_among_others_are_as_they_should_be() -> None:
    zone = ZONE | {
        ("TXT", "_dmarc.example.org"): ("v=DMARC1; p=reject; rua=mailto:x@else.example!10m, mailto:D-R@example.org",),
        ("TXT", "_smtp._tls.example.org"): ("v=TLSRPTv1; rua=https://else.example/r,mailto:t%21r@example.org",),
    }
    verdict = judged(REPORTING, zone)
    assert {record(verdict, purpose).state for purpose in ("DMARC", "TLSRPT")} == {RecordState.MATCH}


def test_a_parents_dmarc_record_may_send_its_reports_elsewhere() -> None:
    needs = replace(REPORTING, domain="sub.example.org")
    assert record(judged(needs, ZONE), "DMARC").state is RecordState.MATCH


def test_what_a_domain_needs_names_its_report_addresses() -> None:
    gateway = Gateway(ObjectRef("MailGateway", "mail", "g"), HOST, (), ObjectRef("MailAccount", "mail", "p"))
    ours = Domain(ObjectRef("MailDomain", "mail", "d"), "example.org", DomainDelivery.MAILBOX, gateway=gateway.ref)
    for reports, named in ((None, ("", "")), (ReportAddresses("a", "b"), ("a@example.org", "b@example.org"))):
        reporting = replace(ours, reports=reports)
        needs = needs_of(reporting, Revision(gateways=(gateway,), domains=(reporting,)), ())
        assert needs is not None
        assert (needs.dmarc_reports, needs.tls_reports) == named
