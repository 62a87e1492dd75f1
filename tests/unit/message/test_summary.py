"""What a list of messages shows of one."""

from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.message.header import Header
from mailrail.core.message.summary import REFERENCES_LIMIT, TEXT_LIMIT, Summary, summarize

MESSAGE = (
    b"From: =?utf-8?q?J=C3=BCrgen?= <j@a.org>\r\n"
    b"To: b@b.org,\r\n c@c.org\r\n"
    b"Subject: =?utf-8?b?R3LDvMOfZQ==?=\r\n"
    b"Message-ID: <one@a.org>\r\n"
    b"In-Reply-To: <zero@a.org>\r\n"
    b"References: <x@a.org>\r\n <zero@a.org>\r\n"
    b"\r\nFrom: not this\r\n"
)


def test_a_header_is_decoded_for_people_and_its_thread_is_found() -> None:
    assert summarize(Header(MESSAGE)) == Summary(
        "Jürgen <j@a.org>", "b@b.org, c@c.org", "Grüße", "<one@a.org>", "<zero@a.org>", ("<x@a.org>", "<zero@a.org>")
    )


def test_a_message_without_header_shows_nothing() -> None:
    assert summarize(Header(b"\r\nbody")) == Summary()
    assert summarize(Header(b"")) == Summary()


def test_a_long_thread_keeps_its_beginning_and_its_end() -> None:
    ids = [f"<{i}@a.org>" for i in range(500)]
    found = summarize(Header(b"References: " + " ".join(ids).encode() + b"\r\n\r\n")).references
    assert (len(found), found[0], found[-1]) == (REFERENCES_LIMIT, ids[0], ids[-1])


def test_a_broken_encoded_word_is_shown_as_it_came() -> None:
    assert summarize(Header(b"From: =?no-such-charset?q?x?= <a@b>\r\n\r\n")).sender == "=?no-such-charset?q?x?= <a@b>"


encoded = st.sampled_from([b"utf-8?q?", b"utf-16?b?", b"utf-7?q?"]).flatmap(
    lambda head: st.binary(max_size=60).map(lambda rest: b"=?" + head + rest + b"?=")
)


@given(st.binary(max_size=500) | encoded.map(lambda word: b"From: " + word + b"\r\nSubject: " + word))
def test_whatever_comes_is_shown_in_bounds_and_as_valid_text(octets: bytes) -> None:
    found = summarize(Header(octets))
    for text in (found.sender, found.to, found.subject):
        text.encode()
        assert len(text) <= TEXT_LIMIT
        assert "\0" not in text
