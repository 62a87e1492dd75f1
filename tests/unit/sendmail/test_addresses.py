"""Who gets a message."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.message.header import Header
from mailrail.core.smtp.address import Address
from mailrail.sendmail.addresses import completed, read_recipients, recipients_of_field, resolve
from mailrail.sendmail.status import ExitStatus, Stop

ALIASES = {
    "root": ("ops@example.org",),
    "team": ("root", "ada@example.org"),
    "me": ("me",),
    "www": ("postmaster",),
}


def resolved(*words: str, default_destination: str = "", default_domain: str = "") -> list[str]:
    wanted = [each for word in words for each in read_recipients(word)]
    return [str(each) for each in resolve(wanted, ALIASES, default_destination, default_domain)]


@pytest.mark.parametrize(
    ("words", "settings", "expected"),
    [
        (["root"], {}, ["ops@example.org"]),
        (["ROOT"], {}, ["ops@example.org"]),
        (["team"], {}, ["ada@example.org", "ops@example.org"]),
        (["bob"], {"default_destination": "all@example.org"}, ["all@example.org"]),
        (["bob"], {"default_domain": "example.org"}, ["bob@example.org"]),
        (["bob"], {"default_destination": "all", "default_domain": "example.org"}, ["all@example.org"]),
        (["www"], {"default_domain": "example.org"}, ["postmaster@example.org"]),
        (["root", "ops@example.org", "Ops@EXAMPLE.org"], {}, ["ops@example.org"]),
        (["Ada <ada@example.org>, root"], {}, ["ada@example.org", "ops@example.org"]),
    ],
)
def test_a_name_goes_where_the_configuration_sends_it_SML_03(
    words: list[str], settings: dict[str, str], expected: list[str]
) -> None:
    assert resolved(*words, **settings) == expected


@pytest.mark.parametrize("name", ["bob", "www"])
def test_a_name_that_leads_nowhere_is_unknown_SML_03(name: str) -> None:
    with pytest.raises(Stop, match="set an alias") as caught:
        resolved(name)
    assert caught.value.status is ExitStatus.NO_USER


def test_aliases_in_a_circle_lead_nowhere_and_end_SML_03() -> None:
    assert resolved("me") == []


@pytest.mark.parametrize(
    "word", ["a@b@c", "<a@b.test", "a@-b.test", "x" * 200_000, "a@b.test\r\nRCPT TO:<c@d.test>", "@"]
)
def test_what_is_no_address_is_named_SML_09(word: str) -> None:
    with pytest.raises(Stop, match="is no address") as caught:
        read_recipients(word)
    assert caught.value.status is ExitStatus.USAGE


def test_a_field_with_one_unreadable_address_is_sent_to_nobody() -> None:
    header = Header(b"To: a@b.test, <broken\r\n")
    with pytest.raises(Stop, match="the addresses of To cannot be read") as caught:
        recipients_of_field(header.named(b"to")[0])
    assert caught.value.status is ExitStatus.DATA


def test_a_long_list_is_read_whole() -> None:
    text = b"To: " + b",\r\n ".join(b"user%d@example.org" % i for i in range(3000)) + b"\r\n"
    assert len(recipients_of_field(Header(text).named(b"to")[0])) == 3000


def test_names_of_this_machine_stand_in_a_field_too() -> None:
    header = Header(b"Cc: root, Ada <ada@example.org>, friends: bob;\r\n")
    assert recipients_of_field(header.named(b"cc")[0]) == [
        Address("root", ""),
        Address("ada", "example.org"),
        Address("bob", ""),
    ]


def test_one_address_is_completed_or_refused() -> None:
    assert str(completed("<bob>", "example.org")) == "bob@example.org"
    with pytest.raises(Stop, match="has no domain"):
        completed("bob", "")


def read_or_refused(word: str) -> list[Address] | Stop:
    try:
        return read_recipients(word)
    except Stop as stop:
        return stop


@given(st.text(max_size=60))
def test_any_word_is_read_or_refused_in_words(word: str) -> None:
    found = read_or_refused(word)
    if isinstance(found, Stop):
        assert all(c.isprintable() for c in str(found))
    else:
        assert all(not set("\r\n\0") & set(str(each)) for each in found)
