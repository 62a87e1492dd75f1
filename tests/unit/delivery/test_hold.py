"""Hold rules are the AND of their set fields, for old mail and for new (reference F3, H27)."""

import itertools

import pytest

from mailrail.core.delivery.hold import HoldRule, first_match

MAIL = {"account": "mail/alice", "sender_domain": "a.org", "recipient_domain": "b.org"}


def test_a_rule_with_no_field_holds_everything() -> None:
    assert HoldRule(1).matches(**MAIL)
    assert HoldRule(1).matches(account=None, sender_domain="", recipient_domain="x")


@pytest.mark.parametrize("fields", [c for n in (1, 2, 3) for c in itertools.combinations(sorted(MAIL), n)])
def test_each_set_field_must_agree_H27(fields: tuple[str, ...]) -> None:
    rule = HoldRule(1, **{field: MAIL[field] for field in fields})
    assert rule.matches(**MAIL)
    for field in fields:
        assert not rule.matches(**{**MAIL, field: "other"})


def test_an_unset_sender_domain_does_not_single_out_null_senders_H27() -> None:
    rule = HoldRule(1, recipient_domain="b.org")
    assert not rule.matches(account=None, sender_domain="", recipient_domain="c.org")
    assert not HoldRule(2, account="mail/alice").matches(account=None, sender_domain="", recipient_domain="b.org")


def test_the_first_rule_that_matches_gives_the_reason() -> None:
    rules = [HoldRule(1, sender_domain="z.org"), HoldRule(2, recipient_domain="b.org", comment="checking")]
    found = first_match(rules, account=None, sender_domain="a.org", recipient_domain="b.org")
    assert found is not None
    assert found.reason == "hold rule 2: checking"
    assert first_match(rules[:1], account=None, sender_domain="a.org", recipient_domain="b.org") is None
