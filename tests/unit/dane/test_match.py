"""What a server presents, against what TLSA records name: every chain that matches, and none that should not."""

import datetime
import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier
from hypothesis import given, settings
from hypothesis import strategies as st

from mailrail.core.dane.demand import DaneDemand
from mailrail.core.dane.match import (
    MOST_CERTIFICATES,
    MOST_OCTETS,
    MOST_SIGNATURES,
    DaneVerdict,
    verify,
)
from mailrail.core.dane.reading import Link, Outline, public_key
from mailrail.core.dane.tlsa import TlsaRecord
from mailrail.core.tlsrpt.result_type import ResultType

from testkit.chains import Issued, issue

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
LAST_YEAR = datetime.datetime(2025, 6, 1, tzinfo=datetime.UTC)
NEXT_YEAR = datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC)
HOST = "mx.example.com"

ROOT = issue("Root", ca=True)
ISSUER = issue("Issuer", by=ROOT, ca=True)
SERVER = issue(HOST, HOST, by=ISSUER)
STRANGER = issue(HOST, HOST)  # what an attacker can make
NONE = TlsaRecord(3, 1, 1, bytes(32))
"""It names nothing."""


def record(usage: int, selector: int, matching: int, of: Issued) -> TlsaRecord:
    content = of.key_info if selector else of.der
    data = {0: lambda: content, 1: hashlib.sha256(content).digest, 2: hashlib.sha512(content).digest}[matching]()
    return TlsaRecord(usage, selector, matching, data)


def match(
    chain: Sequence[Issued | bytes], *records: TlsaRecord, names: Sequence[str] = (HOST,), now: datetime.datetime = NOW
) -> DaneVerdict:
    ders = [each if isinstance(each, bytes) else each.der for each in chain]
    return verify(ders, DaneDemand.of(HOST, records, names), now)


def fault(verdict: DaneVerdict) -> tuple[ResultType, str]:
    assert verdict.fault is not None
    assert verdict.fault.detail.isprintable()
    assert len(verdict.fault.detail) < 2000
    assert not verdict.matched
    return verdict.fault.type, verdict.fault.reason


EVERY_FORM = [(selector, matching) for selector in (0, 1) for matching in (0, 1, 2)]


@pytest.mark.parametrize(("selector", "matching"), EVERY_FORM)
def test_the_servers_own_certificate_matches_whatever_it_says(selector: int, matching: int) -> None:
    server = issue("wrong.example", "wrong.example", ends=LAST_YEAR)
    named = record(3, selector, matching, server)
    assert match([server], named) == DaneVerdict(named, None)
    assert match([server, ISSUER], named).matched
    assert not match([STRANGER, server], named).matched  # it is not the server's own there
    assert fault(match([STRANGER], named)) == (ResultType.VALIDATION_FAILURE, "tlsa-mismatch")


def test_of_several_records_one_that_matches_is_enough_DANE_19() -> None:
    old, new = record(3, 1, 1, STRANGER), record(3, 1, 1, SERVER)
    assert match([SERVER], old, new).record == new
    assert match([STRANGER], old, new).record == old
    assert match([SERVER, ISSUER], old, record(2, 0, 1, ISSUER)).matched
    assert not match([issue(HOST, HOST)], old, new, record(2, 0, 1, ISSUER)).matched


@pytest.mark.parametrize(("selector", "matching"), EVERY_FORM)
@pytest.mark.parametrize("anchor", [ISSUER, ROOT])
def test_an_issuer_that_was_sent_matches(anchor: Issued, selector: int, matching: int) -> None:
    named = record(2, selector, matching, anchor)
    verdict = match([SERVER, ISSUER, ROOT], named)
    assert (verdict.record, verdict.fault) == (named, None)
    assert verdict.until == SERVER.certificate.not_valid_after_utc
    assert match([SERVER, ISSUER, ROOT], NONE, named).matched


@pytest.mark.parametrize("anchor", [ISSUER, ROOT])
def test_an_issuer_that_was_not_sent_matches_only_if_the_record_has_it_whole(anchor: Issued) -> None:
    sent = [SERVER] if anchor is ISSUER else [SERVER, ISSUER]
    for selector in (0, 1):
        assert match(sent, record(2, selector, 0, anchor)).matched
        for matching in (1, 2):
            assert fault(match(sent, record(2, selector, matching, anchor))) == (
                ResultType.VALIDATION_FAILURE,
                "tlsa-mismatch",
            )
    assert not match([SERVER], record(2, 0, 0, ROOT)).matched  # the one between them is missing
    assert not match([SERVER], record(2, 1, 0, ROOT)).matched


def test_certificates_that_belong_to_no_chain_and_come_in_any_order_are_no_hindrance() -> None:
    others = [issue(f"Other {i}", ca=True) for i in range(6)]
    twin = issue("Issuer", by=ROOT, ca=True)  # of the same name, with another key
    named = record(2, 0, 1, ROOT)
    orders: list[list[Issued | bytes]] = [
        [SERVER, ROOT, ISSUER],
        [SERVER, *others, twin, ISSUER, ROOT],
        [SERVER, ROOT, twin, *others, ISSUER],
        [SERVER, SERVER, ISSUER, ISSUER, ROOT],
        [SERVER, b"", b"\x30\x80", ISSUER.der[:-3], ISSUER, ROOT],
    ]
    for sent in orders:
        assert match(sent, named).matched


def test_a_cross_signed_issuer_leads_to_either_root() -> None:
    other_root = issue("Other Root", ca=True)
    crossed = issue("Issuer", by=other_root, ca=True, key=ISSUER.key)
    for sent in ([SERVER, ISSUER, crossed, ROOT, other_root], [SERVER, crossed, ISSUER, other_root, ROOT]):
        assert match(sent, record(2, 0, 1, ROOT)).matched
        assert match(sent, record(2, 0, 1, other_root)).matched


def test_an_issuer_of_the_right_name_and_the_wrong_key_vouches_for_nothing() -> None:
    forged = issue(HOST, HOST, by=issue("Issuer", ca=True))
    assert fault(match([forged, ISSUER, ROOT], record(2, 0, 1, ISSUER))) == (
        ResultType.CERTIFICATE_NOT_TRUSTED,
        "no-chain",
    )
    assert not match([STRANGER, ISSUER, ROOT], record(2, 0, 1, ISSUER)).matched
    assert not match([STRANGER], record(2, 1, 0, ISSUER)).matched


def test_a_record_of_an_issuer_never_names_the_servers_own_certificate() -> None:
    alone = issue(HOST, HOST, ca=True)
    for selector, matching in EVERY_FORM:
        verdict = match([alone], record(2, selector, matching, alone))
        assert verdict.matched is (selector == 1 and matching == 0)  # it is signed with that key


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        (issue(HOST, HOST, by=ISSUER, ends=LAST_YEAR), (ResultType.CERTIFICATE_EXPIRED, "certificate-expired")),
        (
            issue(HOST, HOST, by=ISSUER, begins=NEXT_YEAR),
            (ResultType.VALIDATION_FAILURE, "certificate-not-yet-valid"),
        ),
        (
            issue("other", "other.example.com", by=ISSUER),
            (ResultType.CERTIFICATE_HOST_MISMATCH, "host-mismatch"),
        ),
        (issue(HOST, by=ISSUER), (ResultType.CERTIFICATE_HOST_MISMATCH, "host-mismatch")),  # a common name is none
        (
            issue(
                HOST,
                HOST,
                by=ISSUER,
                extensions=[(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False)],
            ),
            (ResultType.CERTIFICATE_NOT_TRUSTED, "unfit-certificate"),
        ),
        (
            issue(
                HOST,
                HOST,
                by=ISSUER,
                extensions=[(x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), b"\5\0"), True)],
            ),
            (ResultType.CERTIFICATE_NOT_TRUSTED, "unfit-certificate"),
        ),
        (
            issue(HOST, HOST, by=ISSUER, key=rsa.generate_private_key(65537, 1024)),
            (ResultType.CERTIFICATE_NOT_TRUSTED, "unfit-certificate"),
        ),
    ],
    ids=["expired", "premature", "other name", "no name", "for clients", "critical", "weak key"],
)
def test_below_an_issuer_date_name_and_purpose_count_DANE_13(server: Issued, expected: tuple[ResultType, str]) -> None:
    assert fault(match([server, ISSUER], record(2, 0, 1, ISSUER))) == expected
    assert match(
        [server, ISSUER], record(2, 0, 1, ISSUER), record(3, 1, 1, server)
    ).matched  # and not where it is named


@pytest.mark.parametrize("name", ["*.example.com", "MX.Example.COM"])
def test_a_wildcard_and_any_letter_case_match_DANE_13(name: str) -> None:
    assert match([issue("x", "a.example", name, by=ISSUER), ISSUER], record(2, 0, 1, ISSUER)).matched


def test_one_of_the_names_is_enough() -> None:
    server = issue("x", "example.com", by=ISSUER)
    assert match([server, ISSUER], record(2, 0, 1, ISSUER), names=(HOST, "example.com")).matched
    assert not match([server, ISSUER], record(2, 0, 1, ISSUER), names=(HOST,)).matched
    assert not match([server, ISSUER], record(2, 0, 1, ISSUER), names=()).matched


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(True, False, False, False, False, signs, False, False, False)


@pytest.mark.parametrize(
    ("issuer", "reason"),
    [
        (issue("I", by=ROOT, ca=False), "unfit-issuer"),
        (issue("I", by=ROOT, ca=True, ends=LAST_YEAR), "certificate-expired"),
        (issue("I", by=ROOT, ca=True, begins=NEXT_YEAR), "certificate-not-yet-valid"),
        (issue("I", by=ROOT, ca=True, extensions=[(_usage(signs=False), True)]), "unfit-issuer"),
        (
            issue(
                "I",
                by=ROOT,
                ca=True,
                extensions=[(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False)],
            ),
            "unfit-issuer",
        ),
        (issue("I", by=issue("Root", ca=True), ca=True), "no-chain"),
        (issue("I", by=ROOT, ca=True, key=rsa.generate_private_key(65537, 1024)), "unfit-issuer"),
    ],
    ids=["no ca", "expired", "premature", "signs nothing", "for mail", "forged", "weak key"],
)
def test_an_issuer_must_be_allowed_to_vouch(issuer: Issued, reason: str) -> None:
    server = issue(HOST, HOST, by=issuer)
    assert fault(match([server, issuer, ROOT], record(2, 0, 1, ROOT)))[1] == reason
    if reason != "no-chain":  # nor is it one that the record names
        assert fault(match([server, issuer], record(2, 0, 1, issuer)))[1] == reason
        assert fault(match([server], record(2, 0, 0, issuer)))[1] == reason


def test_an_issuer_may_bound_how_many_follow_it() -> None:
    top = issue("Top", ca=True, path_length=0)
    middle = issue("Middle", by=top, ca=True)
    server = issue(HOST, HOST, by=middle)
    assert fault(match([server, middle, top], record(2, 0, 1, top)))[1] == "path-too-long"
    assert match([issue(HOST, HOST, by=top), top], record(2, 0, 1, top)).matched
    assert match([server, middle, top], record(2, 0, 1, middle)).matched  # what is above the anchor does not count


@pytest.mark.parametrize(
    ("permitted", "excluded", "names", "allowed"),
    [
        (["example.com"], [], [HOST], True),
        ([HOST], [], [HOST], True),
        ([".example.com"], [], [HOST], True),
        ([""], [], [HOST], True),
        (["example.org"], [], [HOST], False),
        (["ple.com"], [], [HOST], False),
        ([".mx.example.com"], [], [HOST], False),
        (["example.com"], [], [HOST, "other.example"], False),
        ([], ["example.com"], [HOST], False),
        ([], ["mil"], [HOST], True),
        ([], [HOST], ["*.example.com"], False),
        ([HOST], [], ["*.example.com"], False),
        ([], [""], [HOST], False),
    ],
)
def test_what_an_issuer_may_vouch_for_is_respected(
    permitted: list[str], excluded: list[str], names: list[str], allowed: bool
) -> None:
    constraints = x509.NameConstraints(
        [x509.DNSName(each) for each in permitted] or None, [x509.DNSName(each) for each in excluded] or None
    )
    issuer = issue("I", by=ROOT, ca=True, extensions=[(constraints, True)])
    verdict = match([issue("x", *names, by=issuer), issuer, ROOT], record(2, 0, 1, ROOT))
    assert verdict.matched is allowed
    assert allowed or fault(verdict) == (ResultType.CERTIFICATE_NOT_TRUSTED, "name-constraints")


def test_constraints_on_names_of_other_kinds_are_never_passed_over() -> None:
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example")])
    issuer = issue(
        "I", by=ROOT, ca=True, extensions=[(x509.NameConstraints([x509.DirectoryName(subject)], None), True)]
    )
    verdict = match([issue(HOST, HOST, by=issuer), issuer, ROOT], record(2, 0, 1, ROOT))
    assert fault(verdict) == (ResultType.CERTIFICATE_NOT_TRUSTED, "name-constraints")
    mail = x509.NameConstraints([x509.RFC822Name("example.com")], None)
    issuer = issue("I", by=ROOT, ca=True, extensions=[(mail, True)])
    assert match([issue(HOST, HOST, by=issuer), issuer, ROOT], record(2, 0, 1, ROOT)).matched  # it has no such name


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 2048),
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
        ed448.Ed448PrivateKey.generate(),
    ],
    ids=["rsa", "p-384", "ed25519", "ed448"],
)
def test_issuers_have_keys_of_all_kinds(key: object) -> None:
    ed = isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "I")])
    issuer = _signed(name, name, key, key, ca=True, ed=ed)
    server = _signed(x509.Name([]), name, ec.generate_private_key(ec.SECP256R1()), key, ca=False, ed=ed)
    for selector, matching in EVERY_FORM:
        assert match([server, issuer], record(2, selector, matching, issuer)).matched
    assert match([server], record(2, 1, 0, issuer)).matched
    assert not match([server], record(2, 1, 0, ISSUER)).matched


def _signed(subject: x509.Name, issuer: x509.Name, key: object, by: object, *, ca: bool, ed: bool) -> Issued:
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())  # type: ignore[attr-defined]
        .serial_number(7)
        .not_valid_before(LAST_YEAR)
        .not_valid_after(NEXT_YEAR)
        .add_extension(x509.BasicConstraints(ca, None), True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), True)
    )
    return Issued(builder.sign(by, None if ed else hashes.SHA256()), key)  # type: ignore[arg-type]


def test_a_signature_of_a_broken_digest_vouches_for_nothing() -> None:
    issuer = issue("I", ca=True, key=rsa.generate_private_key(65537, 2048))
    server = issue(HOST, HOST, by=issuer)
    named = record(2, 0, 1, issuer)
    assert match([server, issuer], named).matched
    sha256, sha1 = (bytes.fromhex("06092a864886f70d0101" + last) for last in ("0b", "05"))
    content = server.certificate.tbs_certificate_bytes.replace(sha256, sha1)
    signature = issuer.key.sign(content, padding.PKCS1v15(), hashes.SHA1())
    der = server.der.replace(server.certificate.tbs_certificate_bytes, content)
    der = der.replace(sha256, sha1).replace(server.certificate.signature, signature)
    assert x509.load_der_x509_certificate(der).signature_hash_algorithm is not None
    assert fault(match([der, issuer], named)) == (ResultType.CERTIFICATE_NOT_TRUSTED, "no-chain")


def test_a_key_is_compared_as_it_is_written() -> None:
    for each in (ROOT, SERVER, STRANGER):
        assert Outline.of(each.der).key == each.key_info


# --- hostile servers ----------------------------------------------------------------------------------------------


def test_a_server_without_a_certificate_matches_nothing() -> None:
    assert fault(match([], NONE)) == (ResultType.VALIDATION_FAILURE, "no-certificate")


def test_a_certificate_of_a_megabyte_is_not_even_hashed() -> None:
    huge = b"\x30\x84\x00\x10\x00\x00" + bytes(2**20)
    named = TlsaRecord(3, 0, 1, hashlib.sha256(huge).digest())
    assert fault(match([huge], named)) == (ResultType.VALIDATION_FAILURE, "chain-too-large")
    assert fault(match([SERVER, *[ISSUER] * 400, ROOT], NONE))[1] == "chain-too-large"
    assert MOST_OCTETS < 2**20


def test_thousands_of_names_are_read_in_time_and_told_in_short() -> None:
    names = [f"host-{i}.example.org" for i in range(3500)]
    server = issue("x", *names, by=ISSUER)
    began = time.process_time()
    verdict = match([server, ISSUER], record(2, 0, 1, ISSUER), names=[f"n{i}.example.com" for i in range(5)])
    assert time.process_time() - began < 5
    assert fault(verdict) == (ResultType.CERTIFICATE_HOST_MISMATCH, "host-mismatch")
    assert verdict.fault is not None
    assert "and 3496 more" in verdict.fault.detail
    assert match([issue("x", *names, HOST, by=ISSUER), ISSUER], record(2, 0, 1, ISSUER)).matched


def test_a_name_of_endless_labels_below_a_constrained_issuer_costs_nothing() -> None:
    constrained = issue(
        "I", by=ROOT, ca=True, extensions=[(x509.NameConstraints([x509.DNSName("example.com")], None), True)]
    )
    server = issue("x", HOST, "a." * 20_000 + "example.com", by=constrained)
    began = time.process_time()
    verdict = match([server, constrained], record(2, 0, 1, constrained))
    assert time.process_time() - began < 5
    assert fault(verdict)[1] == "name-constraints"


def test_a_chain_that_is_too_deep_leads_nowhere() -> None:
    links = [issue("CA 0", ca=True)]
    for i in range(1, MOST_CERTIFICATES + 1):
        links.insert(0, issue(f"CA {i}", by=links[0], ca=True))
    server = issue(HOST, HOST, by=links[0])
    assert match([server, *links[:10]], record(2, 0, 1, links[9])).matched
    assert not match([server, *links], record(2, 0, 1, links[-1])).matched
    assert match([server], record(2, 0, 0, links[0])).matched


def test_a_maze_of_issuers_that_sign_each_other_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    verified: list[Link] = []
    signed_with = Link.signed_with

    def counted(link: Link, key: object) -> bool:
        verified.append(link)
        return signed_with(link, key)  # type: ignore[arg-type]

    monkeypatch.setattr(Link, "signed_with", counted)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(MOST_CERTIFICATES - 2)]
    maze = [issue("Maze", by=Issued(ROOT.certificate, keys[0]), ca=True, key=key) for key in keys]
    named = issue("Maze", by=maze[0], ca=True)
    # All have one name, so that each may be the issuer of each.
    maze = [issue("Maze", by=replace(named, key=keys[i - 1]), ca=True, key=key) for i, key in enumerate(keys)]
    goal = issue("Goal", ca=True)
    server = issue(HOST, HOST, by=Issued(maze[0].certificate, keys[0]))
    verdict = match([server, *maze, goal], record(2, 0, 1, goal))
    assert fault(verdict) == (ResultType.CERTIFICATE_NOT_TRUSTED, "chain-too-complex")
    assert len(verified) <= MOST_SIGNATURES


def test_a_key_that_is_made_to_be_slow_is_not_used() -> None:
    slow = rsa.RSAPublicNumbers(e=2**2047 + 1, n=2**2048 - 1)
    assert public_key(ISSUER.key_info) is not None
    written = slow.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert public_key(written) is None
    assert not match([SERVER], TlsaRecord(2, 1, 0, written)).matched


# --- whatever comes -----------------------------------------------------------------------------------------------

OURS = [SERVER, ISSUER, ROOT, STRANGER, issue("Issuer", ca=True), issue(HOST, HOST, by=ROOT, ends=LAST_YEAR)]


def _mutated(der: bytes, changes: list[tuple[int, int]]) -> bytes:
    octets = bytearray(der)
    for at, octet in changes:
        octets[at % len(octets)] = octet
    return bytes(octets)


ders = st.one_of(
    st.sampled_from([each.der for each in OURS]),
    st.builds(
        _mutated,
        st.sampled_from([each.der for each in OURS]),
        st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), min_size=1, max_size=4),
    ),
    st.builds(lambda der, cut: der[:cut], st.sampled_from([each.der for each in OURS]), st.integers(0, 600)),
    st.binary(max_size=80),
)
_forms = (st.sampled_from([0, 1]), st.sampled_from([0, 1, 2]))
named_records = st.one_of(
    st.builds(record, st.just(3), *_forms, st.sampled_from(OURS)),
    # Not the stranger's: it is signed with its own key, and so hangs below that key where a record has it whole.
    st.builds(record, st.just(2), *_forms, st.sampled_from([ISSUER, ROOT, OURS[4]])),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(ders, max_size=6), st.lists(named_records, min_size=1, max_size=4))
def test_no_chain_raises_and_none_matches_that_no_record_names(chain: list[bytes], records: list[TlsaRecord]) -> None:
    demand = DaneDemand.of(HOST, records, [HOST])
    verdict = verify(chain, demand, NOW)
    assert (verdict.record is None) == (verdict.fault is not None)
    if verdict.record is None:
        fault(verdict)
        return
    assert verdict.record in records
    if verdict.record.usage == 3:
        content = chain[0] if verdict.record.selector == 0 else Outline.of(chain[0]).key
        digests = {0: content, 1: hashlib.sha256(content).digest(), 2: hashlib.sha512(content).digest()}
        assert verdict.record.data == digests[verdict.record.matching]
    else:
        # Only the server's own certificate, as it was issued, hangs below the issuers of this test.
        parsed = x509.load_der_x509_certificate(chain[0])
        assert parsed.tbs_certificate_bytes == SERVER.certificate.tbs_certificate_bytes


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([each.der for each in OURS]), max_size=5))
def test_a_record_that_names_nothing_matches_nothing(chain: list[bytes]) -> None:
    for usage in (2, 3):
        for selector in (0, 1):
            for matching, octets in ((1, 32), (2, 64)):
                named = TlsaRecord(usage, selector, matching, bytes(octets))
                assert not verify(chain, DaneDemand.of(HOST, [named], [HOST]), NOW).matched


def test_equal_demands_alone_are_equal() -> None:
    one, two = record(3, 1, 1, SERVER), record(3, 1, 1, STRANGER)
    issuer = record(2, 0, 1, ISSUER)
    assert DaneDemand.of(HOST, [one, two], [HOST]) == DaneDemand.of(HOST, [two, one, two], [HOST])
    assert DaneDemand.of(HOST, [one], ["a.example"]) == DaneDemand.of(HOST, [one], ["b.example"])  # no name is asked
    differing = [
        DaneDemand.of(HOST, [one], [HOST]),
        DaneDemand.of(HOST, [one, two], [HOST]),
        DaneDemand.of("mx2.example.com", [one], [HOST]),
        DaneDemand.of(HOST, [issuer], [HOST]),
        DaneDemand.of(HOST, [issuer], [HOST, "example.com"]),
    ]
    assert len({each.matching for each in differing}) == len(differing)
    with pytest.raises(ValueError, match="without a usable record"):
        DaneDemand.of(HOST, [], [HOST])
