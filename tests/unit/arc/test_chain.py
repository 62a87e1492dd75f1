"""Whether the ARC chain of a message holds (RFC 8617 5.2)."""

import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.arc.chain import ArcOutcome, ArcResult, verify_chain
from mailrail.core.arc.sets import SETS_LIMIT, body_forms, find_chain
from mailrail.core.lookups import NO_NAME, DnsQuestion

from testkit.signed_mail import (
    TROUBLE,
    arc_result,
    ed25519_key,
    from_table,
    hashed,
    published,
    sealed,
    split,
    txt,
)

NOW = 1_767_225_600.0
MESSAGE = b"From: Ann <ann@example.com>\r\nTo: bob@example.net\r\nSubject: lunch\r\n\r\nAt one?\r\n"
NAMES = ("authentication-results", "message-signature", "seal")
RECORD = published(ed25519_key())


def chain_of(length: int, message: bytes = MESSAGE) -> bytes:
    for instance in range(1, length + 1):
        message = sealed(message, instance)
    return message


def judged(message: bytes, **answers: Any) -> ArcResult:
    table = {f"arc._domainkey.d{number}.example": RECORD for number in range(1, SETS_LIMIT + 1)}
    return arc_result(
        message, from_table({**table, **{f"arc._domainkey.{k}.example": v for k, v in answers.items()}}), NOW
    )


def test_mail_without_arc_fields_has_no_chain_and_asks_nothing_ARC_01a() -> None:
    result = arc_result(MESSAGE, from_table({}), NOW)
    assert (result.outcome, result.sealed) == (ArcOutcome.NONE, ())
    assert body_forms(find_chain(split(MESSAGE)[0], NOW)) == frozenset()


@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_a_chain_that_holds_says_who_sealed_and_what_they_found_ARC_01a(length: int) -> None:
    result = judged(chain_of(length))
    assert (result.outcome, result.oldest_pass) == (ArcOutcome.PASS, 0), result.reason
    assert [(each.instance, each.sealer) for each in result.sealed] == [
        (n, f"d{n}.example") for n in range(1, length + 1)
    ]
    findings = [each.findings for each in result.sealed]
    assert [each and each.authserv_id for each in findings] == [f"mx.d{n}.example" for n in range(1, length + 1)]
    assert {result.method for each in findings if each for result in each.results} == {"spf"}


def test_fifty_sets_hold_and_one_more_does_not_ARC_01a() -> None:
    message = chain_of(SETS_LIMIT)
    assert judged(message).outcome is ArcOutcome.PASS
    assert judged(sealed(message, SETS_LIMIT + 1)).outcome is ArcOutcome.FAIL


def test_a_body_that_a_later_sealer_changed_moves_the_oldest_pass_ARC_01a() -> None:
    changed = chain_of(2).replace(b"At one?", b"At two?")
    result = judged(sealed(changed, 3))
    assert (result.outcome, result.oldest_pass) == (ArcOutcome.PASS, 3)
    assert judged(chain_of(2, MESSAGE) + b"PS\r\n").outcome is ArcOutcome.FAIL


def test_a_header_that_was_changed_breaks_the_newest_signature_ARC_01a() -> None:
    result = judged(chain_of(2).replace(b"lunch", b"dinner"))
    assert result.outcome is ArcOutcome.FAIL
    assert result.reason.startswith("ARC-Message-Signature of instance 2: the header is not what was signed")
    assert result.sealed == ()


def test_findings_that_were_changed_break_their_seal_ARC_01a() -> None:
    for number in (1, 2):
        forged = chain_of(2).replace(
            f"mx.d{number}.example; spf=pass".encode(), f"mx.d{number}.example; spf=fail".encode()
        )
        assert "ARC-Seal of instance 2" in judged(forged).reason
    # Instance 2 is sealed again over what was forged: the seal of instance 1 shows it.
    first = chain_of(1).replace(b"spf=pass", b"spf=fail")
    assert "ARC-Seal of instance 1" in judged(sealed(first, 2)).reason


@pytest.mark.parametrize("instance", [1, 2, 3])
@pytest.mark.parametrize("name", [b"ARC-Seal", b"ARC-Message-Signature", b"ARC-Authentication-Results"])
def test_one_field_too_few_or_too_many_breaks_the_chain_ARC_01a(name: bytes, instance: int) -> None:
    message = chain_of(3)
    (field,) = re.findall(rb"%s: [^\r]*\bi=%d;[^\r]*\r\n" % (name, instance), message)
    assert judged(message.replace(field, b"")).outcome is ArcOutcome.FAIL
    twice = judged(field + message)
    assert (twice.outcome, "twice" in twice.reason) == (ArcOutcome.FAIL, True)


@pytest.mark.parametrize(("instance", "cv"), [(1, "pass"), (1, "fail"), (2, "none"), (2, "fail"), (2, "Pass"), (2, "")])
def test_what_a_seal_says_of_the_chain_before_must_fit_ARC_01a(instance: int, cv: str) -> None:
    message = sealed(chain_of(instance - 1), instance, cv=cv)
    assert judged(message).outcome is ArcOutcome.FAIL
    assert judged(sealed(message, instance + 1)).outcome is ArcOutcome.FAIL


def test_a_seal_that_names_fields_breaks_the_chain_ARC_01a() -> None:
    result = judged(sealed(MESSAGE, 1, seal_tags="; h=from"))
    assert (result.outcome, "h=" in result.reason) == (ArcOutcome.FAIL, True)


def test_trouble_with_the_dns_is_as_bad_as_a_forgery_ARC_01a() -> None:
    for answer in (TROUBLE, NO_NAME, "v=DKIM1; p=", published(ed25519_key(), "t=y; ")):
        for number in (1, 2):
            assert judged(chain_of(2), **{f"d{number}": answer}).outcome is ArcOutcome.FAIL


def test_keys_of_the_newest_set_are_asked_for_first() -> None:
    header, body = split(sealed(chain_of(2), 3, message_tags={"s": "ams"}))
    chain = find_chain(header, NOW)
    asking = verify_chain(header, chain, hashed(body_forms(chain), body))
    assert next(asking) == (
        DnsQuestion("ams._domainkey.d3.example", "TXT"),
        DnsQuestion("arc._domainkey.d3.example", "TXT"),
    )
    assert asking.send((txt(RECORD), txt(RECORD))) == (
        DnsQuestion("arc._domainkey.d2.example", "TXT"),
        DnsQuestion("arc._domainkey.d1.example", "TXT"),
    )
    with pytest.raises(StopIteration) as done:
        asking.send((txt(RECORD), txt(RECORD)))
    assert done.value.value.outcome is ArcOutcome.PASS


@pytest.mark.parametrize(
    "tags", [{"h": "from:arc-seal"}, {"l": "3"}, {"x": "1767000000"}, {"h": ""}, {"a": "rsa-sha1"}, {"t": "soon"}]
)
def test_only_the_newest_message_signature_must_be_good_ARC_01a(tags: dict[str, str | None]) -> None:
    first = sealed(MESSAGE, 1, message_tags=tags)
    assert judged(first).outcome is ArcOutcome.FAIL
    result = judged(sealed(first, 2))
    assert (result.outcome, result.oldest_pass) == (ArcOutcome.PASS, 2), result.reason


def test_a_message_signature_need_not_cover_from() -> None:
    assert judged(sealed(MESSAGE, 1, message_tags={"h": "subject"})).outcome is ArcOutcome.PASS


def test_findings_that_cannot_be_read_break_no_chain() -> None:
    result = judged(sealed(MESSAGE, 1, results="("))
    assert (result.outcome, result.sealed[0].findings) == (ArcOutcome.PASS, None), result.reason


def test_other_fields_between_and_above_change_nothing() -> None:
    message = sealed(b"Received: x\r\n" + chain_of(1), 2)
    assert judged(b"Received: y\r\nDKIM-Signature: z\r\n" + message).outcome is ArcOutcome.PASS


PARTS: Sequence[bytes] = [
    b"ARC-Seal:", b"ARC-Message-Signature:", b"ARC-Authentication-Results:", b" i=1;", b" i=2;", b" i=51;",
    b" cv=none;", b" a=rsa-sha256; d=example.com; s=sel; b=AAAA;",
    b" h=from; bh=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
    b" mx.example; spf=pass", b"From: a@b", b"\r\n", b"\r\n\r\n", b"\xff\x00", b"(",
]  # fmt: skip


@given(st.lists(st.sampled_from(PARTS), max_size=40).map(b"".join), st.binary(max_size=60))
def test_any_octets_are_judged_without_an_error(message: bytes, record: bytes) -> None:
    result = arc_result(message, from_table({"sel._domainkey.example.com": record}), NOW)
    assert result.outcome is not ArcOutcome.PASS
    assert result.reason.isprintable()
