"""ESMTP parameters of MAIL and RCPT: DSN-01..03, EXT-07, EXT-09, EXT-10, AUTH-06, OPT-01, SIN-20."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.smtp.parameters import (
    BodyType,
    Extension,
    FutureRelease,
    MailParameters,
    Notify,
    ParameterError,
    RcptParameters,
    Return,
    parse_mail_parameters,
    parse_rcpt_parameters,
    xtext_decode,
)

NOW = datetime(2026, 11, 22, 18, 0, tzinfo=UTC)
ALL = frozenset(Extension)


def mail(text: str, extensions: frozenset[Extension] = ALL) -> MailParameters:
    return parse_mail_parameters(text, extensions, now=NOW, longest_hold=5_184_000)


def rcpt(text: str, *, utf8: bool = False, extensions: frozenset[Extension] = ALL) -> RcptParameters:
    return parse_rcpt_parameters(text, extensions, utf8=utf8)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", MailParameters()),
        ("  ", MailParameters()),
        (" SIZE=1000", MailParameters(size=1000)),
        (" size=0 body=8bitmime", MailParameters(size=0, body=BodyType.EIGHT_BIT_MIME)),
        (" BODY=7BIT", MailParameters(body=BodyType.SEVEN_BIT)),
        (" BODY=BINARYMIME", MailParameters(body=BodyType.BINARY_MIME)),
        (" smtputf8", MailParameters(smtputf8=True)),
        (" RET=full ENVID=QQ+2B1", MailParameters(ret=Return.FULL, envid="QQ+2B1")),
        (" RET=HDRS", MailParameters(ret=Return.HEADERS)),
        (" ENVID=" + "e" * 100, MailParameters(envid="e" * 100)),
        (" AUTH=<>", MailParameters(auth="<>")),
        (" RequireTLS SIZE=7", MailParameters(size=7, require_tls=True)),
        (" AUTH=e+2Bmc2@example.com", MailParameters(auth="e+2Bmc2@example.com")),
    ],
)
def test_parameters_of_mail_are_read_in_any_case_DSN_01(text: str, expected: MailParameters) -> None:
    assert mail(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "SIZE=1",  # no blank after the path
        " SIZE",
        " SIZE=",
        " SIZE=x",
        " SIZE=-1",
        " SIZE=٣",
        " SIZE=" + "9" * 21,
        " SIZE=1 SIZE=1",
        " BODY=9BIT",
        " SMTPUTF8=1",
        " SMTPUTF8 SMTPUTF8",
        " REQUIRETLS=",
        " REQUIRETLS=1",
        " REQUIRETLS REQUIRETLS",
        " REQUIRETLS SIZE=1 requiretls",
        " RET=ALL",
        " RET=FULL RET=HDRS",
        " ENVID=a=b",
        " ENVID=a+b",
        " ENVID=a+0A",
        " ENVID=+E4",
        " AUTH=nobody",
        " AUTH=+",
        " =1",
        " SIZE=1\tBODY=7BIT",
        " -X=1",
    ],
)
def test_a_bad_value_or_a_second_one_is_501_DSN_02(text: str) -> None:
    with pytest.raises(ParameterError) as caught:
        mail(text)
    assert caught.value.code == 501
    assert str(caught.value).isascii()


@pytest.mark.parametrize("text", [" FOO", " FOO=1", " REQUIRETLSX", " NOTIFY=NEVER", " BY=120;R", " MT-PRIORITY=3"])
def test_what_was_not_offered_is_555(text: str) -> None:
    with pytest.raises(ParameterError) as caught:
        mail(text)
    assert caught.value.code == 555


@pytest.mark.parametrize("text", [" SIZE=1", " BODY=8BITMIME", " SMTPUTF8", " RET=FULL", " HOLDFOR=1", " AUTH=<>"])
def test_after_helo_there_are_no_parameters_SIN_20(text: str) -> None:
    with pytest.raises(ParameterError) as caught:
        mail(text, frozenset())
    assert caught.value.code == 555
    with pytest.raises(ParameterError):
        rcpt(" NOTIFY=NEVER", extensions=frozenset())


def test_binary_bodies_need_the_extension() -> None:
    with pytest.raises(ParameterError):
        mail(" BODY=BINARYMIME", ALL - {Extension.BINARY_MIME})


@pytest.mark.parametrize(
    ("text", "release"),
    [
        (" HOLDFOR=0", FutureRelease(NOW, "for;0")),
        (" HOLDFOR=86400", FutureRelease(NOW + timedelta(days=1), "for;86400")),
        (" HOLDFOR=005184000", FutureRelease(NOW + timedelta(days=60), "for;5184000")),
        (
            " HOLDUNTIL=2026-12-01T00:00:00Z",
            FutureRelease(datetime(2026, 12, 1, tzinfo=UTC), "until;2026-12-01T00:00:00Z"),
        ),
        (
            " holduntil=2026-12-01t00:00:00.25z",
            FutureRelease(datetime(2026, 12, 1, tzinfo=UTC), "until;2026-12-01T00:00:00Z"),
        ),
    ],
)
def test_a_release_in_the_future_is_understood_OPT_01(text: str, release: FutureRelease) -> None:
    assert mail(text).release == release


@pytest.mark.parametrize(
    "text",
    [
        " HOLDFOR=",
        " HOLDFOR=1h",
        " HOLDFOR=-1",
        " HOLDFOR=1234567890",
        " HOLDFOR=5184001",
        " HOLDFOR=1 HOLDUNTIL=2026-12-01T00:00:00Z",
        " HOLDFOR=1 HOLDFOR=1",
        " HOLDUNTIL=tomorrow",
        " HOLDUNTIL=2026-12-01",
        " HOLDUNTIL=2026-12-01T00:00:00+01:00",
        " HOLDUNTIL=2026-13-01T00:00:00Z",
        " HOLDUNTIL=2026-11-22T17:59:59Z",
        " HOLDUNTIL=2027-11-22T00:00:00Z",
    ],
)
def test_a_release_that_is_bad_or_too_far_is_501_OPT_01(text: str) -> None:
    with pytest.raises(ParameterError) as caught:
        mail(text)
    assert caught.value.code == 501


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", RcptParameters()),
        (" NOTIFY=never", RcptParameters(notify=(Notify.NEVER,))),
        (
            " NOTIFY=SUCCESS,FAILURE,delay",
            RcptParameters(notify=(Notify.SUCCESS, Notify.FAILURE, Notify.DELAY)),
        ),
        (" ORCPT=rfc822;Ada+2Bx@Example.org", RcptParameters(orcpt="rfc822;Ada+2Bx@Example.org")),
        (" ORCPT=rfc822;" + "a" * 500, RcptParameters(orcpt="rfc822;" + "a" * 500)),
        (" ORCPT=utf-8;\\x{16F}da@example.org", RcptParameters(orcpt="utf-8;\\x{16F}da@example.org")),
        (" orcpt=UTF-8;ada@example.org", RcptParameters(orcpt="UTF-8;ada@example.org")),
    ],
)
def test_parameters_of_rcpt_are_kept_as_written_DSN_01(text: str, expected: RcptParameters) -> None:
    assert rcpt(text) == expected


def test_an_original_recipient_in_utf8_needs_smtputf8_DSN_27() -> None:
    assert rcpt(" ORCPT=utf-8;жора@example.org", utf8=True).orcpt == "utf-8;жора@example.org"
    with pytest.raises(ParameterError):
        rcpt(" ORCPT=utf-8;жора@example.org")
    for point in ("5C", "7F", "A0", "436", "D7FF", "FFFD", "1F600", "10FFFF"):
        assert rcpt(f" ORCPT=utf-8;a\\x{{{point}}}@example.org").orcpt == f"utf-8;a\\x{{{point}}}@example.org"


@pytest.mark.parametrize(
    "text",
    [
        " NOTIFY",
        " NOTIFY=",
        " NOTIFY=ALWAYS",
        " NOTIFY=NEVER,SUCCESS",
        " NOTIFY=SUCCESS,SUCCESS",
        " NOTIFY=SUCCESS,",
        " NOTIFY=NEVER NOTIFY=NEVER",
        " ORCPT=ada@example.org",
        " ORCPT=rfc822;",
        " ORCPT=;ada@example.org",
        " ORCPT=rfc822;a+zz",
        " ORCPT=rfc 822;a",
        " ORCPT=utf-8;\\x{D}",
        " ORCPT=utf-8;\\x{0D}",
        " ORCPT=utf-8;\\x{0A}",
        " ORCPT=utf-8;\\x{41}",
        " ORCPT=utf-8;\\x{D800}",
        " ORCPT=utf-8;\\x{0436}",
        " ORCPT=utf-8;\\x{110000}",
        " ORCPT=rfc822;a ORCPT=rfc822;a",
    ],
)
def test_bad_parameters_of_rcpt_are_refused_DSN_02(text: str) -> None:
    with pytest.raises(ParameterError):
        rcpt(text)


def test_xtext_with_lower_case_digits_is_taken_and_passed_on_as_the_standard_has_it_DSN_02() -> None:
    assert mail(" ENVID=a+3db+2B AUTH=a+2bb@x.example").envid == "a+3Db+2B"
    assert mail(" AUTH=a+2bb@x.example").auth == "a+2Bb@x.example"
    assert rcpt(" ORCPT=rfc822;a+2bb@x").orcpt == "rfc822;a+2Bb@x"


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_xtext_carries_any_ascii_text(text: str) -> None:
    written = "".join(c if "!" <= c <= "~" and c not in "+=" else f"+{ord(c):02X}" for c in text)
    assert xtext_decode(written) == text
    assert xtext_decode(written.lower()) == text.lower()


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (mail, rcpt):
        with suppress(ParameterError):
            parse(" " + text)


def test_identifiers_are_taken_well_beyond_what_is_asked_for_and_not_without_end_DSN_03() -> None:
    assert mail(" ENVID=" + "e" * 1000).envid == "e" * 1000
    assert rcpt(" ORCPT=rfc822;" + "o" * 993).orcpt == "rfc822;" + "o" * 993
    with pytest.raises(ParameterError, match="ENVID takes at most 1000 characters"):
        mail(" ENVID=" + "e" * 1001)
    with pytest.raises(ParameterError, match="ORCPT takes at most 1000 characters"):
        rcpt(" ORCPT=rfc822;" + "o" * 994)
