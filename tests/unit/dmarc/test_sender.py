"""Whether MAIL FROM belongs to whoever sent the message."""

import pytest
from unit.dmarc.zone import Zone, at, judged

from mailrail.core.dmarc.facts import DkimFact, SpfFact
from mailrail.core.dmarc.sender import sender_authenticated
from mailrail.core.dsn.due import SenderAuthentication

YES, UNKNOWN, FORGED = SenderAuthentication.YES, SenderAuthentication.UNKNOWN, SenderAuthentication.FORGED
ZONE = at(example_com="v=DMARC1; p=none", other_example="v=DMARC1; p=none")


@pytest.mark.parametrize(
    ("mail_from", "spf", "dkim", "author", "found"),
    [
        # A pass of its domain, by SPF or by DMARC.
        ("example.com", "pass", [], "other.example", YES),
        ("Example.COM", "pass", [], None, YES),
        ("example.com", "fail", [("pass", "example.com")], "example.com", YES),
        ("example.com", "none", [("pass", "sig.example.com")], "example.com", YES),
        # SPF fails, and nothing says that it is genuine all the same.
        ("example.com", "fail", [], "other.example", FORGED),
        ("example.com", "fail", [("fail", "example.com")], "example.com", FORGED),
        ("example.com", "fail", [("pass", "evil.example")], "other.example", FORGED),
        ("example.com", "fail", [], None, FORGED),
        # SPF fails, as it does for what is forwarded, and a signature holds.
        ("bounce.example.com", "fail", [("pass", "example.com")], "example.com", UNKNOWN),
        ("example.com", "fail", [("pass", "bounce.example.com")], None, UNKNOWN),
        ("bounces.esp.example", "fail", [("pass", "example.com")], "example.com", UNKNOWN),
        # The rest.
        ("example.com", "softfail", [], "example.com", UNKNOWN),
        ("example.com", "neutral", [], "example.com", UNKNOWN),
        ("example.com", "none", [("pass", "other.example")], "other.example", UNKNOWN),
        ("example.com", "temperror", [], "example.com", UNKNOWN),
        ("example.com", "permerror", [], "example.com", UNKNOWN),
        ("[192.0.2.1]", "none", [], "example.com", UNKNOWN),
        ("", "pass", [], "example.com", UNKNOWN),
        ("", "fail", [], "example.com", UNKNOWN),
    ],
)
def test_a_sender_is_authenticated_forged_or_unknown_DSN_26b(
    mail_from: str, spf: str, dkim: list[tuple[str, str]], author: str | None, found: SenderAuthentication
) -> None:
    fact = SpfFact(spf, mail_from or "mx.example.com")
    signatures = [DkimFact(*one) for one in dkim]
    verdicts = judged(Zone(ZONE), *([author] if author else []), spf=fact, dkim=signatures).verdicts
    assert sender_authenticated(mail_from, fact, signatures, verdicts) is found


def test_spf_of_another_name_says_nothing_about_the_sender_DSN_26b() -> None:
    for result in ("pass", "fail"):
        assert sender_authenticated("example.com", SpfFact(result, "mx.far.example"), [], ()) is UNKNOWN
