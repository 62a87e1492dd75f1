"""What is malformed, broken or hostile about TLS, end to end: policies, records, certificates and replies.

Each sample is a domain of its own. The timeline gives a reason in words, and the message waits, goes or fails as the
rule says: nothing is lost, and nothing goes with less than it would without the sample. Samples named like cases
(sts-12, dane-14) are those that went wrong elsewhere.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from testkit.ca import Authority, Certificate, issue_oversized
from testkit.conditions import wait_until
from testkit.smtp_peer import Close, Raw, Step
from testkit.tls_rows import REQUIRED, Fails, Goes, Network, Publishes, Row, Waits, delivering
from testkit.tls_world import (
    ISSUER,
    OWN_KEY,
    Mx,
    expired,
    for_another_name,
    of_a_stranger,
    policy,
    with_its_issuer,
)

pytestmark = [pytest.mark.peer("nsd"), pytest.mark.peer("unbound"), pytest.mark.timeout(600)]

STRANGER = Mx(of_a_stranger)


def text(body: str | bytes, **answer: Any) -> Publishes:
    """A record that is right, and a policy host that answers so. `{mx}` stands for the host."""
    octets = body.encode("latin-1") if isinstance(body, str) else body
    return lambda _, domain: {"policy": octets.replace(b"{mx}", f"mx1.{domain}".encode()), **answer}


def shown(make: Callable[[Authority, str], Certificate]) -> Publishes:
    """A policy that is right, from a host that shows this certificate."""
    return lambda authority, domain: {
        "policy": policy("enforce", f"mx1.{domain}"),
        "certificate": make(authority, f"mta-sts.{domain}"),
    }


def records(*texts: str) -> Publishes:
    """A policy that is right, and these TXT records."""
    return lambda _, domain: {"policy": policy("enforce", f"mx1.{domain}"), "record": texts}


def lines(*fields: str) -> str:
    return "".join(f"{field}\n" for field in fields)


FIELDS = ("version: STSv1", "mode: enforce", "mx: {mx}", "max_age: 604800")
INVALID: list[tuple[str, Publishes, str]] = [
    ("sts-12 no mx", text(lines(*FIELDS[:2], "nmx: {mx}", FIELDS[3])), "it has no mx"),
    ("sts-18 eleven digits", text(lines(*FIELDS[:3], "max_age: 60480000000")), "of 1 to 10 digits"),
    ("sts-18 a sign", text(lines(*FIELDS[:3], "max_age: -1")), "of 1 to 10 digits"),
    ("sts-18 a unit", text(lines(*FIELDS[:3], "max_age: 7d")), "of 1 to 10 digits"),
    ("sts-20 mode in capitals", text(lines(FIELDS[0], "mode: Enforce", *FIELDS[2:])), "in small letters"),
    ("sts-22 front matter", text(lines("---", "layout: none", "---", *FIELDS)), "line 1 is no field"),
    ("sts-24 asterisks", text(lines(*FIELDS[:2], "mx: mx.*.test", "mx: *", FIELDS[3])), "none of its mx is a host"),
    ("p07 empty lines", text(lines(*FIELDS, "", "")), "line 5 is empty"),
    ("p08 a permalink", text(lines("---", "permalink: x", "---", "", *FIELDS)), "line 1 is no field"),
    ("a byte order mark", text(b"\xef\xbb\xbf" + lines(*FIELDS).encode()), "byte order mark"),
    ("no utf-8", text(lines(*FIELDS, "note: \xff\xfe")), "is not UTF-8"),
    ("a control character", text(lines(*FIELDS, "note: \x1b[2J")), "control character"),
    ("another version", text(lines("version: STSv2", *FIELDS[1:])), "not STSv1"),
    ("an empty policy", text(""), "it has no version"),
]
NOT_FETCHED: list[tuple[str, Publishes, str]] = [
    ("sts-25 a redirect", text(lines(*FIELDS), status="301 Moved Permanently"), "redirects are not followed"),
    ("not found", text(lines(*FIELDS), status="404 Not Found"), "status 404"),
    ("sts-27 html", text(lines(*FIELDS), media="text/html"), "not text/plain"),
    ("sts-29 too long", text(lines(*FIELDS, *["x-pad: x" * 100] * 90)), "more than 65536 octets"),
]
NOT_PROVEN: list[tuple[str, Publishes, str]] = [
    ("sts-31 expired", shown(expired), "expired"),
    ("sts-31 self-signed", shown(of_a_stranger), "does not prove it"),
    ("sts-31 another name", shown(for_another_name), "ismatch"),
    ("sts-31 a common name", shown(lambda ca, name: ca.issue("x.test", common_name=name)), "ismatch"),
]
NO_RECORD: list[tuple[str, Publishes, str]] = [
    ("sts-01 two records", records("v=STSv1; id=1;", "v=STSv1; id=2;"), "2 TXT records start with v=STSv1;"),
    ("sts-05 no semicolon", records("v=STSv1 id=1"), "no TXT record starts with v=STSv1;"),
    ("no id", records("v=STSv1; mode=enforce;"), "it has no id"),
    ("an id of signs", records("v=STSv1; id=2026-01-01;"), "not 1 to 32 letters and digits"),
    ("no field", records("v=STSv1; enforce; id=1;"), "no field of the form name=value"),
]
POLICIES = [
    (name, made, why, reported)
    for samples, reported in (
        (INVALID, "sts-policy-invalid"),
        (NOT_FETCHED, "sts-policy-fetch-error"),
        (NOT_PROVEN, "sts-webpki-invalid"),
        (NO_RECORD, ""),
    )
    for name, made, why in samples
]
"""Records and policies that are none (STS_01 STS_02 STS_04 STS_05 STS_06): name, what is published, the reason in
words, and the failure that reports tell."""
GOES_ON = [
    Row(name, Goes("none", words=why), (STRANGER,), publishes=made, reported=reported)
    for name, made, why, reported in POLICIES
]
"""STS_15b: as without a policy, and nothing is proven by it."""
COMES_BACK = [
    Row(f"{name} and required", Fails("5.7.30", "", words=why), publishes=made, says=REQUIRED, reported=reported)
    for name, made, why, reported in POLICIES
]
"""RTLS_11b: nothing vouches for the host, whose certificate is good and who offers REQUIRETLS."""
ODD_AND_VALID = [
    Row("sts-14 an address", Goes("mta_sts"), publishes=text(lines(*FIELDS, "mx: 192.0.2.56"))),
    Row("sts-16 of two the first", Goes("mta_sts"), publishes=text(lines(*FIELDS, "mode: none"))),
    Row(
        "sts-11 mixed ends",
        Goes("mta_sts"),
        publishes=text("max_age: 60 \r\nmx:\t{mx}\t\nmode:enforce\r\nversion: STSv1"),
    ),
    Row("sts-07 a second id", Goes("mta_sts"), publishes=records("v=STSv1; a.b-c=hello; id=A1; id=B2")),
]
ZEROS = 64 * "0"
UNUSABLE: list[tuple[str, tuple[str, ...], str]] = [
    ("dane-17 usages of pkix", (f"1 1 1 {ZEROS}", f"0 0 1 {ZEROS}"), "certificate usage 1 is not used for SMTP"),
    ("dane-19 a selector", (f"3 2 1 {ZEROS}",), "selector 2 is not known"),
    ("dane-19 a matching type", (f"3 1 3 {ZEROS}",), "matching type 3 is not known"),
    ("dane-19 a usage", (f"255 1 1 {ZEROS}",), "certificate usage 255 is not known"),
    ("a short digest", ("\\# 5 030101abcd",), "has 32 octets, this one has 2"),
    ("no certificate", ("3 0 0 deadbeef",), "not a certificate in DER"),
    ("no public key", ("2 1 0 deadbeef",), "not a public key in DER"),
]
"""TLSA records that cannot be used (DANE_09), and why."""
TLSA = [
    row
    for name, published, why in UNUSABLE
    for row in (
        Row(name, Goes("none", words=why), (Mx(of_a_stranger, tlsa=published),), True, reported="tlsa-invalid"),
        Row(f"{name} and no tls", Waits("no-tls", "TLS", True), (Mx(None, tlsa=published),), signed=True),
    )
]
"""DANE_15b."""
CHAINS = [
    Row(
        "dane-12 a wrong digest that is stronger",
        Waits("tlsa", "no TLSA record", True),
        (Mx(tlsa=("another 3 0 2", "own 3 0 1")),),
        signed=True,
        reported="validation-failure",
    ),
    Row(
        "dane-14 a malformed digest that is stronger",
        Goes("dane", words="has 64 octets, this one has 62"),
        (Mx(of_a_stranger, tlsa=(f"\\# 65 030102{62 * '00'}", OWN_KEY)),),
        signed=True,
    ),
    Row(
        "dane-04 an issuer that is not sent",
        Waits("tlsa", "TLSA", True),
        (Mx(tlsa=(ISSUER,)),),
        signed=True,
        reported="validation-failure",
    ),
    Row(
        "dane-06 an issuer and an expired leaf",
        Waits("certificate", "expired", True),
        (Mx(lambda ca, name: with_its_issuer(ca.issue_expired(name), ca), tlsa=(ISSUER,)),),
        signed=True,
        reported="certificate-expired",
    ),
    Row(
        "an issuer and another name",
        Waits("certificate", "is for not-mx1", True),
        (Mx(lambda ca, name: with_its_issuer(ca.issue(f"not-{name}"), ca), tlsa=(ISSUER,)),),
        signed=True,
        reported="certificate-host-mismatch",
    ),
]
"""DANE_11 DANE_18."""
CERTIFICATES = [
    Row(
        "a common name",
        Waits("certificate", "ismatch", True),
        (Mx(lambda ca, n: ca.issue("x.test", common_name=n)),),
        mode="enforce",
        reported="certificate-host-mismatch",
    ),
    Row(
        "not yet valid",
        Waits("certificate", "not yet valid", True),
        (Mx(lambda ca, n: ca.issue_premature(n)),),
        mode="enforce",
        reported="validation-failure",
    ),
    Row(
        "a megabyte",
        Waits("no-tls", "TLS handshake", True),
        (Mx(lambda _, n: issue_oversized(n, 1_000_000)),),
        mode="enforce",
        reported="validation-failure",
    ),
    Row(
        "a wildcard of two labels",
        Waits("certificate", "ismatch", True),
        (Mx(lambda ca, _: ca.issue("*.test")),),
        mode="enforce",
        reported="certificate-host-mismatch",
    ),
]
"""STS_11: `*.test` is not `mx1.DOMAIN.test`."""
REFUSED, BROKEN = "starttls-not-supported", "validation-failure"
REPLIES: list[tuple[str, Step, str, str]] = [
    ("starttls refused", "454 4.7.0 TLS not available", "454 4.7.0 TLS not available", REFUSED),
    ("starttls not understood", "501 5.5.4 what", "501 5.5.4 what", REFUSED),
    ("starttls answered by an end", Close(), "connection", BROKEN),
    ("starttls answered by nonsense", Raw(b"what\r\n"), "what", BROKEN),
    ("starttls and then no tls", Raw(b"220 go ahead\r\nthis is no TLS\r\n"), "TLS", BROKEN),
    ("starttls and control characters", Raw(b"454 \x1b[2J\x00\xff\r\n"), "454", REFUSED),
]
"""Replies to STARTTLS, what the timeline has of them, and the failure that reports tell."""
STARTTLS = [
    row
    for name, said, why, reported in REPLIES
    for host in (Mx(replies={"STARTTLS": said}),)
    for row in (
        Row(name, Goes("clear", words=why), (host,), reported=reported),
        Row(f"{name} and enforce", Waits("no-tls", "", True, "4."), (host,), mode="enforce", reported=reported),
    )
]
"""TLS_07 STS_10b."""
AGAIN: dict[str, Step] = {"EHLO": lambda session, _: "503 5.5.1 you said that" if session.tls else None}
SECOND_EHLO = [
    Row("a second ehlo refused", Goes("clear", words="503"), (Mx(replies=AGAIN),), reported=BROKEN),
    Row(
        "a second ehlo refused and enforce",
        Waits("no-tls", "you said that", True, "4."),
        (Mx(replies=AGAIN),),
        mode="enforce",
        reported=BROKEN,
    ),
]
DNS = [
    Row("bogus", Waits("", "MX of bogus.test"), ours=False),
    Row("expired", Waits("", "MX of expired.test"), ours=False),
    Row("bogus-tlsa", Waits("tlsa-unanswered", "TLSA of"), ours=False, reported="dnssec-invalid"),
    Row("refuses-tlsa", Waits("tlsa-unanswered", "TLSA of"), ours=False),
    Row("notimp-tlsa", Waits("tlsa-unanswered", "TLSA of"), ours=False),
]
"""DANE_02: a failure is never "there is none"."""
ROWS = [
    *GOES_ON,
    *COMES_BACK,
    *ODD_AND_VALID,
    *TLSA,
    *CHAINS,
    *CERTIFICATES,
    *STARTTLS,
    *SECOND_EHLO,
    *DNS,
]


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with delivering(ROWS) as made:
        yield made


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS])
def test_what_is_wrong_is_told_in_words_and_mail_goes_waits_or_fails_as_the_rule_says(
    network: Network, row: Row
) -> None:
    network.check(row)


def test_what_is_wrong_is_counted_for_reports_under_the_type_that_says_it_TRPT_07c(network: Network) -> None:
    """TRPT-07a, TRPT-07c: of the domain and of its hosts."""
    wanted = {row.domain: {row.reported} for row in ROWS if row.reported}
    wait_until(
        lambda: {domain: network.reported().get(domain) for domain in wanted} == wanted,
        60,
        lambda: f"{wanted}; told are {network.reported()}",
    )


@pytest.mark.parametrize("sample", [INVALID[0], NOT_PROVEN[0], *NO_RECORD], ids=lambda sample: sample[0])
def test_a_domain_is_shown_with_what_is_wrong_with_its_policy(
    network: Network, sample: tuple[str, Publishes, str]
) -> None:
    name, _, why = sample
    domain = next(row.domain for row in ROWS if row.name == name)
    assert why in " ".join(network.rail.cli("tls", domain).split())
