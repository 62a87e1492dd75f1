"""Who a message is from."""

import pytest

from mailrail.core.smtp.address import parse_address
from mailrail.sendmail.senders import hello_name, senders_of
from mailrail.sendmail.settings import RewriteFrom, SubmissionSettings


@pytest.mark.parametrize(
    ("given", "settings", "envelope", "replacement"),
    [
        ("a@b.test", {}, "a@b.test", "a@b.test"),
        (None, {}, "www@box", "www@box"),
        (None, {"login": "me@b.test"}, "me@b.test", "me@b.test"),
        (None, {"login": "me", "default_domain": "b.test"}, "www@b.test", "www@b.test"),
        (None, {"author": "x@y.test"}, "x@y.test", "x@y.test"),
        ("a@b.test", {"author": "x@y.test"}, "a@b.test", "x@y.test"),
        ("root", {"author": "x@y.test"}, "x@y.test", "x@y.test"),
        ("root", {"default_domain": "b.test"}, "root@b.test", "root@b.test"),
        ("", {"author": "x@y.test"}, "", "x@y.test"),
        ("a@b.test", {"author": "x@y.test", "rewrite_from": RewriteFrom.ALWAYS}, "x@y.test", "x@y.test"),
        ("", {"author": "x@y.test", "rewrite_from": RewriteFrom.ALWAYS}, "", "x@y.test"),
    ],
)
def test_the_sender_is_the_one_named_or_the_configured_one_SML_02(
    given: str | None, settings: dict[str, object], envelope: str, replacement: str
) -> None:
    if "author" in settings:
        settings = {**settings, "author": parse_address(str(settings["author"]))}
    found = senders_of(given, SubmissionSettings(**settings), user="www", host="box")  # type: ignore[arg-type]
    assert (found.envelope, str(found.replacement)) == (envelope, replacement)


def test_a_user_without_a_name_of_mail_still_has_a_sender() -> None:
    assert str(senders_of(None, SubmissionSettings(), user="www", host="a b").author) == "www@localhost"


@pytest.mark.parametrize(
    ("hello", "host", "said"), [("", "box", "box"), ("", "a b", "localhost"), ("x.test", "box", "x.test")]
)
def test_ehlo_says_a_name(hello: str, host: str, said: str) -> None:
    assert hello_name(SubmissionSettings(hello=hello), host) == said
