"""A route by recipient domain, one by sender domain, and one from the 4th attempt on, at each of the three levels.

Design 4 (Route) and 5 (level order): account routes go before the domain's, those before global ones; first match wins.
Each route leads to a hop of its own, so that where a message arrives says which rule decided.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from testkit.next_hop import NextHop
from testkit.peers.swaks import swaks
from testkit.rail import LOGIN, PASSWORD, Document, Rail, account, basics, route, rule, secret, transport

pytestmark = [pytest.mark.peer("swaks"), pytest.mark.timeout(300)]

LEVELS = {
    "account": ("MailAccount", "alice"),
    "domain": ("MailDomain", "example-org"),
    "global": ("MailGateway", "local"),
}
KINDS = ("recipient", "sender", "early", "late")
NEWS = "letter@news.test"
BOB = "bob@example.org"


def _route(level: str) -> Document:
    senders = ["news.test"] if level == "global" else ["example.org"]
    return route(
        f"by-{level}",
        LEVELS[level],
        rule("recipient", f"{level}-recipient", to=[f".recipient.{level}.test"]),
        rule("sender", f"{level}-sender", to=[f"sender.{level}.test"], sender=senders),
        rule("late", f"{level}-late", to=[f"late.{level}.test"], minimum_attempts=3),
        rule("early", f"{level}-early", to=[f"late.{level}.test"]),
        # what every level claims: the first in order gets it
        rule("contested", f"{level}-recipient", to=["contested.test"]),
    )


@pytest.fixture(scope="module")
def hops() -> Iterator[dict[str, NextHop]]:
    names = [f"{level}-{kind}" for level in LEVELS for kind in KINDS] + ["rest"]
    hops = {name: NextHop(hostname=f"{name}.test") for name in names}
    yield hops
    for hop in hops.values():
        hop.close()


@pytest.fixture(scope="module")
def rail(hops: dict[str, NextHop]) -> Iterator[Rail]:
    documents = [
        *basics(),
        account("bob", "example-org", "bob", credentials="bob-login"),
        secret("bob-login", password=PASSWORD),
        *(transport(name, smtp={"host": hop.address, "port": hop.port}) for name, hop in hops.items()),
        *(_route(level) for level in LEVELS),
        route("last", ("MailGateway", "local"), rule("rest", "rest"), priority=2000),
    ]
    with Rail(documents) as running:
        yield running


def submit(rail: Rail, recipient: str, sender: str = LOGIN) -> None:
    """Send as a user of example.org does."""
    login = ("--auth", "PLAIN", "--auth-user", sender, "--auth-password", PASSWORD)
    said = swaks(*rail.submission, "--tls", *login, "--from", sender, "--to", recipient)
    assert said.accepted, said.text


def stranger(rail: Rail, recipient: str, sender: str) -> None:
    """Send as a stranger does (in captive local mode 1025 takes any recipient)."""
    said = swaks(*rail.mx, "--from", sender, "--to", recipient)
    assert said.accepted, said.text


def explained(rail: Rail, *arguments: str) -> dict[str, Any]:
    """What `mailrail explain --json` answers."""
    answer: dict[str, Any] = rail.cli_json("explain", *arguments)
    return answer


@pytest.mark.parametrize("level", LEVELS)
def test_a_route_by_recipient_domain_decides_for_it_and_its_subdomains(
    rail: Rail, hops: dict[str, NextHop], level: str
) -> None:
    for name in (f"recipient.{level}.test", f"deep.below.recipient.{level}.test"):
        submit(rail, f"x@{name}")
        hops[f"{level}-recipient"].wait_for_recipient(f"x@{name}")


@pytest.mark.parametrize("level", ["account", "domain"])
def test_a_route_by_sender_domain_decides_for_mail_of_that_domain(
    rail: Rail, hops: dict[str, NextHop], level: str
) -> None:
    submit(rail, f"x@sender.{level}.test")
    hops[f"{level}-sender"].wait_for_recipient(f"x@sender.{level}.test")


def test_a_global_route_by_sender_domain_decides_for_strangers_too(rail: Rail, hops: dict[str, NextHop]) -> None:
    stranger(rail, "x@sender.global.test", NEWS)
    hops["global-sender"].wait_for_recipient("x@sender.global.test")
    stranger(rail, "y@sender.global.test", "other@news2.test")
    hops["rest"].wait_for_recipient("y@sender.global.test")


@pytest.mark.parametrize("level", LEVELS)
def test_from_the_fourth_attempt_on_another_route_takes_over_LSE_05(
    rail: Rail, hops: dict[str, NextHop], level: str
) -> None:
    recipient = f"x@late.{level}.test"
    early, late = hops[f"{level}-early"], hops[f"{level}-late"]
    early.refuse(recipient, "451 4.3.0 not today")
    submit(rail, recipient)
    late.wait_for_recipient(recipient, within=60)
    assert early.attempts(recipient) == 3
    assert late.attempts(recipient) == 1


def test_account_goes_before_domain_and_domain_before_global(rail: Rail, hops: dict[str, NextHop]) -> None:
    submit(rail, "alice@contested.test")
    hops["account-recipient"].wait_for_recipient("alice@contested.test")
    submit(rail, "bob@contested.test", sender=BOB)
    hops["domain-recipient"].wait_for_recipient("bob@contested.test")
    stranger(rail, "stranger@contested.test", NEWS)
    hops["global-recipient"].wait_for_recipient("stranger@contested.test")


def test_account_and_domain_routes_are_not_for_who_only_claims_the_sender(rail: Rail, hops: dict[str, NextHop]) -> None:
    # Design 4: Domain = the MailDomain of MAIL FROM only if the message was submitted with authentication.
    stranger(rail, "claimed@sender.domain.test", LOGIN)
    hops["rest"].wait_for_recipient("claimed@sender.domain.test")
    assert not hops["domain-sender"].received("claimed@sender.domain.test")


@pytest.mark.parametrize("level", LEVELS)
def test_explain_names_the_rule_of_each_attempt(rail: Rail, level: str) -> None:
    asked = ("--from", LOGIN, "--to", f"x@late.{level}.test", "--account", LOGIN)
    third = explained(rail, *asked, "--attempt", "3")["decision"]
    fourth = explained(rail, *asked, "--attempt", "4")["decision"]
    assert (third["level"], third["rule"], third["transport"]["name"]) == (level, "early", f"{level}-early")
    assert (fourth["level"], fourth["rule"], fourth["transport"]["name"]) == (level, "late", f"{level}-late")
    assert "late" in rail.cli("explain", *asked, "--attempt", "4")
