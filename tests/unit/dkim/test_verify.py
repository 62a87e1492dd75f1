"""Which signatures of a message are good (RFC 6376 6)."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.dkim.verify import (
    SIGNATURES_LIMIT,
    DkimOutcome,
    DkimResult,
    body_forms,
    find_signatures,
    prefix_length,
    verify,
)
from mailrail.core.lookups import NO_DATA, NO_NAME, DnsQuestion, LookupAnswer, answered

from testkit.signed_mail import (
    TROUBLE,
    crlf,
    dkim_results,
    ed25519_key,
    from_table,
    hashed,
    published,
    rsa_key,
    signed_naively,
    split,
    txt,
)

NOW = 1_767_225_600.0
KEY = "sel._domainkey.example.com"
MESSAGE = b"From: Ann <ann@example.com>\r\nTo: bob@example.net\r\nSubject: lunch\r\n\r\nAt one?\r\n\r\nAnn\r\n"
EXAMPLES = Path(__file__).parent
FOOTBALL = {
    "brisbane._domainkey.football.example.com": "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=",
    "test._domainkey.football.example.com": (
        "v=DKIM1; k=rsa; p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDkHlOQoBTzWRiGs5V6NpP3idY6Wk08a5qhdR6wy5bdOKb2jLQiY/J1"
        "6JYi0Qvx/byYzCNb3W91y3FutACDfzwQ/BC/e/8uBsCR+yz1Lxj+PL6lHvqMKrM3rG4hstT5QjvHO9PzoxZyVYLzBfO2EeC3Ip3G+2kryOTIKT"
        "+l/K4w3QIDAQAB"
    ),
    "brisbane._domainkey.example.com": (
        "v=DKIM1; p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDwIRP/UC3SBsEmGqZ9ZJW3/DkMoGeLnQg1fWn7/zYtIxN2SnFCjxOCKG9v3b4"
        "jYfcTNh5ijSsq631uBItLa7od+v/RtdC2UzJ1lWT947qR+Rcac2gbto/NMqJ0fzfVjH4OuKhitdY9tf6mcwGjaNBcWToIMmPSPDdQPNUYckcQ2"
        "QIDAQAB"
    ),
}


def signed(message: bytes = MESSAGE, **tags: str | None) -> bytes:
    return signed_naively(message, tags, rsa_key())


def result(message: bytes, record: str | LookupAnswer | None = None) -> DkimResult:
    answer = published(rsa_key()) if record is None else record
    (only,) = dkim_results(message, from_table({KEY: answer}), NOW)
    return only


def test_the_example_of_the_rfc_verifies_with_the_key_of_its_text_DKIM_06() -> None:
    message = crlf((EXAMPLES / "rfc6376.eml").read_bytes())
    (only,) = dkim_results(message, from_table(FOOTBALL), NOW)
    assert (only.outcome, only.domain, only.selector) == (DkimOutcome.PASS, "example.com", "brisbane")
    assert (only.identity, only.algorithm, only.bits) == ("joe@football.example.com", "rsa-sha256", 1024)
    assert only.prefix == "AuUoFEfD"


def test_both_signatures_of_the_example_of_rfc_8463_verify_DKIM_02() -> None:
    message = crlf((EXAMPLES / "rfc8463.eml").read_bytes())
    results = dkim_results(message, from_table(FOOTBALL), NOW)
    assert [(each.outcome, each.algorithm) for each in results] == [
        (DkimOutcome.PASS, "ed25519-sha256"),
        (DkimOutcome.PASS, "rsa-sha256"),
    ]


def test_mail_without_a_signature_asks_nothing_and_has_no_result_DKIM_01() -> None:
    header, _ = split(MESSAGE)
    assert body_forms(find_signatures(header, NOW)) == frozenset()
    assert dkim_results(MESSAGE, from_table({}), NOW) == ()


@pytest.mark.parametrize(
    "form", ["relaxed/relaxed", "relaxed/simple", "simple/relaxed", "simple/simple", "relaxed", None]
)
def test_what_another_signer_makes_verifies_in_each_form_DKIM_06(form: str | None) -> None:
    message = MESSAGE.replace(b"Subject: lunch", b"SUBJECT :  lunch \r\n\t at   one") + b" \t\r\n\r\n"
    for key, record in ((rsa_key(), published(rsa_key())), (ed25519_key(), published(ed25519_key()))):
        made = signed_naively(message, {"c": form}, key)
        assert result(made, record).outcome is DkimOutcome.PASS


def test_a_field_that_was_added_above_or_below_is_found_DKIM_06() -> None:
    made = signed(h="from:subject")
    assert result(made.replace(b"\r\nTo:", b"\r\nX: y\r\nTo:")).outcome is DkimOutcome.PASS
    # The lowest Subject is the one that was signed; one below it is another.
    assert result(made.replace(b"\r\nFrom:", b"\r\nSubject: added\r\nFrom:")).outcome is DkimOutcome.PASS
    assert result(made.replace(b"\r\n\r\n", b"\r\nSubject: added\r\n\r\n", 1)).outcome is DkimOutcome.FAIL


def test_a_name_that_stands_twice_means_two_fields_from_the_bottom_DKIM_06() -> None:
    two = MESSAGE.replace(b"Subject:", b"Subject: upper\r\nSubject:")
    made = signed(two, h="from:subject:subject:subject")
    assert result(made).outcome is DkimOutcome.PASS
    assert result(made.replace(b"upper", b"changed")).outcome is DkimOutcome.FAIL
    assert result(made.replace(b"\r\nFrom:", b"\r\nSubject: third\r\nFrom:")).outcome is DkimOutcome.FAIL


def test_an_absent_field_that_is_named_must_stay_absent_DKIM_06() -> None:
    made = signed(h="from:reply-to")
    assert result(made).outcome is DkimOutcome.PASS
    assert result(made.replace(b"\r\nTo:", b"\r\nReply-To: eve@example.org\r\nTo:")).outcome is DkimOutcome.FAIL


def test_a_signature_may_cover_another_one_and_never_itself_DKIM_06() -> None:
    inner = signed(s="inner", h="from")
    outer = signed_naively(inner, {"h": "from:dkim-signature"}, rsa_key())
    table = {KEY: published(rsa_key()), "inner._domainkey.example.com": published(rsa_key())}
    assert [each.outcome for each in dkim_results(outer, from_table(table), NOW)] == [DkimOutcome.PASS] * 2
    without = outer.replace(inner[: -len(MESSAGE)], b"")
    assert [each.outcome for each in dkim_results(without, from_table(table), NOW)] == [DkimOutcome.FAIL]


def test_a_body_that_was_changed_costs_no_look_up_DKIM_11() -> None:
    header, body = split(signed())
    found = find_signatures(header, NOW)
    asking = verify(header, found, hashed(body_forms(found), body + b"PS"))
    with pytest.raises(StopIteration) as done:
        next(asking)
    assert [(each.outcome, each.reason) for each in done.value.value] == [
        (DkimOutcome.FAIL, "the body is not what was signed")
    ]


def test_keys_are_asked_for_at_once_and_each_once_DKIM_11() -> None:
    message = signed(signed(signed(), s="b"), s="b", d="example.org")
    header, body = split(message)
    found = find_signatures(header, NOW)
    asking = verify(header, found, hashed(body_forms(found), body))
    assert next(asking) == (
        DnsQuestion("b._domainkey.example.org", "TXT"),
        DnsQuestion("b._domainkey.example.com", "TXT"),
        DnsQuestion(KEY, "TXT"),
    )
    twice = signed(signed())
    header, body = split(twice)
    found = find_signatures(header, NOW)
    assert next(verify(header, found, hashed(body_forms(found), body))) == (DnsQuestion(KEY, "TXT"),)


def test_every_signature_has_its_own_result_DKIM_01() -> None:
    message = signed(signed(signed(v="2"), s="gone"), d="trouble.example")
    table: dict[str, Any] = {KEY: published(rsa_key()), "sel._domainkey.trouble.example": TROUBLE}
    results = dkim_results(signed(message), from_table(table), NOW)
    assert [(str(each.outcome), each.domain, each.selector) for each in results] == [
        ("pass", "example.com", "sel"),
        ("temperror", "trouble.example", "sel"),
        ("permerror", "example.com", "gone"),
        ("permerror", "example.com", "sel"),
    ]


def test_signatures_past_the_limit_are_counted_and_not_evaluated_DKIM_01() -> None:
    message = MESSAGE
    for _ in range(SIGNATURES_LIMIT + 3):
        message = signed_naively(message, {}, ed25519_key())
    results = dkim_results(message, from_table({KEY: published(ed25519_key())}), NOW)
    assert [each.outcome for each in results] == [DkimOutcome.PASS] * SIGNATURES_LIMIT + [DkimOutcome.POLICY] * 3
    assert results[-1].reason == "not evaluated: too many signatures"


def test_a_part_of_the_body_is_not_trusted_DKIM_07() -> None:
    made = signed(l="9")
    assert result(made).outcome is DkimOutcome.POLICY
    assert result(made).reason == "it verifies, and covers 9 of the 16 octets of the body (l=)"
    assert result(made + b"appended\r\n").outcome is DkimOutcome.POLICY
    assert result(signed(l="16")).outcome is DkimOutcome.PASS
    assert result(signed(l="16") + b"\r\n\r\n").outcome is DkimOutcome.PASS  # these lines are no part of it
    assert result(signed(l="0")).outcome is DkimOutcome.POLICY


def test_more_octets_than_the_body_has_are_an_error_DKIM_11() -> None:
    assert result(signed(l="17")).outcome is DkimOutcome.PERMERROR


@pytest.mark.parametrize("answer", [NO_NAME, NO_DATA, txt()])
def test_no_key_is_permanent_and_a_fault_of_the_dns_is_not_DKIM_05(answer: LookupAnswer) -> None:
    assert result(signed(), answer).outcome is DkimOutcome.PERMERROR
    assert result(signed(), answer).reason == f"there is no key at {KEY}"
    assert result(signed(), TROUBLE).outcome is DkimOutcome.TEMPERROR
    assert "SERVFAIL" in result(signed(), TROUBLE).reason


def test_each_of_several_records_is_tried_DKIM_11() -> None:
    good, other = published(rsa_key()), published(rsa_key(number=1))
    for records in ((good, other), (other, good), ("v=spf1 -all", "junk", good), ("v=DKIM1; p=", good)):
        assert result(signed(), txt(*records)).outcome is DkimOutcome.PASS
    assert result(signed(), txt("junk", other)).outcome is DkimOutcome.FAIL
    assert result(signed(), txt("v=DKIM1; p=", "junk")).reason == "its key is revoked (p= is empty)"
    assert result(signed(), txt(*["junk"] * 8, good)).outcome is DkimOutcome.PERMERROR


def test_a_domain_that_tries_dkim_out_counts_as_unsigned_DKIM_05() -> None:
    record = published(rsa_key(), "t=y; ")
    for message in (signed(), signed().replace(b"lunch", b"dinner")):
        judged = result(message, record)
        assert (judged.outcome, judged.testing) == (DkimOutcome.NEUTRAL, True)


def test_a_strict_key_wants_the_very_domain_DKIM_04() -> None:
    record = published(rsa_key(), "t=s; ")
    assert result(signed(i="ann@example.com"), record).outcome is DkimOutcome.PASS
    assert result(signed(i="@EXAMPLE.com"), record).strict
    judged = result(signed(i="ann@sub.example.com"), record)
    assert judged.outcome is DkimOutcome.PERMERROR
    assert "t=s" in judged.reason
    assert result(signed(i="ann@sub.example.com")).outcome is DkimOutcome.PASS


def test_a_key_for_another_service_or_algorithm_is_no_key_for_mail_DKIM_05() -> None:
    assert result(signed(), published(rsa_key(), "s=tlsrpt; ")).outcome is DkimOutcome.PERMERROR
    assert result(signed(), published(ed25519_key())).outcome is DkimOutcome.PERMERROR
    header, body = split(signed())
    found = find_signatures(header, NOW)
    asking = verify(header, found, hashed(body_forms(found), body), (b"email", b"tlsrpt"))
    (report,) = answered(asking, from_table({KEY: published(rsa_key(), "s=tlsrpt; ")}))
    assert report.outcome is DkimOutcome.PASS


def test_the_hash_is_over_the_domain_as_it_is_written_DKIM_12() -> None:
    made = signed(d="bücher.example", s="schlüssel")
    table = {"xn--schlssel-95a._domainkey.xn--bcher-kva.example": published(rsa_key())}
    (judged,) = dkim_results(made, from_table(table), NOW)
    assert (judged.outcome, judged.domain) == (DkimOutcome.PASS, "xn--bcher-kva.example")
    other = made.replace("bücher".encode(), b"xn--bcher-kva")
    assert dkim_results(other, from_table(table), NOW)[0].outcome is DkimOutcome.FAIL


def test_prefixes_of_signatures_tell_them_apart() -> None:
    assert prefix_length([]) == prefix_length(["abcdefghijkl"]) == 8
    assert prefix_length(["abcdefghi", "abcdefghj", "x"]) == 12
    assert prefix_length(["a" * 100, "a" * 100]) == 8  # the same signature twice
    assert prefix_length(["a" * 100, "a" * 100 + "b"]) == 64


OCTETS = st.lists(
    st.sampled_from(
        [
            b"DKIM-Signature:",
            b" v=1; a=rsa-sha256; d=example.com; s=sel; h=from; bh=",
            b"b=AAAA;",
            b"From: a@b",
            b"\r\n",
            b"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=; ",
            b"\r\n\r\n",
            b" ",
            b"c=relaxed/relaxed;",
            b"\xff\x00",
            b"x",
        ]
    ),
    max_size=25,
).map(b"".join)


@given(OCTETS, st.binary(max_size=60))
def test_any_octets_are_judged_without_an_error(message: bytes, record: bytes) -> None:
    for each in dkim_results(message, from_table({KEY: record}), NOW):
        assert each.outcome is not DkimOutcome.PASS
        assert each.reason.isprintable()
